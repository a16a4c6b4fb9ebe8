# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`generation_mode` says what is to be written; `generate` and `--write` are other names of it."""

import numpy as np
import pytest
import torch
from tiny_digits import make_processor

from mdm_cli.main import make_parser

CHAT = [{"role": "user", "content": "a four"}]
PICTURE = np.zeros((8, 8), np.uint8)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def asked(processor, **options):
    """Model inputs of a conversation that awaits a reply."""
    return processor.apply_chat_template(
        CHAT,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        **options,
    )


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("mode", [None, "image", "text", "joint"])
@pytest.mark.parametrize("given", [{"text": "a four"}, {"images": PICTURE}, {"class_labels": 3}])
def test_both_names_give_the_same_inputs(processor, mode, given):
    if mode is None and "class_labels" in given:
        given = {**given, "text": "a four"}
    ours = processor(**given, generation_mode=mode, return_tensors="pt")
    assert_same(ours, processor(**given, generate=mode, return_tensors="pt"))


def test_the_third_argument_by_position_says_what_is_written(processor):
    ours = processor(None, ["a four"], "image", return_tensors="pt")
    assert_same(ours, processor(text=["a four"], generation_mode="image", return_tensors="pt"))
    assert not ours["image_given"].any()


@pytest.mark.parametrize("mode", ["image", "text", "joint"])
def test_a_chat_takes_both_names_everywhere(processor, mode):
    ours = asked(processor, generation_mode=mode)
    assert ("pixel_values" in ours) == (mode != "text")
    assert_same(ours, asked(processor, generate=mode))
    for name in ("generation_mode", "generate"):
        assert_same(ours, asked(processor, processor_kwargs={name: mode}))


def test_both_names_at_once_are_refused(processor):
    message = "generation_mode='{}' and generate='{}' are two names of one argument"
    with pytest.raises(ValueError, match=message.format("image", "text")):
        processor(text="a four", generation_mode="image", generate="text")
    with pytest.raises(ValueError, match=message.format("text", "text")):
        processor(text="a four", generation_mode="text", generate="text")
    with pytest.raises(ValueError, match=message.format("joint", "image")):
        asked(processor, generation_mode="joint", processor_kwargs={"generate": "image"})


@pytest.mark.parametrize("name", ["generation_mode", "generate"])
@pytest.mark.parametrize("value", ["video", "auto", 3, ["text"], True, b"text"])
def test_an_unknown_value_is_refused_under_the_name_that_was_passed(processor, name, value):
    with pytest.raises(ValueError, match=f"^{name}=.* is unknown; use None, 'image', 'text'"):
        processor(text="a four", **{name: value})
    with pytest.raises(ValueError, match=f"^{name}=.* is unknown; use None, 'image', 'text'"):
        asked(processor, **{name: value})


# --- the command line


def parsed(*words):
    return make_parser().parse_args([words[0], "--checkpoint", "x", *words[1:]])


@pytest.mark.parametrize(
    ("command", "modes"),
    [("generate", ("image", "text", "joint")), ("chat", ("image", "text", "joint", "auto"))],
)
def test_both_options_of_the_command_line_are_one(command, modes, capsys):
    for mode in modes:
        ours = parsed(command, "--generation_mode", mode)
        assert ours.generation_mode == mode
        assert ours == parsed(command, "--write", mode)
    for refused in (
        ("--write", "text", "--generation_mode", "text"),
        ("--generation_mode", "text", "--write", "image"),
    ):
        with pytest.raises(SystemExit) as ended:
            parsed(command, *refused)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and "--generation_mode" in said and "--write" in said
        assert "not allowed with argument" in said


def test_what_is_written_must_be_named_but_in_a_chat(capsys):
    with pytest.raises(SystemExit):
        parsed("generate")
    assert "--generation_mode --write is required" in capsys.readouterr().err
    assert parsed("chat").generation_mode is None
