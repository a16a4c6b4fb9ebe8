# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""An MDM as lmms-eval's model, by its own classes where it is installed."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from libraries import requirements
from tiny_digits import make_config, make_processor
from tiny_vision_sets import FILES

from modeling_mdm.evaluation.tables.processes import item_noise
from modeling_mdm.evaluation.tables.samples import cut_at
from modeling_mdm.evaluation.tables.suite import manifest
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.image_processing_pil_mdm import open_picture

ROOT = Path(__file__).resolve().parents[2]
REASON = 'needs lmms-eval: pip install "modeling-mdm[eval-suite]"'


def test_nothing_of_it_is_imported_unasked(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(ImportError):
        manifest()
    assert "modeling_mdm.evaluation.tables.multimodal_model" not in sys.modules


def test_the_extra_asks_for_the_file_locks_that_lmms_eval_reaches_into():
    """Its evaluator imports `filelock._api`, which 4.2.12 has and 4.3.1 has not."""
    found = {one.name: one.specifier for one in requirements(("eval-suite",))}
    assert "4.2.12" in found["filelock"] and "4.3.1" not in found["filelock"]
    assert "0.7.3" in found["lmms-eval"] and "0.8" not in found["lmms-eval"]


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
    from lmms_eval.api.instance import unwrap_generation_output

    lm = adapter(folder)
    choices = ("a one", " a seven", "a two")
    asked = [request(lmms_eval, "loglikelihood", "<image>\nWhat?", c, 1) for c in choices]
    asked.append(request(lmms_eval, "loglikelihood", "What?", lambda row: row["answer"], 1))
    given = [unwrap_generation_output(one) for one in lm.loglikelihood(asked)]
    found = [pair for pair, _ in given]  # as lmms-eval's evaluator takes them
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
    for wrong in ("auto", "auto:4", "0"):
        with pytest.raises(ValueError, match=f"batch_size='{wrong}' must be a whole number"):
            type(lm)(folder, batch_size=wrong)


ASKED = """
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_visual: !function rows.see
doc_to_text: !function rows.ask
doc_to_target: {target}
"""
WRITTEN = """
generation_kwargs: {max_new_tokens: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOSEN = """
doc_to_choice: [a bag, a sandal]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROWS = """
def see(row):
    return [row["image"].convert("RGB")]


def ask(row, lmms_eval_specific_kwargs=None):
    return row["question"]
"""


def write_tasks(folder):
    """Two tasks in lmms-eval's own format, whose rows are pictures that are shipped."""
    import datasets

    bag, sandal = (next(one for one in FILES if word in one.stem) for word in ("bag", "sandal"))
    rows = {"image": [str(bag), str(sandal), str(bag)], "question": ["What is it?"] * 3}
    rows |= {"answer": ["a bag", "a sandal", "a bag"], "right": [0, 1, 0]}
    set_ = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    set_.to_parquet(folder / "rows.parquet")
    (folder / "rows.py").write_text(ROWS)
    for name, kind, target, rest in (
        ("written", "generate_until", "answer", WRITTEN),
        ("chosen", "multiple_choice", "right", CHOSEN),
    ):
        asked = ASKED.format(name=name, file=folder / "rows.parquet", kind=kind, target=target)
        (folder / f"{name}.yaml").write_text(asked + rest)


@pytest.mark.slow
def test_lmms_evals_own_command_measures_a_shipped_checkpoint(lmms_eval, tmp_path):
    """It is found by the entry point of `setup.py`; the command's exit code says nothing."""
    write_tasks(tmp_path)
    make = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", tmp_path]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    command = [sys.executable, "-m", "lmms_eval", "--model", "mdm", "--tasks", "written,chosen"]
    checkpoint = ROOT / "examples" / "checkpoints" / "mdm-fashion"
    command += ["--model_args", f"pretrained={checkpoint},num_inference_steps=4,num_evaluations=4"]
    command += ["--include_path", tmp_path, "--limit", "2", "--log_samples"]
    command += ["--output_path", tmp_path / "out", "--verbosity", "DEBUG"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, check=True)
    (found,) = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(found.read_text())["results"]
    samples = {
        name: [json.loads(line) for line in file.read_text().splitlines()]
        for name in ("written", "chosen")
        for file in (tmp_path / "out").rglob(f"*_samples_{name}.jsonl")
    }
    assert all(len(rows) == 2 for rows in samples.values()) and len(samples) == 2
    for row in samples["written"]:
        assert row["exact_match"] == float(row["filtered_resps"] == row["target"])
    right = [one["exact_match"] for one in samples["written"]]
    assert results["written"]["exact_match,none"] == sum(right) / 2
    for row in samples["chosen"]:
        losses = [float(loss) for loss, _ in row["filtered_resps"]]
        likeliest = losses.index(min(losses))
        assert len(losses) == 2 and row["acc"] == float(likeliest == int(row["target"]))
    right = [one["acc"] for one in samples["chosen"]]
    assert results["chosen"]["acc,none"] == sum(right) / 2
