# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations: roles, words and pictures become turns, and what generation makes of them."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_processor import (
    DRESS,
    END,
    GOWN,
    MASK,
    PAD,
    ROOT,
    A,
    make_processor,
    picture,
    pixels,
    word,
)
from tiny_talks import QUESTION, TALK, assistant, make_model, read, say, short_run, user

from modeling_mdm import MDMProcessor
from modeling_mdm.processor.chat import CHAT_TEMPLATE


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def test_a_conversation_as_text(processor):
    shown = processor.apply_chat_template(TALK)
    assert shown == "a\n<image> what is it<end>a gown<end>a photo<image><image><end>"
    assert processor.apply_chat_template([TALK, QUESTION])[1] == "<image>a dress<end>"


def test_a_question_is_what_the_processor_makes_of_it(processor):
    for generate in ("text", "joint"):
        expected = processor(
            text=["a dress"], images=[picture(1)], generate=generate, return_tensors="pt"
        )
        found = read(processor, QUESTION, add_generation_prompt=True, generate=generate)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
            assert found[name].dtype == value.dtype


@dataclasses.dataclass
class Message:
    role: str
    content: object
    tool_calls: object = None


class Part:
    """As pydantic's models: it gives a dictionary when it is asked."""

    def __init__(self, **values):
        self.values = values

    def model_dump(self):
        return dict(self.values)


@pytest.mark.parametrize("tokenize", [False, True])
def test_messages_may_be_objects(processor, tokenize):
    """What clients of servers hand over: dataclasses and pydantic's models."""
    plain = [{"role": "user", "content": [{"type": "text", "text": "one two"}]}]
    objects = [Message("user", [Part(type="text", text="one two")])]
    asks = {"tokenize": tokenize, "add_generation_prompt": True}
    assert processor.apply_chat_template(objects, **asks) == processor.apply_chat_template(
        plain, **asks
    )


def test_every_turn_has_its_number(processor):
    inputs = read(processor, TALK)
    newline = processor.tokenizer("\n", add_special_tokens=False)["input_ids"]
    first = [
        A,
        *newline,
        *processor.tokenizer(" what is it", add_special_tokens=False)["input_ids"],
    ]
    second, third = [A, GOWN], [A, word(" photo")]
    row = [*first, END, *second, END, *third, END]
    assert inputs["input_ids"].tolist() == [row]
    turns = [0] * (len(first) + 1) + [1] * 3 + [2] * 3
    assert inputs["turn_ids"].tolist() == [turns]
    assert inputs["text_given"].all() and inputs["attention_mask"].all()
    assert inputs["image_turn_ids"].tolist() == [[0, 2, 2]]
    assert inputs["image_given"].all() and "pixel_attention_mask" not in inputs
    for place, number in enumerate((1, 2, 3)):
        torch.testing.assert_close(inputs["pixel_values"][0, place, 0], pixels(picture(number)))


def test_a_batch_of_unequal_conversations(processor):
    inputs = read(processor, [TALK, QUESTION], add_generation_prompt=True, max_new_tokens=2)
    alone = [
        read(processor, talk, add_generation_prompt=True, max_new_tokens=2)
        for talk in (TALK, QUESTION)
    ]
    for row, single in enumerate(alone):
        length = single["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask", "text_given", "turn_ids"):
            assert torch.equal(inputs[name][row, :length], single[name][0]), name
    assert inputs["input_ids"][1].tolist()[:5] == [A, DRESS, END, MASK, MASK]
    assert set(inputs["input_ids"][1].tolist()[5:]) == {PAD}
    assert not inputs["attention_mask"][1, 5:].any()
    assert inputs["turn_ids"][0, -2:].tolist() == [3, 3]
    assert inputs["image_turn_ids"].tolist() == [[0, 2, 2], [0, 0, 0]]
    present = inputs["pixel_attention_mask"].flatten(2).float().mean(-1)
    assert present.tolist() == [[1, 1, 1], [1, 0, 0]]
    torch.testing.assert_close(inputs["pixel_values"][1, 0, 0], pixels(picture(1)))


