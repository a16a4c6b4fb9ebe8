# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""An MDM as lmms-eval's model, by its own classes where it is installed."""

import importlib.metadata
import sys

import pytest
import torch
from tiny_digits import make_config, make_processor
from tiny_vision_sets import FILES

from modeling_mdm.evaluation.tables.processes import item_noise
from modeling_mdm.evaluation.tables.samples import cut_at
from modeling_mdm.evaluation.tables.suite import manifest
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.image_processing_pil_mdm import open_picture

REASON = 'needs lmms-eval: pip install "modeling-mdm[eval-suite]"'


def test_nothing_of_it_is_imported_unasked(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(ImportError):
        manifest()
    assert "modeling_mdm.evaluation.tables.multimodal_model" not in sys.modules


def test_an_answer_ends_at_its_first_stop():
    assert cut_at("a dog.\nA cat", ["\n", "."]) == "a dog"
    assert cut_at("a dog", "cat") == cut_at("a dog", None) == cut_at("a dog", [""]) == "a dog"


@pytest.fixture
def lmms_eval():
    return pytest.importorskip("lmms_eval.api.instance", reason=REASON)


@pytest.fixture
def folder(tmp_path):
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    torch.manual_seed(0)
    MDMForJointGeneration(make_config(len(processor.tokenizer))).save_pretrained(tmp_path)
    return str(tmp_path)


def adapter(folder, **options):
    from modeling_mdm.evaluation.tables.multimodal_model import MDMMultimodalModel

    text = f"pretrained={folder},num_inference_steps=2,num_evaluations=2"
    found = MDMMultimodalModel.create_from_arg_string(
        text, {"batch_size": 1, "max_batch_size": None, "device": "cpu", **options}
    )
    rows = [{"picture": open_picture(file), "answer": " a one"} for file in FILES[:3]]
    found.task_dict["toy"] = {"val": rows}
    return found


def see(row):
    return [row["picture"]]


def request(lmms_eval, kind, context, what, number, visual=see):
    arguments = (context, what, visual, number, "toy", "val")
    metadata = {"task": "toy", "doc_id": number, "repeats": 1}
    return lmms_eval.Instance(kind, arguments, 0, metadata)


def test_it_is_found_by_name(lmms_eval):
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert registry.get_model_class("mdm").__name__ == "MDMMultimodalModel"
    points = importlib.metadata.entry_points(group="lmms_eval.models", name="mdm")
    assert not points or {one.load() for one in points} == {manifest}


def test_the_likeliest_choice_has_the_least_loss(lmms_eval, folder):
    lm = adapter(folder)
    choices = ("a one", " a seven", "a two")
    asked = [request(lmms_eval, "loglikelihood", "<image>\nWhat?", c, 1) for c in choices]
    asked.append(request(lmms_eval, "loglikelihood", "What?", lambda row: row["answer"], 1))
    found = lm.loglikelihood(asked)
    picture = {"type": "image", "image": open_picture(FILES[1])}
    user = {"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}
    talks = [[user, {"role": "assistant", "content": one.strip()}] for one in choices]
    inputs = lm.processor.apply_chat_template(
        talks, tokenize=True, return_dict=True, return_tensors="pt"
    )
    noise = item_noise(0, "toy", "val", 1)
    out = lm.model.eval().score(**inputs, content="text", num_evaluations=2, generator=noise)
    expected = (-out.log_likelihood).tolist()
    assert [loss for loss, _ in found] == pytest.approx([*expected, expected[0]], rel=1e-4)
    assert not any(greedy for _, greedy in found)


def test_answers_are_those_of_their_documents_whatever_the_batch(lmms_eval, folder):
    settings = ({"max_new_tokens": 3}, {"max_new_tokens": 5, "until": ["one"]}, {})
    asked = [
        request(lmms_eval, "generate_until", f"What is {n}?", dict(settings[n]), n)
        for n in (2, 0, 1)
    ]
    one, some = adapter(folder), adapter(folder, batch_size=4)
    found = one.generate_until(asked)
    assert some.generate_until(asked[::-1]) == found[::-1] and len(found) == 3
    assert all(isinstance(text, str) for text in found)
    text_alone = request(lmms_eval, "generate_until", "What?", {}, 0, visual=None)
    assert len(one.generate_until([text_alone])) == 1


def test_what_it_cannot_do_is_named(lmms_eval, folder):
    lm = adapter(folder)
    film = request(lmms_eval, "generate_until", "What?", {}, 0, visual=lambda row: ["film.mp4"])
    with pytest.raises(ValueError, match="task 'toy' shows str: mdm sees pictures alone"):
        lm.generate_until([film])
    with pytest.raises(NotImplementedError, match="one round"):
        lm.generate_until_multi_round([])
    with pytest.raises(ValueError, match="num_evaluations=0 must be >= 1"):
        type(lm)(folder, num_evaluations=0)
