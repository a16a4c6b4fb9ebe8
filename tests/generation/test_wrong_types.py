# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every public argument, given what it cannot be: an error names it, the value, and what to do.

And what only looks wrong is taken: NumPy's and torch's numbers are numbers.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_digits import make_processor
from tiny_model import make_model, tiny_config
from transformers import pipeline

from modeling_mdm import MDMConfig, MDMProcessor
from modeling_mdm.hub import JOINT_TASK

PICTURE = Image.linear_gradient("L").resize((8, 8))
NAN, INF = float("nan"), float("inf")
THING = SimpleNamespace(a=1)
NO_INTEGER = ["x", 2.5, True, NAN, [3], {"a": 3}, -1, 0, np.float32(2.5), torch.tensor(1.5)]
NO_NUMBER = ["x", True, NAN, INF, [1.0], THING, torch.ones(2)]
NO_FLAG = ["yes", 1, 0.0, [True], {"a": True}]
NO_NAME = [5, 2.5, True, ["text"], {"text": 1}, "something", np.ones(2)]
NO_DICT = [5, "x", [1]]
NO_PICTURE = [5, 2.5, True, {"image": PICTURE}, [5], [[PICTURE, "x", 2.5]], [{"image": PICTURE}]]
NO_TEXT = [5, 2.5, True, {"text": "a"}, b"a", [5], [["a"]], [b"a"], [True], PICTURE]
NO_SIZE = ["x", 2.5, True, NAN, -4, 0, 6, (8,), (8, "x"), (8, 8, 8), {"a": 8}, [8, None]]
NO_CHAT = [5, "hello", {"role": "user", "content": "a"}, [5], ["hello"], [[5]], [None], [["a"]]]
NO_CHAT += [
    [{"role": "user", "content": content}]
    for content in (5, {"type": "text"}, [5], ["a"], [{"type": "text", "text": 5}], [{"a": 1}])
]
TALK = [{"role": "user", "content": "one"}]


@pytest.fixture(scope="module")
def parts():
    processor = make_processor()
    model = make_model(
        torch.float32,
        vocab_size=len(processor.tokenizer),
        max_text_length=processor.max_text_length,
        num_classes=10,
    )
    return SimpleNamespace(
        model=model,
        processor=processor,
        joint=pipeline(JOINT_TASK, model=model, processor=processor),
    )


def generate(parts, **arguments):
    mode = {} if "class_labels" in arguments else {"generation_mode": "joint"}
    options = {"num_inference_steps": 1, "show_progress": False, **mode, **arguments}
    return parts.model.generate(**options)


def score(parts, **arguments):
    inputs = parts.processor(text="one", return_tensors="pt")
    options = {"content": "text", "num_evaluations": 1, **arguments}
    return parts.model.score(**{**inputs, **options})


def process(parts, **arguments):
    usual = {} if arguments.keys() & {"text", "images"} else {"text": "one"}
    if "max_new_tokens" in arguments:
        usual["generate"] = "text"
    if "image_mask" in arguments:
        usual["images"] = PICTURE
    return parts.processor(**{**usual, **arguments})


def chat(parts, **arguments):
    options = {"conversation": TALK, "tokenize": True, "add_generation_prompt": True}
    return parts.processor.apply_chat_template(**{**options, **arguments})


def joint(parts, **arguments):
    options = {"num_inference_steps": 1, "show_progress": False}
    return parts.joint(**{**options, **arguments})


def forward(parts, **arguments):
    inputs = parts.processor(text="one", images=PICTURE, return_tensors="pt")
    return parts.model(**{**inputs, **arguments})


def configure(parts, **arguments):
    return MDMConfig(**arguments)


def make_other_processor(parts, **arguments):
    own = parts.processor
    return MDMProcessor(own.image_processor, own.tokenizer, **arguments)


