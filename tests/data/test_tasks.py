# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks as masks: what the collator gives in training is what generation will ask for."""

import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_digits import CAPTIONS, MAX_TEXT_LENGTH, make_config, make_processor

from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.tasks import (
    TASKS,
    MDMDataCollator,
    SeededItems,
    TaskMixture,
    draw_hidden_words,
    draw_prefix,
    draw_region,
)
from modeling_mdm.modeling_mdm import MDMForJointGeneration

MASKS = ("attention_mask", "text_given", "turn_ids", "image_given", "pixel_attention_mask")


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def items():
    dataset = SeededItems(load_training_data("digits", captions=CAPTIONS), seed=0)
    found = [dataset[i] for i in range(16)]
    for item, other in zip(found, found[1:] + found[:1], strict=True):
        item["prompt"] = other["text"]
    return found


def collate_as(task, processor, items):
    return MDMDataCollator(processor, TaskMixture({task: 1.0}))(items)


# What a user passes for each task; the masks of training must be those of that call.
CALLS = {
    "joint": {"generate": "joint"},
    "class_to_joint": {"generate": "joint", "class_labels": "label"},
    "prompt_to_joint": {"generate": "joint", "text": "prompt"},
    "text_to_image": {"generate": "image", "text": "text"},
    "class_to_image": {"generate": "image", "class_labels": "label"},
    "image": {"generate": "image"},
    "captioning": {"generate": "text", "images": "image"},
    "question_answering": {"generate": "text", "images": "image", "text": "prompt"},
    "text_to_text": {"generate": "text", "text": "prompt"},
    "text": {"generate": "text"},
}


@pytest.mark.parametrize("task", CALLS)
def test_the_masks_are_those_of_a_call_that_generates(task, processor, items):
    batch = collate_as(task, processor, items)
    call = {k: v if k == "generate" else [i[v] for i in items] for k, v in CALLS[task].items()}
    if len(call) == 1:
        call["class_labels"] = [None] * len(items)  # from nothing, but 16 times
    expected = processor(**call, padding="max_length", return_tensors="pt")
    valid = {"text": batch["attention_mask"], "image": batch["pixel_attention_mask"]}
    if "input_ids" not in expected:
        assert not valid["text"].any()
    else:
        assert torch.equal(valid["text"], expected["attention_mask"])
        real = valid["text"].bool()
        assert torch.equal(batch["text_given"][real], expected["text_given"][real])
        turns = [b.get("turn_ids", torch.zeros_like(real.long())) for b in (batch, expected)]
        assert torch.equal(turns[0][real], turns[1][real])
        known = real & batch["text_given"]
        assert torch.equal(batch["input_ids"][known], expected["input_ids"][known])
    if "pixel_values" not in expected:
        assert not valid["image"].any()
    else:
        assert valid["image"].all()
        assert torch.equal(batch["image_given"], expected["image_given"])
        turns = [b.get("image_turn_ids", torch.zeros(16, 1).long()) for b in (batch, expected)]
        assert torch.equal(*turns)
        known = expected["image_given"][:, None]
        assert torch.equal(batch["pixel_values"][known], expected["pixel_values"][known])
    labels = expected.get("class_labels", torch.full((16,), -1))
    assert torch.equal(batch["class_labels"], labels)


def test_a_text_to_be_written_is_words_then_end_then_padding_words(processor, items):
    batch = collate_as("joint", processor, items)
    tokenizer = processor.tokenizer
    for item, row in zip(items, batch["input_ids"].tolist(), strict=True):
        words = tokenizer(item["text"], add_special_tokens=False)["input_ids"]
        padding = MAX_TEXT_LENGTH - len(words) - 1
        assert row == [*words, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding]
    assert batch["attention_mask"].all() and not batch["text_given"].any()


