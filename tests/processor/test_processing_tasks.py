# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The processor: what every task of generation gives the model, alone and with one."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_processor import (
    DRESS,
    END,
    IS,
    IT,
    LENGTH,
    MASK,
    OF,
    PAD,
    PHOTO,
    SIDE,
    TOKENIZER,
    WHAT,
    A,
    check_images,
    check_text,
    picture,
    pixels,
)

from modeling_mdm import MDMConfig, MDMForJointGeneration

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


# Going on with a text


def test_a_caption_that_is_half_given_is_gone_on_with(processor):
    arguments = {"generate": "joint", "continue_text": True, "return_tensors": "pt"}
    inputs = processor(text=["a photo of", "a", None], **arguments)
    starts = [[A, PHOTO, OF], [A], []]
    rows = [[*start, *[MASK] * (LENGTH - len(start))] for start in starts]
    check_text(inputs, rows, [[*[1] * len(s), *[0] * (LENGTH - len(s))] for s in starts])
    check_images(inputs, [None] * 3, [False] * 3)


def test_as_many_words_follow_as_are_asked_for(processor):
    arguments = {"generate": "text", "continue_text": True, "max_new_tokens": 2}
    inputs = processor(text=["a photo", "a"], images=[picture()] * 2, **arguments)
    inputs = inputs.convert_to_tensors("pt")
    rows, given = [[A, PHOTO, MASK, MASK], [A, MASK, MASK, PAD]], [[1, 1, 0, 0], [1, 0, 0, 0]]
    check_text(inputs, rows, given, [[1, 1, 1, 1], [1, 1, 1, 0]])
    check_images(inputs, [picture()] * 2, [True] * 2)


def test_a_text_that_fills_the_region_still_gets_its_end(processor):
    text = " ".join(["a"] * (LENGTH - 1))
    inputs = processor(text=text, generate="text", continue_text=True, return_tensors="pt")
    assert inputs["text_given"].tolist() == [[True] * (LENGTH - 1) + [False]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"generate": "joint"}, "there is none"),
        ({"text": "", "generate": "joint"}, "there is none"),
        ({"text": "a", "generate": "image"}, "none is written"),
        ({"text": "a"}, "none is written"),
        ({"text": "a <mask>", "generate": "text"}, "remove <mask>"),
    ],
)
def test_going_on_needs_a_text_and_room(processor, arguments, said):
    with pytest.raises(ValueError, match=rf"continue_text=True.*{said}"):
        processor(**arguments, continue_text=True)


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
    {"text": "a photo", "generate": "joint", "continue_text": True},
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
        in_place = text is not None and ("<mask>" in text or task.get("continue_text", False))
        assert sample.prompt == (None if in_place or not writes_text else text)
        if in_place:
            assert sample.text.startswith("a")
        if writes_image and "image_mask" in task:
            known = np.asarray(picture())[REPAINT == 0]
            np.testing.assert_array_equal(np.asarray(sample.image)[REPAINT == 0], known)