@pytest.mark.parametrize(
    ("talk", "generate", "turns"),
    [
        ([user(say("a dress"))], "image", [[0]]),  # as in processor(text=..., generate="image")
        ([user(say("a dress"))], "joint", [[1]]),
        (QUESTION, "image", [[0, 1]]),
        (TALK, "image", [[0, 2, 2, 3]]),
    ],
)
def test_a_picture_in_the_reply(processor, talk, generate, turns):
    inputs = read(processor, talk, add_generation_prompt=True, generate=generate)
    found = inputs.get("image_turn_ids", torch.zeros(1, 1, dtype=torch.long))
    assert found.tolist() == turns
    given = inputs["image_given"].reshape(1, len(turns[0]), -1)
    assert given.all(-1).tolist() == [[True] * (len(turns[0]) - 1) + [False]]
    assert not given[0, -1].any()
    writes_words = not inputs["text_given"].all()
    assert writes_words == (generate == "joint")


def test_the_last_message_is_continued(processor):
    talk = [*QUESTION, assistant(say("a gown"))]
    inputs = read(processor, talk, continue_final_message=True, max_new_tokens=3)
    assert inputs["input_ids"].tolist() == [[A, DRESS, END, A, GOWN, MASK, MASK, MASK]]
    assert inputs["text_given"].tolist() == [[True] * 5 + [False] * 3]
    assert inputs["turn_ids"].tolist() == [[0] * 3 + [1] * 5]


def test_special_tokens_in_messages_are_words(processor):
    typed = "a<end> <image><mask><pad>"
    inputs = read(processor, [user(say(typed))])
    words = processor.tokenizer(typed, add_special_tokens=False)["input_ids"]
    assert inputs["input_ids"].tolist() == [[*words, END]]
    assert "pixel_values" not in inputs


def test_words_of_the_assistant_are_marked(processor):
    talk = [*TALK, assistant(say("a"))]
    inputs = read(processor, [talk, QUESTION], return_assistant_tokens_mask=True)
    spoken = inputs["input_ids"][inputs["assistant_masks"].bool()].tolist()
    assert spoken == [A, GOWN, END, A, END]


@pytest.mark.parametrize(
    ("talk", "asks", "expected"),
    [
        (QUESTION, {"add_generation_prompt": True}, [0, 0, 0, 1, 1]),
        ([*QUESTION, assistant(say("a"))], {"continue_final_message": True}, [0, 0, 0, 1, 1, 1]),
        (QUESTION, {"continue_final_message": True}, [0, 0, 0, 0]),  # the user goes on
    ],
)
def test_words_of_a_region_are_those_of_who_writes_it(processor, talk, asks, expected):
    options = {"generate": "text", "max_new_tokens": 2, "return_assistant_tokens_mask": True}
    inputs = read(processor, talk, **asks, **options)
    assert inputs["input_ids"][0, -2:].tolist() == [MASK, MASK]
    assert inputs["assistant_masks"].tolist() == [expected]


def test_pictures_may_come_from_files_or_beside_the_messages(processor, tmp_path):
    expected = read(processor, QUESTION)["pixel_values"]
    picture(1).save(tmp_path / "a.png")
    by_path = [user({"type": "image", "path": str(tmp_path / "a.png")}, say("a dress"))]
    assert torch.equal(read(processor, by_path)["pixel_values"], expected)
    beside = [user({"type": "image"}, say("a dress"))]
    found = read(processor, beside, processor_kwargs={"images": [picture(1)]})
    assert torch.equal(found["pixel_values"], expected)
    found = read(processor, [beside, beside], images=[[picture(1)], [picture(2)]])
    assert torch.equal(found["pixel_values"][:1], expected)
    assert not torch.equal(found["pixel_values"][1:], expected)


def test_forms_of_the_result(processor):
    ids = processor.apply_chat_template(QUESTION, tokenize=True)
    assert ids == [[A, DRESS, END]]
    as_lists = processor.apply_chat_template(QUESTION, tokenize=True, return_dict=True)
    assert as_lists["input_ids"] == ids
    arrays = processor.apply_chat_template(
        QUESTION, tokenize=True, return_dict=True, return_tensors="np"
    )
    assert isinstance(arrays["pixel_values"], np.ndarray)


def test_a_template_of_ones_own_is_followed(processor):
    own = "{% for m in messages %}{{ m.content[0].text }}{{ suffix }}{{ eos_token }}{% endfor %}"
    inputs = read(processor, [user(say("a"))], chat_template=own, suffix=" gown")
    assert inputs["input_ids"].tolist() == [[A, GOWN, END]]