@pytest.mark.parametrize("task", ["infill", "infill_without_image"])
def test_infilling_hides_words_but_neither_end_nor_padding(task, processor, items):
    batch = collate_as(task, processor, items)
    real = batch["attention_mask"].bool()
    hidden = real & ~batch["text_given"]
    assert hidden.any(dim=1).all()
    assert not (hidden & (batch["input_ids"] == processor.tokenizer.eos_token_id)).any()
    assert not (hidden & (batch["input_ids"] == processor.tokenizer.pad_token_id)).any()
    assert (batch["input_ids"] == processor.tokenizer.mask_token_id).sum() == 0  # the targets
    given_everywhere = collate_as("text_to_image", processor, items)
    assert torch.equal(batch["input_ids"], given_everywhere["input_ids"])
    assert torch.equal(batch["attention_mask"], given_everywhere["attention_mask"])
    assert batch["pixel_attention_mask"].all() == (task == "infill")
    assert batch["image_given"].all() == (task == "infill")


def test_a_prefix_is_given_and_what_follows_is_written_to_the_end_of_the_region(processor, items):
    batch = collate_as("prefix_to_joint", processor, items)
    whole = collate_as("joint", processor, items)
    assert torch.equal(batch["input_ids"], whole["input_ids"])  # the targets
    assert batch["attention_mask"].all() and not batch["image_given"].any()
    lengths = []
    for item, known in zip(items, batch["text_given"], strict=True):
        words = len(processor.tokenizer(item["text"], add_special_tokens=False)["input_ids"])
        lengths.append(length := int(known.sum()))
        assert known[:length].all() and 1 <= length < max(words, 2)
    assert len({*lengths}) > 1


@pytest.mark.parametrize(("num_words", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (24, 22)])
def test_a_prefix_leaves_a_word_to_write_and_takes_every_length(num_words, most):
    drawn = {draw_prefix(num_words, np.random.default_rng(seed)) for seed in range(400)}
    assert drawn == ({*range(1, most + 1)} or {0})


@pytest.mark.parametrize("task", ["inpainting", "inpainting_without_text"])
def test_inpainting_hides_a_rectangle_of_every_picture(task, processor, items):
    batch = collate_as(task, processor, items)
    whole = processor(images=[item["image"] for item in items], return_tensors="pt")
    assert torch.equal(batch["pixel_values"], whole["pixel_values"])  # the targets
    for hidden in ~batch["image_given"]:
        rows, columns = hidden.any(dim=1).nonzero(), hidden.any(dim=0).nonzero()
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert 0 < hidden.sum() == box < hidden.numel()
    assert batch["attention_mask"].any() == (task == "inpainting")


def test_a_batch_mixes_tasks_in_the_shares_of_their_weights():
    mixture = TaskMixture({"joint": 3.0, "captioning": 1.0, "text_to_text": 0.0})
    rng = np.random.default_rng(0)
    item = {"text": "a one", "image": object(), "label": 1, "prompt": "one"}
    counts = Counter(mixture.draw(item, rng) for _ in range(4000))
    assert set(counts) == {"joint", "captioning"}
    assert counts["joint"] / 4000 == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 4000) ** 0.5)


parts = st.fixed_dictionaries(
    {name: st.sampled_from([None, "here"]) for name in ("text", "image", "label", "prompt")}
)


@given(item=parts, seed=st.integers(0, 2**32))
def test_a_task_is_drawn_only_where_its_parts_are(item, seed):
    mixture = TaskMixture(dict.fromkeys(TASKS, 1.0))
    if item["text"] is None and item["image"] is None:
        with pytest.raises(ValueError, match="no task for an item"):
            mixture.draw(item, np.random.default_rng(seed))
        return
    task = TASKS[mixture.draw(item, np.random.default_rng(seed))]
    assert item["text"] is not None or task.text == "absent"
    assert item["image"] is not None or task.image == "absent"
    assert item["label"] is not None or not task.from_class
    assert item["prompt"] is not None or not task.from_prompt


def test_every_task_asks_for_something():
    for name, task in TASKS.items():
        assert {"written", "partly"} & {task.text, task.image}, name


