# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A batch of conversations is what its items are alone, and costs few calls of the processor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_processor import PAD, make_processor, picture, pixels
from tiny_talks import assistant, say, show, user

from modeling_mdm.data.conversations import ConversationCollator, stack_inputs

PROCESSOR = make_processor()
SYSTEM = {"role": "system", "content": "a photo"}
ANSWERS = {
    "text": [say("a gown")],
    "image": [show(picture(7))],
    "joint": [say("a"), show(picture(8, (5, 12)))],
}


def question(number, words="a dress"):
    return user(*(show(picture(seed)) for seed in range(number)), say(words))


def talk(kind, number=0, words="a dress", *before):
    return [*before, question(number, words), assistant(*ANSWERS[kind])]


def long_talk(kind, number):
    """Show pictures in a question, in an answer before it, and in one after it."""
    return [SYSTEM, *talk("image", 1), *talk("text", 0), *talk(kind, number), *talk("joint", 2)]


TALKS = [
    talk("text"),
    talk("image", 0, "it"),
    talk("joint", 1),
    talk("image", 2, "what is it", SYSTEM),
    talk("text", 3, "a photo of a gown"),
    talk("joint"),
    talk("image", 1),
    long_talk("joint", 2),
    long_talk("text", 0),
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a gown"}],
]


def items_of(talks):
    return [{"messages": messages, "seed": seed} for seed, messages in enumerate(talks)]


def one_by_one(collate, items):
    """Make batches of one and stack them."""
    rows = [collate([item]) for item in items]
    times = [row.pop("times")["text"] for row in rows if "times" in row]
    batch = stack_inputs(rows, PAD, collate.pad_to_multiple_of)
    return batch | ({"times": torch.cat(times)} if times else {})


def check_equal(batch, expected):
    batch = dict(batch)
    if "times" in batch:
        batch["times"] = batch["times"]["text"]
    assert batch.keys() == expected.keys()
    for name, value in batch.items():
        assert value.dtype == expected[name].dtype, name
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True)


@given(st.lists(st.sampled_from(TALKS), min_size=1, max_size=6), st.sampled_from([3, 4, 10]))
def test_a_batch_is_its_items_one_by_one(talks, max_new_tokens):
    collate = ConversationCollator(PROCESSOR, max_new_tokens, pad_to_multiple_of=4)
    check_equal(collate(items_of(talks)), one_by_one(collate, items_of(talks)))


def test_a_batch_of_all_kinds_is_its_items_one_by_one():
    collate = ConversationCollator(PROCESSOR, 5, late=0.7)
    items = [{"messages": talk, "seed": seed} for seed in range(9) for talk in TALKS]
    batch = collate(items)
    assert len(batch["times"]["text"].unique()) > 3
    check_equal(batch, one_by_one(collate, items))


def test_the_picture_to_be_written_follows_those_that_its_own_row_shows():
    batch = ConversationCollator(PROCESSOR, 3)(
        items_of([talk("image", number) for number in (2, 0, 1)])
    )
    written = ~batch["image_given"].flatten(2).any(-1)
    assert written.tolist() == [[False, False, True], [True, False, False], [False, True, False]]
    present = batch["pixel_attention_mask"].flatten(2).all(-1)
    assert present.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert batch["image_turn_ids"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
    for row, place in enumerate((2, 0, 1)):
        torch.testing.assert_close(batch["pixel_values"][row, place, 0], pixels(picture(7)))
    torch.testing.assert_close(batch["pixel_values"][2, 0, 0], pixels(picture(0)))
    assert not batch["pixel_values"][1, 1:].any() and not batch["pixel_values"][2, 2].any()


def test_a_tokenizer_that_pads_at_the_left_changes_nothing(monkeypatch):
    collate = ConversationCollator(PROCESSOR, 5)
    expected = one_by_one(collate, items_of(TALKS))
    monkeypatch.setitem(PROCESSOR.tokenizer.init_kwargs, "padding_side", "left")
    check_equal(collate(items_of(TALKS)), expected)


@pytest.mark.parametrize("copies", [1, 5])
def test_a_batch_costs_a_call_for_each_kind_of_answer(monkeypatch, copies):
    calls = {"preprocess": 0, "apply_chat_template": 0}

    def count(kind, name):
        usual = getattr(kind, name)

        def counted(*args, **kwargs):
            calls[name] += 1
            return usual(*args, **kwargs)

        monkeypatch.setattr(kind, name, counted)

    count(type(PROCESSOR.image_processor), "preprocess")
    count(type(PROCESSOR), "apply_chat_template")
    ConversationCollator(PROCESSOR, 4)(items_of(TALKS * copies))
    assert calls["apply_chat_template"] == 3
    assert 1 <= calls["preprocess"] <= 4  # the given pictures of each kind, and the written ones


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([question(0), assistant(say("a gown a gown"))], "'a gown a gown' has 5 tokens"),
        ([question(0), assistant(show(picture()), show(picture()))], "an answer has 2 pictures"),
        ([assistant(say("a"))], r"has the roles \[\]"),
        ([question(0), question(1), assistant(say("a"))], r"\['user', 'user'\]"),
        ([user({"type": "image", "image": "nowhere.png"}), assistant(say("a"))], "nowhere.png"),
        ([question(0), assistant({"type": "image", "image": "nowhere.png"})], "nowhere.png"),
        ([question(0)], "no answer of the assistant"),
    ],
)
def test_one_bad_conversation_of_a_batch_is_refused_as_it_is_alone(bad, message):
    collate = ConversationCollator(PROCESSOR, 4)
    with pytest.raises(ValueError, match=message) as alone:
        collate(items_of([bad]))
    with pytest.raises(ValueError, match=message) as among_others:
        collate(items_of([*TALKS, bad, *TALKS]))
    assert str(alone.value) == str(among_others.value)


def test_of_two_bad_conversations_the_first_is_named():
    too_long = [question(0), assistant(say("a gown a gown"))]
    collate = ConversationCollator(PROCESSOR, 4)
    with pytest.raises(ValueError, match="has 5 tokens"):
        collate(items_of([TALKS[0], too_long, [question(0)]]))
    with pytest.raises(ValueError, match="no answer of the assistant"):
        collate(items_of([TALKS[0], [question(0)], too_long]))


def test_an_answer_whose_picture_is_none_is_refused():
    missing = {"messages": [question(0), assistant({"type": "image"})], "images": [None], "seed": 0}
    with pytest.raises(ValueError, match="None for its picture"):
        ConversationCollator(PROCESSOR, 4)([*items_of(TALKS), missing])
