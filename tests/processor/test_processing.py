# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The processor: which positions of every task are given, noisy and padding, and the way back."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modeling_mdm import MDMConfig, MDMForJointGeneration
from modeling_mdm.processor.image_processing_mdm import MDMImageProcessor
from modeling_mdm.processor.image_processing_pil_mdm import MDMImageProcessorPil
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.processor.request import Passed, read_request
from modeling_mdm.processor.samples import MDMSample

ROOT = Path(__file__).resolve().parents[2]
PAD, MASK, END = 0, 1, 3
SIDE = 8
LENGTH = 10
WORDS = ["a", " photo", " of", " dress", " gown", " what", " is", " it", " a"]


def make_tokenizer():
    path = ROOT / "processing" / "train_tokenizer.py"
    spec = importlib.util.spec_from_file_location("train_tokenizer", path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    return script.train_tokenizer(["".join(WORDS)] * 3, vocab_size=400)


TOKENIZER = make_tokenizer()


def make_processor(image_processor=MDMImageProcessor, **kwargs):
    images = image_processor(size={"height": SIDE, "width": SIDE}, num_channels=1)
    kwargs = {"patch_size": 4, "max_text_length": LENGTH, "num_classes": 3} | kwargs
    return MDMProcessor(images, TOKENIZER, **kwargs)


@pytest.fixture(params=[MDMImageProcessor, MDMImageProcessorPil], ids=["torchvision", "pil"])
def processor(request):
    return make_processor(request.param)


def picture(seed=0, shape=(SIDE, SIDE)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def pixels(image):
    return torch.from_numpy(np.asarray(image) / 127.5 - 1).float()


def word(text):
    (token,) = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return token


A, PHOTO, OF, DRESS, GOWN, WHAT, IS, IT, AN = map(word, WORDS)


def check_text(inputs, rows, given, attention=None, turns=None):
    """Compare the text inputs with lists that show every position."""
    assert inputs["input_ids"].tolist() == rows
    assert inputs["text_given"].tolist() == [[bool(g) for g in row] for row in given]
    if attention is None:
        attention = [[1] * len(row) for row in rows]
    assert inputs["attention_mask"].tolist() == attention
    assert inputs["input_ids"].dtype == inputs["attention_mask"].dtype == torch.long
    assert inputs["text_given"].dtype == torch.bool
    if turns is None:
        assert "turn_ids" not in inputs
    else:
        assert inputs["turn_ids"].tolist() == turns
        assert inputs["turn_ids"].dtype == torch.long


def check_images(inputs, shown, given, turns=None, absent=None):
    """Compare the image inputs; `shown` and `given` hold one entry per item, or per item and image.

    None shows zeros; True or False stands for a whole image.
    """
    values = inputs["pixel_values"]
    leading = (len(shown), len(shown[0])) if isinstance(shown[0], list) else (len(shown),)
    assert values.shape == (*leading, 1, SIDE, SIDE)
    assert values.dtype == torch.float32

    def flat(entries):
        return [e for row in entries for e in (row if isinstance(row, list) else [row])]

    for value, image in zip(values.flatten(0, -4), flat(shown), strict=True):
        expected = torch.zeros(SIDE, SIDE) if image is None else pixels(image)
        torch.testing.assert_close(value[0], expected, rtol=0, atol=1e-6)
    assert inputs["image_given"].shape == (*leading, SIDE, SIDE)
    assert inputs["image_given"].dtype == torch.bool
    for value, known in zip(inputs["image_given"].flatten(0, -3), flat(given), strict=True):
        assert (value == known).all()
    if turns is None:
        assert "image_turn_ids" not in inputs
    else:
        assert inputs["image_turn_ids"].tolist() == turns
    if absent is None:
        assert "pixel_attention_mask" not in inputs
    else:
        assert inputs["pixel_attention_mask"].shape == inputs["image_given"].shape
        assert inputs["pixel_attention_mask"].dtype == torch.long
        real = inputs["pixel_attention_mask"].flatten(0, -3)
        for value, is_absent in zip(real, flat(absent), strict=True):
            assert (value == (not is_absent)).all()


# Training and scoring


def test_texts_of_several_lengths(processor):
    inputs = processor(text=["a photo", "a", ""], return_tensors="pt")
    check_text(
        inputs,
        rows=[[A, PHOTO, END], [A, END, PAD], [END, PAD, PAD]],
        given=[[1, 1, 1], [1, 1, 0], [1, 0, 0]],
        attention=[[1, 1, 1], [1, 1, 0], [1, 0, 0]],
    )
    assert set(inputs) == {"input_ids", "attention_mask", "text_given"}


def test_padding_to_the_longest_text_of_all(processor):
    inputs = processor(text=["a photo", "a"], padding="max_length", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [
        [A, PHOTO, END, *[PAD] * (LENGTH - 3)],
        [A, END, *[PAD] * (LENGTH - 2)],
    ]
    assert inputs["attention_mask"].sum(1).tolist() == [3, 2]


def test_scoring_mask_words(processor):
    inputs = processor(text="a <mask> of<mask><mask>", return_tensors="pt")
    check_text(inputs, [[A, MASK, OF, MASK, MASK, END]], [[1, 0, 1, 0, 0, 1]])


def test_a_mask_takes_one_space_with_it(processor):
    texts = ["a  <mask>", "<mask> photo", "a<mask>", "<mask>"]
    space = word(" ")
    inputs = processor(text=texts, return_tensors="pt")
    assert inputs["input_ids"].tolist() == [
        [A, space, MASK, END],
        [MASK, PHOTO, END, PAD],
        [A, MASK, END, PAD],
        [MASK, END, PAD, PAD],
    ]


def test_other_special_tokens_are_ordinary_words(processor):
    text = "<pad><end><image>"
    inputs = processor(text=text, max_new_tokens=None, truncation=True, return_tensors="pt")
    (row,) = inputs["input_ids"].tolist()
    assert row.pop() == END
    assert not {PAD, MASK, 2, END} & set(row)
    assert text.startswith(processor.decode(row))


def test_pictures(processor):
    images = [picture(0), picture(1)]
    check_images(processor(images=images, return_tensors="pt"), images, [True, True])


def test_every_form_of_pictures(processor, tmp_path):
    image = picture()
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    for form in (image, [image], [[image]], array, array[None, ..., None], tmp_path / "a.png"):
        check_images(processor(images=form, return_tensors="pt"), [image], [True])


def test_text_and_pictures(processor):
    inputs = processor(text=["a", "a photo"], images=[picture(0), picture(1)], return_tensors="pt")
    check_text(inputs, [[A, END, PAD], [A, PHOTO, END]], [[1, 1, 0], [1] * 3], [[1, 1, 0], [1] * 3])
    check_images(inputs, [picture(0), picture(1)], [True, True])


def test_absent_text_and_pictures(processor):
    inputs = processor(text=["a", None], images=[None, picture()], return_tensors="pt")
    check_text(inputs, [[A, END], [PAD, PAD]], [[1, 1], [0, 0]], [[1, 1], [0, 0]])
    check_images(inputs, [None, picture()], [True, True], absent=[True, False])


def test_a_modality_that_nobody_has_is_left_out(processor):
    inputs = processor(text=[None, None], images=[picture(), None], return_tensors="pt")
    assert "input_ids" not in inputs
    inputs = processor(text=["a", None], images=[None, None], return_tensors="pt")
    assert "pixel_values" not in inputs


def test_scoring_repainted_pixels_keeps_them(processor):
    mask = np.zeros((SIDE, SIDE))
    mask[:3] = 1
    inputs = processor(images=picture(), image_mask=mask, return_tensors="pt")
    check_images(inputs, [picture()], [torch.from_numpy(mask == 0)])


def test_pictures_of_another_size(processor):
    big = picture(shape=(40, 30))
    inputs = processor(images=big, image_size=(12, 4), return_tensors="pt")
    expected = processor.image_processor(
        big, size={"height": 12, "width": 4}, return_tensors="pt"
    ).pixel_values
    assert torch.equal(inputs["pixel_values"], expected)
    assert inputs["image_given"].shape == (1, 12, 4)
    inputs = processor(text="a", generate="image", image_size=16, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 1, 16, 16)


def test_options_of_the_image_processor(processor):
    image = torch.rand(1, SIDE, SIDE) * 2 - 1
    kwargs = {"do_normalize": False}
    inputs = processor(images=image, images_kwargs=kwargs, return_tensors="pt")
    assert torch.equal(inputs["pixel_values"][0], image)


def test_class_labels(processor):
    for labels in ([2, -1], [2, None], torch.tensor([2, -1]), np.array([2, -1])):
        inputs = processor(text=["a", "a"], class_labels=labels, return_tensors="pt")
        assert inputs["class_labels"].tolist() == [2, -1]
        assert inputs["class_labels"].dtype == torch.long
    inputs = processor(text="a", class_labels=1, return_tensors="pt")
    assert inputs["class_labels"].tolist() == [1]


# Image


def test_text_to_image(processor):
    inputs = processor(text=["a dress", "a"], generate="image", return_tensors="pt")
    rows, known = [[A, DRESS, END], [A, END, PAD]], [[1, 1, 1], [1, 1, 0]]
    check_text(inputs, rows, known, known)
    check_images(inputs, [None, None], [False, False])


def test_image_from_nothing(processor):
    inputs = processor(generate="image", return_tensors="pt")
    assert set(inputs) == {"pixel_values", "image_given"}
    check_images(inputs, [None], [False])


def test_image_from_a_class(processor):
    inputs = processor(class_labels=[0, 2], generate="image", return_tensors="pt")
    assert set(inputs) == {"pixel_values", "image_given", "class_labels"}
    check_images(inputs, [None, None], [False, False])


def test_image_from_pictures(processor):
    inputs = processor(images=[picture(0), picture(1)], generate="image", return_tensors="pt")
    shown = [[picture(0), None], [picture(1), None]]
    check_images(inputs, shown, [[True, False]] * 2, turns=[[0, 1]] * 2)


def test_image_from_several_pictures_and_text(processor):
    images = [[picture(0), picture(1)]]
    inputs = processor(text="a", images=images, generate="image", return_tensors="pt")
    check_text(inputs, [[A, END]], [[1, 1]])
    check_images(inputs, [[*images[0], None]], [[True, True, False]], turns=[[0, 0, 1]])


def test_image_after_an_absent_picture(processor):
    inputs = processor(images=[picture(), None], generate="image", return_tensors="pt")
    shown, absent = [[picture(), None], [None, None]], [[False, False], [True, False]]
    check_images(inputs, shown, [[True, False]] * 2, turns=[[0, 1], [0, 0]], absent=absent)


def test_inpainting(processor):
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[2:5, 1:] = True
    for form in (mask, torch.from_numpy(mask), mask[None].astype(int), Image.fromarray(mask)):
        inputs = processor(
            text="a", images=picture(), image_mask=form, generate="image", return_tensors="pt"
        )
        check_text(inputs, [[A, END]], [[1, 1]])
        assert torch.equal(inputs["image_given"], torch.from_numpy(~mask)[None])
        expected = torch.where(torch.from_numpy(mask), 0, pixels(picture()))
        torch.testing.assert_close(inputs["pixel_values"][0, 0], expected, rtol=0, atol=1e-6)
        assert "image_turn_ids" not in inputs


def test_inpainting_with_a_mask_for_each_item(processor):
    masks = np.zeros((2, SIDE, SIDE))
    masks[0, 0], masks[1, :, 0] = 1, 1
    images = [picture(0), picture(1)]
    inputs = processor(images=images, image_mask=masks, generate="image", return_tensors="pt")
    assert torch.equal(inputs["image_given"], torch.from_numpy(masks == 0))
    inputs = processor(images=images, image_mask=list(masks), generate="image", return_tensors="pt")
    assert torch.equal(inputs["image_given"], torch.from_numpy(masks == 0))


def test_inpainting_one_of_two_pictures(processor):
    mask = np.zeros((1, 2, SIDE, SIDE))
    mask[0, 1] = 1
    images = [[picture(0), picture(1)]]
    inputs = processor(images=images, image_mask=mask, generate="image", return_tensors="pt")
    check_images(inputs, [[picture(0), None]], [[True, False]])


def test_inpainting_beside_an_absent_picture(processor):
    inputs = processor(
        images=[picture(), None],
        image_mask=np.ones((SIDE, SIDE)),
        generate="image",
        return_tensors="pt",
    )
    check_images(inputs, [None, None], [False, True], absent=[False, True])


# Text


def test_captioning(processor):
    images = [picture(0), picture(1)]
    inputs = processor(images=images, generate="text", max_new_tokens=4, return_tensors="pt")
    check_text(inputs, [[MASK] * 4] * 2, [[0] * 4] * 2)
    check_images(inputs, images, [True, True])


def test_length_of_a_region(processor):
    inputs = processor(images=picture(), generate="text", return_tensors="pt")
    check_text(inputs, [[MASK] * LENGTH], [[0] * LENGTH])


def test_a_question_about_a_picture(processor):
    inputs = processor(
        text=["a what is it"],
        images=[picture()],
        generate="text",
        max_new_tokens=2,
        return_tensors="pt",
    )
    check_text(
        inputs,
        rows=[[A, WHAT, IS, IT, END, MASK, MASK]],
        given=[[1] * 5 + [0] * 2],
        turns=[[0] * 5 + [1] * 2],
    )
    check_images(inputs, [picture()], [True])


def test_text_to_text(processor):
    inputs = processor(
        text=["a photo", "a", None], generate="text", max_new_tokens=2, return_tensors="pt"
    )
    check_text(
        inputs,
        rows=[
            [A, PHOTO, END, MASK, MASK],
            [A, END, MASK, MASK, PAD],
            [MASK, MASK, PAD, PAD, PAD],
        ],
        given=[[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0] * 5],
        attention=[[1] * 5, [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]],
        turns=[[0, 0, 0, 1, 1], [0, 0, 1, 1, 0], [0] * 5],
    )


def test_text_from_nothing(processor):
    inputs = processor(generate="text", max_new_tokens=2, return_tensors="pt")
    check_text(inputs, [[MASK, MASK]], [[0, 0]])


def test_infill(processor):
    inputs = processor(text="a <mask> of", images=picture(), generate="text", return_tensors="pt")
    check_text(inputs, [[A, MASK, OF, END]], [[1, 0, 1, 1]])
    check_images(inputs, [picture()], [True])


def test_infill_beside_a_prompt(processor):
    inputs = processor(
        text=["a <mask>", "a"], generate="text", max_new_tokens=1, return_tensors="pt"
    )
    given = [[1, 0, 1], [1, 1, 0]]
    check_text(inputs, [[A, MASK, END], [A, END, MASK]], given, turns=[[0, 0, 0], [0, 0, 1]])


# Joint


def test_joint_from_nothing(processor):
    inputs = processor(generate="joint", return_tensors="pt")
    check_text(inputs, [[MASK] * LENGTH], [[0] * LENGTH])
    check_images(inputs, [None], [False])


def test_joint_from_classes(processor):
    inputs = processor(class_labels=[0, 1], generate="joint", max_new_tokens=1, return_tensors="pt")
    check_text(inputs, [[MASK]] * 2, [[0]] * 2)
    check_images(inputs, [None] * 2, [False] * 2)
    assert inputs["class_labels"].tolist() == [0, 1]


def test_joint_from_a_prompt(processor):
    inputs = processor(text="a", generate="joint", max_new_tokens=2, return_tensors="pt")
    check_text(inputs, [[A, END, MASK, MASK]], [[1, 1, 0, 0]], turns=[[0, 0, 1, 1]])
    check_images(inputs, [None], [False], turns=[[1]])


def test_joint_from_a_picture(processor):
    inputs = processor(images=picture(), generate="joint", max_new_tokens=2, return_tensors="pt")
    check_text(inputs, [[MASK, MASK]], [[0, 0]], turns=[[1, 1]])
    check_images(inputs, [[picture(), None]], [[True, False]], turns=[[0, 1]])


def test_joint_from_a_prompt_and_a_picture(processor):
    inputs = processor(
        text="a", images=picture(), generate="joint", max_new_tokens=1, return_tensors="pt"
    )
    check_text(inputs, [[A, END, MASK]], [[1, 1, 0]], turns=[[0, 0, 1]])
    check_images(inputs, [[picture(), None]], [[True, False]], turns=[[0, 1]])


def test_joint_infill_and_new_image(processor):
    inputs = processor(text="a <mask>", generate="joint", return_tensors="pt")
    check_text(inputs, [[A, MASK, END]], [[1, 0, 1]])
    check_images(inputs, [None], [False])


def test_joint_infill_after_a_picture(processor):
    inputs = processor(text="a <mask>", images=picture(), generate="joint", return_tensors="pt")
    check_text(inputs, [[A, MASK, END]], [[1, 0, 1]], turns=[[1, 1, 1]])
    check_images(inputs, [[picture(), None]], [[True, False]], turns=[[0, 1]])


def test_joint_inpainting(processor):
    whole = np.ones((SIDE, SIDE))
    arguments = {"images": picture(), "image_mask": whole, "generate": "joint"}
    inputs = processor(**arguments, max_new_tokens=1, return_tensors="pt")
    check_text(inputs, [[MASK]], [[0]])
    check_images(inputs, [None], [False])
    inputs = processor(text="a <mask>", **arguments, return_tensors="pt")
    check_text(inputs, [[A, MASK, END]], [[1, 0, 1]])
    check_images(inputs, [None], [False])
    inputs = processor(text="a", **arguments, max_new_tokens=1, return_tensors="pt")
    check_text(inputs, [[A, END, MASK]], [[1, 1, 0]], turns=[[0, 0, 1]])
    check_images(inputs, [None], [False], turns=[[1]])


# Properties


def valid_for(generate):
    texts = [None, "a", "a photo of"] + (["a <mask> of a"] if generate != "image" else [])
    pictures = [None, picture(0), picture(1)]
    label = st.sampled_from([None, 0, 2])
    return st.lists(
        st.tuples(st.sampled_from(texts), st.sampled_from(pictures), label), min_size=1, max_size=4
    ).map(lambda items: (generate, items))


@given(st.sampled_from([None, "image", "text", "joint"]).flatmap(valid_for))
def test_an_item_alone_is_the_same_in_a_batch(case):
    """What is real of an item (not alignment) does not depend on its neighbours."""
    generate, items = case
    processor = make_processor()
    if generate is None:
        items = [item for item in items if item[0] is not None or item[1] is not None]
        if not items:
            return

    def run(items):
        texts, images, labels = (list(column) for column in zip(*items, strict=True))
        return processor(images, texts, generate, class_labels=labels, return_tensors="pt")

    def real_parts(inputs, row):
        parts = {"class_labels": inputs["class_labels"][row].tolist()}
        if "input_ids" in inputs:
            words = inputs["attention_mask"][row].bool()
            turns = inputs.get("turn_ids", torch.zeros_like(inputs["input_ids"]))
            for name, value in ("ids", inputs["input_ids"]), ("turns", turns):
                parts[name] = value[row][words].tolist()
            parts["given"] = inputs["text_given"][row][words].tolist()
        if "pixel_values" in inputs:
            given = inputs["image_given"]
            real = inputs.get("pixel_attention_mask", torch.ones_like(given)).bool()
            several = given.ndim == 4
            turns = inputs.get("image_turn_ids", torch.zeros(len(given), 1, dtype=torch.long))
            turns = turns[row].expand(given.shape[1] if several else 1)
            row_given, row_real = (t[row] if several else t[row][None] for t in (given, real))
            values = inputs["pixel_values"][row]
            values = values if several else values[None]
            kept = row_real.flatten(1).all(1)
            parts["values"] = values[kept].tolist()
            parts["image_given"] = row_given[kept].tolist()
            parts["image_turns"] = turns[kept].tolist()
        # An item without a modality has none of it alone, and only absent parts in a batch.
        return {name: part for name, part in parts.items() if part != []}

    together = run(items)
    for row, item in enumerate(items):
        assert real_parts(together, row) == real_parts(run([item]), 0)


def test_what_a_text_with_a_picture_becomes_has_a_name(processor):
    inputs = processor(text="a", images=picture(), return_tensors="pt")
    assert sorted(processor.model_input_names) == sorted(inputs)


def test_unequally_many_pictures(processor):
    """What a shorter list lacks is absent."""
    images = [[picture(0)], [], [picture(1), picture(2)]]
    same = [[picture(0), None], [None, None], [picture(1), picture(2)]]
    for generate in (None, "image", "joint"):
        inputs = processor(images=images, generate=generate, return_tensors="pt")
        expected = processor(images=same, generate=generate, return_tensors="pt")
        assert inputs.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(inputs[name], value), name


def test_kinds_of_tensors(processor):
    arguments = {"text": ["a", "a photo"], "images": [picture(0), picture(1)]}
    tensors = processor(**arguments, return_tensors="pt")
    arrays, lists = processor(**arguments, return_tensors="np"), processor(**arguments)
    assert set(tensors) == set(arrays) == set(lists)
    for name, tensor in tensors.items():
        assert isinstance(arrays[name], np.ndarray)
        assert torch.equal(torch.from_numpy(arrays[name]), tensor)
        assert lists[name] == tensor.tolist()


def test_pipelines_may_ask_for_padding(processor):
    inputs = processor(
        text=["a", "a photo"], videos=None, audio=None, padding=True, return_tensors="pt"
    ).to(dtype=torch.bfloat16)
    assert inputs["input_ids"].tolist() == [[A, END, PAD], [A, PHOTO, END]]


def test_truncation_keeps_the_end(processor):
    exact = "a" + " photo" * (LENGTH - 2)
    (row,) = processor(text=exact, return_tensors="pt")["input_ids"].tolist()
    assert row == [A, *[PHOTO] * (LENGTH - 2), END]
    (cut,) = processor(text=exact + " of", truncation=True, return_tensors="pt")[
        "input_ids"
    ].tolist()
    assert cut == row


# Faults


def faulty(**arguments):
    return arguments


MASK_OF_HALF = np.zeros((SIDE, SIDE))
MASK_OF_HALF[:4] = 1
FAULTS = [
    (faulty(), "text and images are empty; pass one"),
    (faulty(class_labels=1), "text and images are empty; pass one"),
    (faulty(text=[None]), "text and images are empty; pass one"),
    (faulty(text=["a", "a"], images=[picture()]), "2 text, 1 images; pass equally many"),
    (faulty(text="a", images=[picture(), picture()]), "1 text, 2 images; pass equally many"),
    (faulty(text=["a"], class_labels=[0, 1]), "1 text, 2 class_labels; pass equally many"),
    (faulty(text=[], generate="image"), "Got 0 text; pass equally many of each, at least 1"),
    (faulty(text="a", generate="video"), "generate='video' is unknown; use None, 'image'"),
    (faulty(text="a <mask>", generate="image"), "contains <mask>.*generation_mode='joint'"),
    (
        faulty(images=picture(), image_mask=MASK_OF_HALF, generate="text"),
        "image_mask asks to repaint pixels.*use generation_mode='joint'",
    ),
    (faulty(text="a", image_mask=MASK_OF_HALF), "image_mask is given without images; pass"),
    (
        faulty(images=picture(), image_mask=0 * MASK_OF_HALF, generate="image"),
        "Nothing to generate: image_mask is 0 everywhere; mark",
    ),
    (
        faulty(images=picture(), image_mask=0 * MASK_OF_HALF, generate="joint"),
        "Nothing to generate: image_mask is 0 everywhere; mark",
    ),
    (faulty(text="a", generate="text", max_new_tokens=0), "Nothing to generate: max_new_tokens=0"),
    (faulty(text="a", generate="image", max_new_tokens=3), "max_new_tokens=3 is the length of a"),
    (
        faulty(text="a <mask>", generate="text", max_new_tokens=3),
        "max_new_tokens=3 .*none is opened",
    ),
    (faulty(text="a", max_new_tokens=3), "max_new_tokens=3 .*use generation_mode='text'"),
    (
        faulty(images=picture(), image_mask=np.ones((4, 8))),
        r"image_mask has shape \(4, 8\); pass \(8",
    ),
    (faulty(images=picture(), image_mask=np.ones((2, 8, 8))), r"shape \(2, 8, 8\).*\(1, 1, 8, 8\)"),
    (faulty(images=picture(), image_mask=2 * MASK_OF_HALF), "image_mask has values other than 0"),
    (
        faulty(images=picture(), image_mask=np.nan * MASK_OF_HALF),
        "image_mask has values other than",
    ),
    (faulty(text="a", class_labels=3), "class_labels has 3; use 0 to 2, or -1 for no class"),
    (faulty(text="a", class_labels=-2), "class_labels has -2; use 0 to 2, or -1 for no class"),
    (faulty(text="a", class_labels=0.5), "class_labels has 0.5; pass integers"),
    (faulty(text="a" + " of" * LENGTH), "has 12 tokens with <end>, more than max_text_length=10"),
    (faulty(text=["a", "a" + " of" * (LENGTH - 1)]), "has 11 tokens .*pass truncation=True"),
    (faulty(text=["a", 3]), "text has 3; pass a string"),
    (faulty(text="a\ud800"), "lone surrogate.*remove it"),
    (
        faulty(images=picture(), image_size=6),
        r"image_size=\(6, 6\) must be two positive multiples of",
    ),
    (faulty(images=picture(), image_size=(8, 0)), r"image_size=\(8, 0\) must be two positive"),
    (faulty(text="a", generate="image", image_size=(8, 8, 8)), r"image_size=\(8, 8, 8\) must be"),
    (faulty(text="a", padding="left"), "padding='left' is unknown; use 'longest'"),
    (faulty(text="a", videos=[1]), "videos and audio are not read by MDM; leave them None"),
    (faulty(images=Image.new("L", (0, 3))), "images has an image of zero size"),
    (faulty(images=np.full((8, 8), np.nan)), "images has float pixels"),
]


@pytest.mark.parametrize(("arguments", "message"), FAULTS)
def test_faults(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_processor()(**arguments, return_tensors="pt")


def test_class_labels_without_a_known_number_of_classes():
    processor = make_processor(num_classes=None)
    inputs = processor(class_labels=500, generate="image", return_tensors="pt")
    assert inputs["class_labels"].tolist() == [500]
    with pytest.raises(ValueError, match="class_labels has -2; use 0 or more"):
        processor(class_labels=-2, generate="image")


def test_patch_size_must_divide_the_pictures():
    with pytest.raises(ValueError, match=r"image_size=\(8, 8\) must be .* patch_size=3"):
        make_processor(patch_size=3)


# The way back


def generated(rows=None, images=None, **more):
    sequences = None if rows is None else torch.tensor(rows)
    return SimpleNamespace(sequences=sequences, images=images, **more)


ROWS = {
    "region": ([A, DRESS, END, PAD, PAD], "a dress", None),
    "region without end": ([A, DRESS, AN], "a dress a", None),
    "region closed by padding": ([A, DRESS, PAD, GOWN], "a dress", None),
    "prompt and region": ([A, WHAT, END, A, GOWN, END, PAD], "a gown", "a what"),
    "prompt and region without end": ([A, WHAT, END, A, GOWN], "a gown", "a what"),
    "prompts and region": ([A, END, WHAT, END, A, GOWN, END], "a gown", "a what"),
    "nothing": ([PAD, PAD], "", None),
    "only an end": ([END, PAD], "", None),
}


@pytest.mark.parametrize("name", ROWS)
def test_texts(processor, name):
    row, text, prompt = ROWS[name]
    assert processor.post_process(generated([row])) == [MDMSample(text, None, prompt)]


def test_turns_tell_prompt_from_region(processor):
    """Where the model wrote nothing, or something after `<end>`, only turns tell what is what."""
    inputs = processor(text=["a what", "a"], generate="text", max_new_tokens=4, return_tensors="pt")
    rows = [[A, WHAT, END, END, PAD, PAD, PAD], [A, END, A, GOWN, END, OF, PAD]]
    expected = [MDMSample("", None, "a what"), MDMSample("a gown", None, "a")]
    assert processor.post_process(generated(rows), inputs=inputs) == expected
    assert processor.post_process(generated(rows, turn_ids=inputs["turn_ids"])) == expected
    assert [sample.text for sample in processor.post_process(generated(rows))] == ["a what", " of"]


def test_turns_of_a_region_that_generate_opened(processor):
    """`generation_mode="text"` appends a region behind the text, alignment padding and all."""
    inputs = processor(text=["a what", "a"], return_tensors="pt")
    rows = [[A, WHAT, END, A, END, OF], [A, END, PAD, GOWN, END, PAD]]
    samples = processor.post_process(generated(rows), inputs=inputs)
    assert samples == [MDMSample("a", None, "a what"), MDMSample(" gown", None, "a")]
    samples = processor.post_process(generated([[A, END, OF]]), inputs={"pixel_values": None})
    assert samples == [MDMSample("a")]


def test_a_region_without_a_prompt(processor):
    inputs = processor(generate="joint", max_new_tokens=4, return_tensors="pt")
    samples = processor.post_process(generated([[A, END, OF, END]]), inputs=inputs)
    assert samples == [MDMSample("a")]


def test_several_samples_of_each_item(processor):
    inputs = processor(text=["a what", "a"], generate="text", max_new_tokens=2, return_tensors="pt")
    rows = [[A, WHAT, END, A, END]] * 2 + [[A, END, GOWN, END, PAD]] * 2
    samples = processor.post_process(generated(rows), inputs=inputs)
    assert [sample.prompt for sample in samples] == ["a what", "a what", "a", "a"]
    assert [sample.text for sample in samples] == ["a", "a", " gown", " gown"]
    with pytest.raises(ValueError, match="inputs has 2 items, which do not divide 3 outputs"):
        processor.post_process(generated(rows[:3]), inputs=inputs)


def test_texts_with_special_tokens(processor):
    rows = [[A, WHAT, END, MASK, PAD]]
    (sample,) = processor.post_process(generated(rows), skip_special_tokens=False)
    assert sample.text == "a what<end><mask><pad>"
    (sample,) = processor.post_process(generated([[A, MASK, WHAT, END]]))
    assert sample.text == "a what"


def test_images_and_texts(processor):
    images = torch.stack([pixels(picture(0)), pixels(picture(1))])[:, None]
    samples = processor.post_process(generated([[A, END], [GOWN, END]], images))
    assert [sample.text for sample in samples] == ["a", " gown"]
    for seed, sample in enumerate(samples):
        np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(picture(seed)))
    samples = processor.post_process(generated(None, images))
    assert [(sample.text, sample.image.size) for sample in samples] == [(None, (SIDE, SIDE))] * 2


def test_nothing_generated(processor):
    with pytest.raises(ValueError, match="outputs has neither sequences nor images; pass what"):
        processor.post_process(generated())


def test_what_pipelines_call(processor):
    """Pipelines cut the decoded prompt off the decoded row, so a row is decoded whole."""
    rows = torch.tensor([[A, WHAT, END, A, GOWN, END, PAD]])
    images = pixels(picture())[None, None]
    for outputs in (rows, generated(rows.tolist(), images)):
        for decode in (
            processor.post_process_image_text_to_text,
            processor.post_process_multimodal_output,
        ):
            assert decode(outputs) == ["a whata gown"]
            assert decode(outputs, skip_special_tokens=False) == ["a what<end>a gown<end><pad>"]
    for outputs in (images, generated(None, images)):
        (image,) = processor.post_process_multimodal_output(outputs, generation_mode="image")
        np.testing.assert_array_equal(np.asarray(image), np.asarray(picture()))
    with pytest.raises(ValueError, match="generated_outputs has no images; generate with"):
        processor.post_process_multimodal_output(rows, generation_mode="image")
    with pytest.raises(ValueError, match="generated_outputs has no sequences; generate with"):
        processor.post_process_image_text_to_text(images)
    with pytest.raises(ValueError, match="generation_mode='joint' is unknown"):
        processor.post_process_multimodal_output(rows, generation_mode="joint")


def test_decoding(processor):
    assert processor.decode([A, WHAT, END]) == "a what<end>"
    assert processor.batch_decode([[A, END], [A, IS]], skip_special_tokens=True) == ["a", "a is"]


# With the model

REPAINT = np.zeros((SIDE, SIDE))
REPAINT[:4] = 1
TASKS = [
    {"text": "a dress", "generate": "image"},
    {"class_labels": [0, 1], "generate": "image"},
    {"images": picture(), "text": "a", "generate": "image"},
    {"images": [[picture(0), picture(1)]], "generate": "image"},
    {"images": picture(), "image_mask": REPAINT, "generate": "image"},
    {"images": picture(), "generate": "text"},
    {"images": picture(), "text": "a what", "generate": "text", "max_new_tokens": 3},
    {"text": ["a <mask> of", "a", None], "generate": "text", "max_new_tokens": 2},
    {"generate": "joint"},
    {"class_labels": 2, "generate": "joint"},
    {"text": ["a", None], "images": [None, picture()], "generate": "joint"},
    {"text": "a <mask>", "images": picture(), "image_mask": REPAINT, "generate": "joint"},
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = MDMConfig(
        vocab_size=len(TOKENIZER),
        image_size=SIDE,
        patch_size=4,
        num_channels=1,
        num_classes=3,
        max_text_length=LENGTH,
        latent_dim=4,
        hidden_size=32,
        num_hidden_layers=1,
        pad_token_id=PAD,
        mask_token_id=MASK,
        eos_token_id=END,
        image_token_id=2,
    )
    return MDMForJointGeneration(config).eval()


@pytest.mark.parametrize("task", TASKS)
def test_every_task_from_user_to_user(processor, model, task):
    """What is written comes back as text and picture; what is known comes back unchanged."""
    inputs = processor(**task, return_tensors="pt")
    options = {"num_inference_steps": 1, "show_progress": False, "num_return_sequences": 2}
    outputs = model.generate(**inputs, **options)
    samples = processor.post_process(outputs, inputs=inputs)
    items = max(len(inputs[name]) for name in inputs)
    assert len(samples) == 2 * items
    writes_text, writes_image = (task["generate"] in (m, "joint") for m in ("text", "image"))
    texts = task["text"] if isinstance(task.get("text"), list) else [task.get("text")] * items
    for row, sample in enumerate(samples):
        text = texts[row // 2]
        assert (sample.text is not None) == writes_text
        assert (sample.image is not None) == writes_image
        in_place = text is not None and "<mask>" in text
        assert sample.prompt == (None if in_place or not writes_text else text)
        if in_place:
            assert sample.text.startswith("a")
        if writes_image and "image_mask" in task:
            known = np.asarray(picture())[REPAINT == 0]
            np.testing.assert_array_equal(np.asarray(sample.image)[REPAINT == 0], known)


# Saving and loading

LOAD = """
import sys
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

folder, copy = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__name__ == "MDMProcessor"
assert type(processor.image_processor).__name__ == "MDMImageProcessor"
settings = processor.patch_size, processor.max_text_length, processor.num_classes
assert settings == (4, 10, 3), settings
assert processor.chat_template == "{{ messages }}"
inputs = processor(text="a <mask> <pad>", generate="joint", return_tensors="pt")
print(inputs["input_ids"].tolist(), list(inputs["pixel_values"].shape))
pil = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, backend="pil")
assert type(pil).__name__ == "MDMImageProcessorPil"
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer("<pad>")["input_ids"] != [tokenizer.pad_token_id]
processor.save_pretrained(copy)
assert "modeling_mdm" not in sys.modules
"""


def test_loads_where_the_package_is_not_installed(tmp_path):
    processor = make_processor(chat_template="{{ messages }}")
    processor.save_pretrained(tmp_path / "saved")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    result = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "saved", tmp_path / "copy"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    inputs = processor(text="a <mask> <pad>", generate="joint")
    assert json.loads(result.stdout.split("]] ")[0] + "]]") == inputs["input_ids"]
    assert "[1, 1, 8, 8]" in result.stdout
    copied = sorted(path.name for path in (tmp_path / "copy").iterdir())
    assert copied == sorted(path.name for path in (tmp_path / "saved").iterdir())
    for name in set(copied) - {"tokenizer_config.json"}:  # transformers notes there whence it came
        assert (tmp_path / "copy" / name).read_text() == (tmp_path / "saved" / name).read_text()


WITHOUT_TORCHVISION = """
import sys

sys.modules["torchvision"] = None
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(processor.image_processor).__name__ == "MDMImageProcessorPil"
image = sys.argv[2]
inputs = processor(images=image, generate="text", return_tensors="pt")
assert list(inputs["pixel_values"].shape) == [1, 1, 8, 8]
"""


@pytest.mark.slow
def test_loads_without_torchvision(tmp_path):
    make_processor().save_pretrained(tmp_path)
    picture(shape=(20, 30)).save(tmp_path / "a.png")
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCHVISION, tmp_path, tmp_path / "a.png"],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_saved_files(tmp_path):
    make_processor().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config["auto_map"] == {"AutoProcessor": "processing_mdm.MDMProcessor"}
    assert config["image_processor"]["auto_map"]["AutoImageProcessor"] == [
        "image_processing_pil_mdm.MDMImageProcessorPil",
        "image_processing_mdm.MDMImageProcessor",
    ]
    # A plain fast tokenizer: no code of ours is needed to load it alone.
    assert "AutoTokenizer" not in (tmp_path / "tokenizer_config.json").read_text()


def test_requests_know_nothing_of_the_tokenizer():
    """The reader of arguments needs only the literal that stands for a word to be written."""
    passed = Passed(text="a ___ b", generation_mode="text")
    request = read_request(passed, mask_token="___", size=(8, 8))
    assert request.has_mask_words == [True]
    assert request.opens_region == [False]