def test_every_default_task_trains_the_model_together(processor, items):
    torch.manual_seed(0)
    model = MDMForJointGeneration(make_config(len(processor.tokenizer)))
    model.train()
    # One item without a picture, one without a text; then every task at once.
    incomplete = [dict(items[0], image=None), dict(items[1], text=None, prompt=None)]
    mixture = TaskMixture(dict.fromkeys(TASKS, 1.0))
    batch = MDMDataCollator(processor, mixture)([*items, *incomplete])
    out = model(**batch)
    assert torch.isfinite(out.loss) and out.loss_se_text > 0 and out.loss_se_image > 0


def test_draws_depend_on_the_seeds_alone(processor, items):
    collator = MDMDataCollator(processor, TaskMixture(dict.fromkeys(TASKS, 1.0)), seed=1)
    first = collator(items)
    torch.rand(7), np.random.rand(7)
    again = collator(items)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    backwards = collator(items[::-1])
    for name in MASKS:
        assert torch.equal(backwards[name].flip(0), first[name])
    other = MDMDataCollator(processor, collator.mixture, seed=2)(items)
    assert not torch.equal(other["text_given"], first["text_given"])


def test_items_without_a_seed_follow_torch(processor, items):
    collator = MDMDataCollator(processor, TaskMixture(dict.fromkeys(TASKS, 1.0)))
    bare = [{**item, "seed": None} for item in items]
    batches = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        batches.append(collator(bare)["class_labels"].tolist())
    assert batches[0] == batches[1] != batches[2]


def test_pictures_alone_and_texts_alone_make_batches(processor, items):
    mixture = TaskMixture({"image": 1.0, "text": 1.0})
    collator = MDMDataCollator(processor, mixture)
    pictures = collator([{"image": item["image"]} for item in items])
    assert "input_ids" not in pictures and not pictures["image_given"].any()
    texts = collator([{"text": item["text"]} for item in items])
    assert "pixel_values" not in texts and not texts["text_given"].any()


def test_a_long_text_is_refused_or_cut(processor):
    item = {"text": "a photo of " * 9, "image": None, "seed": 0}
    mixture = TaskMixture({"text": 1.0})
    with pytest.raises(ValueError, match=f"max_text_length={MAX_TEXT_LENGTH}"):
        MDMDataCollator(processor, mixture)([item])
    batch = MDMDataCollator(processor, mixture, truncation=True)([item])
    assert batch["input_ids"][0, -1] == processor.tokenizer.eos_token_id


@given(num_words=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_hidden_words_are_distinct_and_leave_end(num_words, seed):
    hidden = draw_hidden_words(num_words, np.random.default_rng(seed))
    assert 1 <= len(hidden) == len(set(hidden.tolist()))
    assert hidden.min() >= 0 and hidden.max() < max(num_words - 1, 1)


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_a_region_is_inside_the_picture_and_not_empty(height, width, seed):
    pixels = np.zeros((height, width), dtype=int)
    pixels[draw_region(height, width, np.random.default_rng(seed))] = 1
    assert pixels.sum() >= 1
    assert min(height, width) < 2 or pixels.sum() < pixels.size


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"juggling": 1.0}, "'juggling'"),
        ({"joint": -1.0}, r"weights\['joint'\]=-1.0"),
        ({"joint": float("nan")}, r"weights\['joint'\]=nan"),
        ({"joint": 0.0}, "at least one weight above 0"),
        ({}, "at least one weight above 0"),
    ],
)
def test_a_malformed_mixture_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        TaskMixture(weights)


def test_a_batch_of_128_pictures_of_28_by_28_is_made_in_30_ms(processor, items, monkeypatch):
    batch = [
        {**items[i % 16], "image": items[i % 16]["image"].resize((28, 28)), "seed": i}
        for i in range(128)
    ]
    size = type(processor.image_processor.size)(height=28, width=28)
    monkeypatch.setattr(processor.image_processor, "size", size)
    collator = MDMDataCollator(processor)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        collator(batch)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.03
