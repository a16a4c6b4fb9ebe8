# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Instruction tuning: answers are the noisy region, and all before them is given."""

import pytest
import torch
from tiny_processor import DRESS, END, GOWN, PAD, A, make_processor, picture, pixels
from tiny_talks import assistant, make_config, say, show, user

from modeling_mdm import MDMForJointGeneration, modeling_mdm
from modeling_mdm.data.conversations import (
    LATE,
    ConversationCollator,
    place_images,
)

TALK = [
    user(show(picture(1)), say("a dress")),
    assistant(say("a gown")),
    user(say("a")),
    assistant(say("a dress")),
]


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def test_the_answer_is_the_noisy_region_and_all_before_it_is_given(processor):
    collate = ConversationCollator(processor, max_new_tokens=4)
    (batch,) = [collate([{"messages": TALK[:2], "seed": 0}])]
    assert batch["input_ids"].tolist() == [[A, DRESS, END, A, GOWN, END, PAD]]
    assert batch["text_given"].tolist() == [[True] * 3 + [False] * 4]
    assert batch["attention_mask"].tolist() == [[1] * 7]  # <pad> after <end> is learned, too
    assert batch["turn_ids"].tolist() == [[0] * 3 + [1] * 4]
    assert batch["image_given"].all() and batch["image_turn_ids"].tolist() == [[0]]
    torch.testing.assert_close(batch["pixel_values"][0, 0, 0], pixels(picture(1)))


def test_rows_are_padded_to_a_multiple_and_say_so(processor):
    plain = ConversationCollator(processor, 4)([{"messages": TALK[:2], "seed": 0}])
    longer = ConversationCollator(processor, 4, pad_to_multiple_of=8)
    batch = longer([{"messages": TALK[:2], "seed": 0}])
    assert batch["input_ids"].tolist() == [[*plain["input_ids"][0].tolist(), PAD]]
    assert batch["attention_mask"].tolist() == [[1] * 7 + [0]]
    assert longer([{"messages": TALK, "seed": 0}] * 2)["input_ids"].shape[1] % 8 == 0
    with pytest.raises(ValueError, match="pad_to_multiple_of=0 must be at least 1"):
        ConversationCollator(processor, 4, pad_to_multiple_of=0)


def test_every_answer_of_a_conversation_is_taught_in_time(processor):
    collate = ConversationCollator(processor, max_new_tokens=4)
    lengths = []
    for seed in range(20):
        batch = collate([{"messages": TALK, "seed": seed}])
        again = collate([{"messages": TALK, "seed": seed}])
        assert all(torch.equal(value, again[name]) for name, value in batch.items())
        # What comes after the answer is not there at all.
        assert batch["text_given"].int().diff().sum() == -1 and not batch["text_given"][0, -1]
        lengths.append(batch["input_ids"].shape[1])
    assert set(lengths) == {7, 12}


def test_most_words_can_be_noised_so_far_that_only_the_question_tells_them(processor):
    items = [{"messages": TALK, "seed": seed} for seed in range(400)]
    plain = ConversationCollator(processor, 4)(items)
    assert "times" not in plain  # the model draws them
    batch = ConversationCollator(processor, 4, late=0.5)(items)
    times = batch.pop("times")["text"]
    assert all(torch.equal(value, plain[name]) for name, value in batch.items())
    late = times[~times.isnan()]  # the model draws the others
    assert times.shape == (400,) and 0.43 < len(late) / 400 < 0.57
    assert LATE <= late.min() < LATE + 0.01 and 0.99 < late.max() <= 1
    always = ConversationCollator(processor, 4, late=1.0)(items[7:8])["times"]["text"]
    again = ConversationCollator(processor, 4, late=1.0)(items[7:8])["times"]["text"]
    assert torch.equal(always, again) and always >= LATE


def test_words_beside_a_picture_are_never_late(processor):
    """What the model draws for both together it draws: the words alone would be late."""
    drawn = [user(say("a")), assistant(say("a gown"), show(picture(1)))]
    alone = [user(say("a")), assistant(show(picture(1)))]
    items = [{"messages": talk, "seed": 1} for talk in (TALK, drawn, alone, TALK)]
    times = ConversationCollator(processor, 4, late=1.0)(items)["times"]["text"]
    assert times.isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("late", [-0.1, 1.1])
def test_a_share_of_late_times_lies_between_0_and_1(processor, late):
    with pytest.raises(ValueError, match=f"late={late} must"):
        ConversationCollator(processor, late=late)