def test_the_template_is_saved_beside_the_processor(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == processor.chat_template
    again = MDMProcessor.from_pretrained(tmp_path)
    assert again.apply_chat_template(TALK) == processor.apply_chat_template(TALK)
    own = make_processor(chat_template="{{ messages[0].content }}")
    own.save_pretrained(tmp_path)
    assert MDMProcessor.from_pretrained(tmp_path).chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("talk", "kwargs", "message"),
    [
        ([{"role": "tool", "content": "a"}], {}, r"\['tool'\]"),
        ([assistant(say("a"))], {}, "start with user"),
        ([user(say("a")), user(say("a"))], {}, "alternate"),
        ([user(say("a")), {"role": "system", "content": "a"}], {}, "alternate"),
        ([{"role": "system", "content": "a"}], {}, "start with user"),
        ([*QUESTION, assistant(say("a"))], {"add_generation_prompt": True}, "ends with"),
        ([user({"type": "video"})], {}, "content has .*video"),
        ([user("a")], {}, "content has 'a'"),
        ([user({"type": "image"})], {}, "shows 1 pictures and 0 were"),
        (QUESTION, {"images": [picture(), picture()]}, "shows 1 pictures and 2 were"),
        (QUESTION, {"generate": "sound", "add_generation_prompt": True}, "generate='sound'"),
        (QUESTION, {"generate": "text"}, "add_generation_prompt=True"),
        (QUESTION, {"max_new_tokens": 0, "add_generation_prompt": True}, "max_new_tokens=0"),
        (
            QUESTION,
            {"max_new_tokens": 2, "generate": "image", "add_generation_prompt": True},
            "generation_mode='image' opens none",
        ),
        (QUESTION, {"padding": "max_length"}, "padding='max_length'"),
        (QUESTION, {"processor_kwargs": {"truncate": True}}, r"\['truncate'\]"),
    ],
)
def test_faults(processor, talk, kwargs, message):
    with pytest.raises(ValueError, match=message):
        read(processor, talk, **kwargs)


@pytest.fixture(scope="module")
def model(processor):
    return make_model(processor)


@pytest.mark.parametrize("mode", ["text", "image", "joint"])
def test_a_reply_is_the_same_whoever_opens_its_region(processor, model, mode):
    length = {} if mode == "image" else {"max_new_tokens": 4}
    here = read(processor, TALK, add_generation_prompt=True, generate=mode, **length)
    there = read(processor, TALK, add_generation_prompt=True)
    first = short_run(model, here)
    second = short_run(model, there, generation_mode=mode, **length)
    for name in ("sequences", "images"):
        ours, theirs = getattr(first, name), getattr(second, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    samples = [processor.post_process(first, here), processor.post_process(second, there)]
    assert samples[0][0].text == samples[1][0].text
    assert (samples[0][0].text is None) == (mode == "image")


def test_a_reply_does_not_depend_on_the_rest_of_the_batch(processor, model):
    options = {"add_generation_prompt": True, "max_new_tokens": 4}
    batch = read(processor, [QUESTION, TALK], **options)
    alone = read(processor, QUESTION, **options)
    (_, length), pictures = alone["input_ids"].shape, batch["pixel_values"].shape[1]
    shapes = {"text": tuple(batch["input_ids"].shape), "image": (2, 4 * pictures)}
    draw = torch.Generator().manual_seed(3)
    noise = {g: torch.randn(*shape, 4, generator=draw) for g, shape in shapes.items()}
    shorter = {"text": noise["text"][:1, :length], "image": noise["image"][:1, :4]}
    times = {g: torch.full((2,), 0.5) for g in noise}

    def logits(inputs, noise):
        rows = len(inputs["input_ids"])
        sources = {
            "times": {g: value[:rows] for g, value in times.items()},
            "noise": noise,
            "posterior_noise": {g: torch.zeros_like(value) for g, value in noise.items()},
        }
        with torch.no_grad():
            return model(**inputs, **sources, return_loss=False).logits[:1, :length]

    torch.testing.assert_close(logits(batch, noise), logits(alone, shorter), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("folder", ["processing/mdm-digits", "examples/checkpoints/mdm-fashion"])
def test_shipped_folders_hold_the_template(folder):
    assert (ROOT / folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE
