# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The processor: which positions are given, noisy and padding, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_processor import (
    END,
    LENGTH,
    MASK,
    OF,
    PAD,
    PHOTO,
    SIDE,
    A,
    check_images,
    check_text,
    make_processor,
    picture,
    word,
)

from modeling_mdm.processor.request import Passed, read_request

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


def test_requests_know_nothing_of_the_tokenizer():
    """The reader of arguments needs only the literal that stands for a word to be written."""
    passed = Passed(text="a ___ b", generation_mode="text")
    request = read_request(passed, mask_token="___", size=(8, 8))
    assert request.has_mask_words == [True]
    assert request.opens_region == [False]