def test_the_loss_is_taken_at_late_times(processor, monkeypatch):
    items = [{"messages": TALK, "seed": seed} for seed in range(4)]
    batch = ConversationCollator(processor, 4, late=1.0)(items)
    model = MDMForJointGeneration(make_config(processor)).train()
    seen = {}
    usual = modeling_mdm.noise_inputs

    def noise_inputs(network, encoded, drawn):
        seen.update(drawn.times)
        return usual(network, encoded, drawn)

    monkeypatch.setattr(modeling_mdm, "noise_inputs", noise_inputs)
    assert model(**batch).loss.isfinite()
    assert torch.equal(seen["text"], batch["times"]["text"]) and "image" in seen


def test_an_answer_is_plain_words_whatever_it_looks_like(processor):
    """As questions are: only the collator's own `<end>` is one, on any tokenizer."""
    tokenizer = processor.tokenizer
    typed = tokenizer("a <end>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert END not in typed
    default, tokenizer.split_special_tokens = tokenizer.split_special_tokens, False
    try:
        assert END in tokenizer("a <end>", add_special_tokens=False)["input_ids"]
        talk = [user(say("a dress")), assistant(say("a <end>"))]
        collate = ConversationCollator(processor, len(typed) + 1)
        batch = collate([{"messages": talk, "seed": 0}])
    finally:
        tokenizer.split_special_tokens = default
    assert batch["input_ids"][~batch["text_given"]].tolist() == [*typed, END]


def test_answers_of_all_kinds_in_one_batch(processor):
    talks = [
        TALK[:2],
        [user(say("a gown")), assistant(show(picture(2)))],
        [user(say("a")), assistant(say("a gown"), show(picture(3)))],
        [user(say("a gown"), show(picture(4)), show(picture(5))), assistant(say("a"))],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a gown"}],
    ]
    collate = ConversationCollator(processor, max_new_tokens=3)
    batch = collate([{"messages": talk, "seed": 0} for talk in talks])
    noisy_words = (batch["attention_mask"].bool() & ~batch["text_given"]).sum(1)
    assert noisy_words.tolist() == [3, 0, 3, 3, 3]
    present = batch["pixel_attention_mask"].flatten(2).any(-1)
    noisy = present & ~batch["image_given"].flatten(2).any(-1)
    assert present.sum(1).tolist() == [1, 1, 1, 2, 0]
    assert noisy.sum(1).tolist() == [0, 1, 1, 0, 0]
    torch.testing.assert_close(batch["pixel_values"][1, 0, 0], pixels(picture(2)))
    torch.testing.assert_close(batch["pixel_values"][2, 0, 0], pixels(picture(3)))
    assert batch["image_turn_ids"][:, 0].tolist() == [0, 0, 1, 0, 0]
    model = MDMForJointGeneration(make_config(processor)).train()
    loss = model(**batch).loss
    assert loss.isfinite()


def test_the_loss_is_on_answers_only(processor):
    batch = ConversationCollator(processor, 4)([{"messages": TALK[:2], "seed": 0}])
    model = MDMForJointGeneration(make_config(processor)).eval()
    out = model(**batch)
    assert out.loss_se_image == 0  # the picture is given
    shown = model(**{**batch, "text_given": torch.ones_like(batch["text_given"])})
    assert shown.loss_se == 0 and out.loss_se_text > 0


def test_pictures_beside_the_messages_are_placed_in_order():
    messages = [user({"type": "image", "text": None}, say("a")), assistant({"type": "image"})]
    one, two = picture(1), picture(2)
    placed = place_images(messages, [one, two])
    assert placed[0]["content"][0]["image"] is one and placed[1]["content"][0]["image"] is two
    assert "image" not in messages[1]["content"][0]
    with pytest.raises(ValueError, match="images has 1 pictures, fewer"):
        place_images(messages, [one])
    with pytest.raises(ValueError, match="images has 1 pictures more"):
        place_images(messages, [one, two, one])


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([user(say("a"))], "no answer of the assistant"),
        ([user(say("a")), assistant(say("a gown a gown"))], "more than max_new_tokens=3"),
        ([user(say("a")), assistant(show(picture()), show(picture()))], "has 2 pictures"),
    ],
)
def test_faults_of_conversations(processor, talk, message):
    with pytest.raises(ValueError, match=message):
        ConversationCollator(processor, 3)([{"messages": talk, "seed": 0}])