IDS = torch.ones(1, 3, dtype=torch.long)
PIXELS = torch.zeros(1, 1, 8, 8)
NO_TENSOR = [5, "x", [[1, 2]], {"a": 1}, np.ones((1, 3))]
WRONG = {
    (generate, "num_inference_steps"): [*NO_INTEGER, {"text": "x"}, {"audio": 3}],
    (generate, "guidance_scale"): [*NO_NUMBER, {"image": "x"}, {5: 1.0}],
    (generate, "joint_guidance_scale"): [*NO_NUMBER, {"image": None, "text": "x"}],
    (generate, "joint_overlap"): [*NO_NUMBER, -0.1, 1.5],
    (generate, "joint_lead"): [*NO_NUMBER, -0.1, 17.5],
    (generate, "num_restarts"): [value for value in NO_INTEGER if value != 0],
    (generate, "restart_log_snr"): [*NO_NUMBER, {"image": -9.5}, 8, {"audio": 0.0}],
    (generate, "guidance_window"): [*NO_NUMBER, (-1.0, -5.0), (1,), ("a", 2), {"text": [NAN, 1]}],
    (generate, "solver"): [5, True, "euler", ["ddim"], {"image": 5}],
    (generate, "keep"): [*NO_NUMBER, -1, 0, 2],
    **{
        (generate, name): NO_FLAG
        for name in (
            "use_cache",
            "compile",
            "cuda_graph",
            "show_progress",
            "output_trajectory",
            "output_selection",
        )
    },
    (generate, "return_dict_in_generate"): NO_FLAG,
    (generate, "num_return_sequences"): NO_INTEGER,
    (generate, "max_new_tokens"): NO_INTEGER,
    (generate, "image_size"): NO_SIZE,
    (generate, "generation_mode"): NO_NAME,
    (generate, "generation_config"): [5, "x", {"num_inference_steps": 8}, [1]],
    (generate, "generator"): [5, "x", [5], 2.5, {"a": 1}],
    (generate, "callback_on_step_end"): [5, "x", [print]],
    (generate, "streamer"): [5, "x", True],
    (generate, "cache"): [5, "x", {"a": 1}],
    **{
        (call, name): NO_TENSOR
        for call in (generate, score, forward)
        for name in ("input_ids", "pixel_values", "class_labels")
    },
    **{
        (call, name): [*NO_TENSOR, torch.ones(5, 7)]
        for call in (score, forward)
        for name in ("attention_mask", "text_given", "turn_ids")
    },
    **{
        (forward, name): [*NO_TENSOR, torch.ones(5, 7)]
        for name in ("image_given", "pixel_attention_mask", "image_turn_ids")
    },
    (score, "num_evaluations"): NO_INTEGER,
    (score, "levels"): NO_NAME,
    (score, "content"): NO_NAME,
    (score, "generator"): [5, "x", [torch.Generator()]],
    (score, "shared_noise"): NO_FLAG,
    (score, "pixel_std"): [*NO_NUMBER, 0, -0.1],
    (score, "pixel_vales"): [PIXELS],
    (process, "text"): NO_TEXT,
    (process, "images"): NO_PICTURE,
    (process, "generate"): NO_NAME,
    (process, "class_labels"): ["x", 2.5, True, {"a": 1}, ["x"], [2.5], [True], [[1, 2]], 10],
    (process, "image_mask"): ["x", 5, {"a": 1}, [["x"]], [[1], [1, 2]], np.full((8, 8), NAN)],
    (process, "max_new_tokens"): NO_INTEGER,
    (process, "image_size"): NO_SIZE,
    (process, "return_tensors"): ["tf", 5, True],
    (process, "padding"): ["all", 5, ["longest"], {"a": 1}],
    (process, "truncation"): ["all", 5, [True]],
    (process, "max_length"): NO_INTEGER,
    (process, "pad_to_multiple_of"): NO_INTEGER,
    (process, "padding_side"): ["middle", 5, ["left"]],
    (process, "text_kwargs"): NO_DICT,
    (process, "images_kwargs"): NO_DICT,
    (process, "videos"): [5],
    (process, "something"): [5],
    (chat, "conversation"): NO_CHAT,
    (chat, "chat_template"): [5, True, ["x"]],
    (chat, "generate"): NO_NAME,
    (chat, "max_new_tokens"): NO_INTEGER,
    (chat, "images"): [5, [5], {"a": PICTURE}],
    (chat, "image_size"): NO_SIZE,
    (chat, "processor_kwargs"): NO_DICT,
    (chat, "return_tensors"): ["tf", 5],
    (joint, "text"): [5, 2.5, True, {"words": "a"}, [5], [{"images": PICTURE}]],
    (joint, "images"): NO_PICTURE,
    (joint, "generate"): NO_NAME,
    (joint, "class_labels"): ["x", 2.5, True, {"a": 1}, [2.5]],
    (joint, "guidance_scale"): ["x"],
    (joint, "image_size"): ["x", 6],
    (joint, "max_new_tokens"): ["x", 0],
    (make_other_processor, "patch_size"): ["x", 2.5, True, 0, -4, None],
    (make_other_processor, "max_text_length"): ["x", 2.5, True, 0, None],
    (make_other_processor, "num_classes"): ["x", 2.5, True, -1],
    **{
        (configure, name): ["x", 2.5, True, NAN, -1, [3], {"a": 3}]
        for name, field in MDMConfig.__dataclass_fields__.items()
        if field.type is int and name not in vars(MDMConfig.__mro__[1])
    },
    **{
        (configure, name): ["x", True, NAN, -1.0, [1.0], None]
        for name, field in MDMConfig.__dataclass_fields__.items()
        if field.type is float and name not in vars(MDMConfig.__mro__[1])
    },
    **{(configure, name): [*NO_FLAG, None] for name in ("use_selection", "self_conditioning")},
    (configure, "use_mode_head"): [*NO_FLAG, None],
    (configure, "mixer"): [5, True, ["mamba2"], None, "lstm"],
    (configure, "kernel_backend"): [5, "cuda"],
    (configure, "image_scans"): [5, "x", ["a"], [1.5], [], [1, 1], [7]],
    (configure, "selection_keep"): [5, "x", ["a"], [], [0.0], [NAN]],
    (configure, "delta_limit"): [5, "x", (1.0,), (2.0, 1.0), (NAN, NAN)],
    (configure, "vq_config"): [5, "x", [1]],
    (configure, "eos_token_id"): ["x", 2.5, -1, [5, 10**9]],
}


@pytest.mark.parametrize(
    ("call", "name"), WRONG, ids=[f"{call.__name__}-{name}" for call, name in WRONG]
)
def test_what_an_argument_cannot_be_is_named(call, name, parts):
    for value in WRONG[call, name]:
        with pytest.raises((ValueError, TypeError)) as error:
            call(parts, **{name: value})
        said = str(error.value)
        of = {"input_ids": "input_ids|pixel_values", "return_tensors": "return_tensors"}.get(name)
        inside = ("content" if name == "conversation" else name, name)
        names = of or "|".join(map(re.escape, inside))
        assert re.search(names, said), (value, said)
        # Raw Python errors say neither; ours close with what to do.
        words = "use|pass|give|name|choose|leave|correct|remove|must|end with|list|change"
        words += r"|in \[0|at most|shares in|by pixel"
        assert re.search(words, said), (value, said)


TAKEN = {
    (generate, "num_inference_steps"): [np.int64(2), torch.tensor(2), {"text": np.int32(2)}],
    (generate, "guidance_scale"): [np.float32(2.0), np.int64(2), torch.tensor(2.0), 2],
    (generate, "joint_overlap"): [np.float64(0.5), 1, torch.tensor(0.5)],
    (generate, "joint_lead"): [np.float64(0.5), 2, 0, torch.tensor(2.0)],
    (generate, "guidance_window"): [
        np.array([-5, 1]),
        torch.tensor([-5.0, 1.0]),
        [-5, np.int64(1)],
    ],
    (generate, "num_restarts"): [np.int64(0)],
    (generate, "keep"): [np.float32(0.5), 1],
    (generate, "num_return_sequences"): [np.int64(2)],
    (generate, "max_new_tokens"): [np.int64(2), torch.tensor(2)],
    (generate, "image_size"): [np.int64(4), (np.int64(4), 8), np.array([4, 8]), [8, 4]],
    (generate, "show_progress"): [np.bool_(False)],
    (score, "num_evaluations"): [np.int64(1)],
    (score, "pixel_std"): [np.float32(0.1), 1, torch.tensor(0.1)],
    (process, "class_labels"): [np.int64(3), [np.int64(3)], torch.tensor([3]), np.array([3]), None],
    (process, "max_new_tokens"): [np.int64(3), torch.tensor(3)],
    (process, "image_size"): [np.int64(8), (np.int64(8), 8), np.array([8, 8])],
    (process, "max_length"): [np.int64(5)],
    (process, "text"): [np.str_("one"), ("one", None), np.array(["one", "two"])],
    (process, "images"): [PICTURE, [PICTURE, None], np.zeros((2, 8, 8, 1), np.uint8)],
    (process, "image_mask"): [PICTURE.point(lambda _: 1), np.ones((8, 8)), [[1] * 8] * 8],
    (chat, "images"): [[]],
    (chat, "max_new_tokens"): [np.int64(3)],
    (chat, "conversation"): [tuple(TALK), [TALK, TALK]],
    (make_other_processor, "patch_size"): [np.int64(4)],
    (configure, "vocab_size"): [np.int64(24), torch.tensor(24)],
    (configure, "kl_weight"): [np.float32(0.5), 1, torch.tensor(0.5), 0],
    (configure, "image_scans"): [np.array([1, 2]), (1, 2)],
    (configure, "selection_keep"): [[1, 0.5], np.array([1.0])],
    (configure, "use_selection"): [np.bool_(True)],
    (configure, "delta_limit"): [[0, 100]],
}


@pytest.mark.parametrize(
    ("call", "name"), TAKEN, ids=[f"{call.__name__}-{name}" for call, name in TAKEN]
)
def test_what_only_looks_wrong_is_taken(call, name, parts):
    for value in TAKEN[call, name]:
        call(parts, **{name: value})


def test_a_configuration_of_numpys_numbers_can_be_saved(tmp_path):
    config = tiny_config(vocab_size=np.int64(30), kl_weight=np.float32(0.5), image_scans=(1, 2))
    config.hidden_size = np.int64(32)
    config.save_pretrained(tmp_path)
    loaded = MDMConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() | {"image_scans": None} == config.to_dict() | {"image_scans": None}


# --- what the pipeline of joint generation is given first


def run(parts, *arguments, **options):
    options = {"num_inference_steps": 1, "show_progress": False, **options}
    options["generator"] = torch.Generator().manual_seed(0)
    return parts.joint(*arguments, **options)


def same(first, second):
    return first["text"] == second["text"] and first.get("prompt") == second.get("prompt")


def test_a_picture_or_a_dictionary_may_come_first(parts, tmp_path):
    PICTURE.save(tmp_path / "picture.png")
    (named,) = run(parts, images=PICTURE, generate="text")
    path = tmp_path / "picture.png"
    for first in (PICTURE, path, np.asarray(PICTURE), {"images": PICTURE}, {"images": str(path)}):
        (sample,) = run(parts, first, generate="text")
        assert same(sample, named)
    (sample,) = run(parts, {"images": PICTURE, "generate": "text"})
    assert same(sample, named)
    (both,) = run(parts, "one", PICTURE, generate="text")
    (sample,) = run(parts, {"text": "one", "images": PICTURE}, generate="text")
    assert same(sample, both) and sample["prompt"] == "one"


def test_several_pictures_or_classes_give_several_items(parts):
    stack = np.stack([np.asarray(PICTURE)] * 3)[..., None]
    for first in (stack, torch.zeros(3, 1, 8, 8), [PICTURE] * 3, {"images": [PICTURE] * 3}):
        assert len(run(parts, first, generate="text")) == 3
    assert len(run(parts, images=stack, generate="text")) == 3
    for labels in (np.array([1, 2]), torch.tensor([1, 2])):
        assert len(run(parts, class_labels=labels)) == 2
    assert len(run(parts, np.array(["one", "two", "a four"]), generate="text")) == 3


def test_what_is_passed_twice_is_refused(parts):
    with pytest.raises(ValueError, match=r"\['images'\] are named in a dictionary and beside it"):
        run(parts, {"images": PICTURE}, images=PICTURE)
    with pytest.raises(ValueError, match="pass words there, and pictures as images="):
        run(parts, PICTURE, images=PICTURE)
