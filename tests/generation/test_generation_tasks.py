# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every task, from words and pictures to words and pictures, whoever opens the regions."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_generation import MAX_TEXT_LENGTH, PROMPTS, finish, generate, ids_of, pictures, seeded

# --- every task of section 2, from the user's words and pictures to words and pictures


def test_text_to_image(processor, model):
    inputs = processor(text=PROMPTS, generate="image", return_tensors="pt")
    out = generate(model, inputs)
    assert out.sequences is None and out.turn_ids is None
    assert out.images.shape == (2, 1, 8, 8) and out.images.abs().max() <= 1
    assert not torch.equal(out.images[0], out.images[1])
    samples = processor.post_process(out)
    assert [sample.text for sample in samples] == [None, None]
    assert all(sample.image.size == (8, 8) for sample in samples)
    other = processor(text=PROMPTS[::-1], generate="image", return_tensors="pt")
    assert not torch.allclose(generate(model, other).images, out.images)  # the prompt counts


def test_captioning(processor, model):
    inputs = processor(images=pictures(), generate="text", return_tensors="pt")
    out = generate(model, inputs)
    assert out.images is None and out.sequences.shape == (2, MAX_TEXT_LENGTH)
    special = [processor.tokenizer.mask_token_id, model.config.image_token_id]
    assert not torch.isin(out.sequences, torch.tensor(special)).any()
    samples = processor.post_process(out)
    assert all(isinstance(s.text, str) and s.prompt is None and s.image is None for s in samples)


def test_question_about_a_picture(processor, model):
    inputs = processor(images=pictures(), text=PROMPTS, generate="text", return_tensors="pt")
    out = generate(model, inputs)
    assert out.images is None
    assert [sample.prompt for sample in processor.post_process(out)] == PROMPTS


def test_text_to_text(processor, model):
    inputs = processor(text=PROMPTS, generate="text", max_new_tokens=5, return_tensors="pt")
    out = generate(model, inputs)
    assert out.images is None and out.sequences.shape == inputs["input_ids"].shape
    known = inputs["text_given"]
    assert torch.equal(out.sequences[known], inputs["input_ids"][known])
    alignment = inputs["attention_mask"] == 0
    assert (out.sequences[alignment] == processor.tokenizer.pad_token_id).all()
    for sample, prompt, row, turns in zip(
        processor.post_process(out), PROMPTS, out.sequences, inputs["turn_ids"], strict=True
    ):
        region = row[turns == 1].tolist()
        assert len(region) == 5 and sample.prompt == prompt
        ends = [n for n, word in enumerate(region) if word in (0, processor.tokenizer.eos_token_id)]
        words = region[: ends[0]] if ends else region
        assert sample.text == processor.tokenizer.decode(words, skip_special_tokens=True)


def test_class_conditional_image(processor, model):
    inputs = processor(class_labels=[3, 4], generate="image", return_tensors="pt")
    out = generate(model, inputs, generator=seeded(0, 0))
    assert out.sequences is None and out.images.shape == (2, 1, 8, 8)
    assert not torch.equal(out.images[0], out.images[1])  # one seed, two classes
    same = processor(class_labels=[3, 3], generate="image", return_tensors="pt")
    first, second = generate(model, same, generator=seeded(0, 0)).images
    assert torch.allclose(first, second, atol=1e-6)


def test_inpainting_keeps_known_pixels_bit_for_bit(processor, model):
    mask = np.zeros((8, 8), dtype=int)
    mask[2:5, 1:7] = 1
    inputs = processor(
        images=pictures(), image_mask=mask, text=PROMPTS, generate="image", return_tensors="pt"
    )
    out = generate(model, inputs)
    repainted = torch.tensor(mask).bool().expand(2, 1, 8, 8)
    given = processor(images=pictures(), return_tensors="pt")["pixel_values"]
    assert torch.equal(out.images[~repainted], given[~repainted])
    assert (out.images[repainted] != given[repainted]).float().mean() > 0.9
    for sample, picture in zip(processor.post_process(out), pictures(), strict=True):
        assert np.array_equal(np.asarray(sample.image)[mask == 0], np.asarray(picture)[mask == 0])


def test_a_patch_that_is_known_in_full_is_read(processor, model):
    mask = np.zeros((8, 8), dtype=int)
    mask[:4, :4] = 1
    first, second = pictures()
    changed = np.asarray(first).copy()
    changed[4:, 4:] = np.asarray(second)[4:, 4:]
    outs = [
        generate(
            model,
            processor(images=picture, image_mask=mask, generate="image", return_tensors="pt"),
        )
        for picture in (first, Image.fromarray(changed))
    ]
    assert (outs[0].images - outs[1].images)[..., :4, :4].abs().max() > 1e-3


def test_infill_keeps_given_words(processor, model):
    texts = ["a photo <mask> a one", "the <mask> <mask>"]
    inputs = processor(text=texts, generate="text", return_tensors="pt")
    out = generate(model, inputs)
    known = inputs["text_given"] & inputs["attention_mask"].bool()
    assert torch.equal(out.sequences[known], inputs["input_ids"][known])
    holes = inputs["attention_mask"].bool() & ~inputs["text_given"]
    assert holes.sum(-1).tolist() == [1, 2]
    assert (inputs["input_ids"][holes] == processor.tokenizer.mask_token_id).all()
    assert (out.sequences[holes] != processor.tokenizer.mask_token_id).all()
    assert out.turn_ids is None or not (out.turn_ids > 0).any()
    for sample, beginning in zip(processor.post_process(out), ("a photo", "the"), strict=True):
        assert sample.text.startswith(beginning)


JOINT = {
    "nothing": {},
    "class": {"class_labels": [3, 4]},
    "prompt": {"text": PROMPTS},
    "picture": {"images": pictures()},
    "prompt-and-picture": {"text": PROMPTS, "images": pictures()},
}


@pytest.mark.parametrize("condition", JOINT)
def test_joint(condition, processor, model):
    given = JOINT[condition]
    inputs = processor(**given, generate="joint", return_tensors="pt")
    out = generate(model, inputs)
    count = 2 if given else 1
    assert out.images.shape == (count, 1, 8, 8)
    assert out.sequences.shape == (
        inputs["input_ids"].shape if "text" in given else (count, MAX_TEXT_LENGTH)
    )
    samples = processor.post_process(out)
    assert all(isinstance(s.text, str) and s.image.size == (8, 8) for s in samples)
    expected = PROMPTS if "text" in given else [None] * count
    assert [sample.prompt for sample in samples] == expected
    if "images" in given:  # the new picture, not the one that was given
        known = processor(images=given["images"], return_tensors="pt")["pixel_values"]
        assert (out.images - known).abs().amax((1, 2, 3)).min() > 0.1


def test_several_samples_of_each_item(processor, model, monkeypatch):
    # Which library multiplies depends on how large a batch is: one of them for both.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    inputs = processor(text=PROMPTS, generate="joint", return_tensors="pt")
    out = generate(model, inputs, num_return_sequences=3)
    assert out.images.shape[0] == out.sequences.shape[0] == 6
    samples = processor.post_process(out)
    assert [sample.prompt for sample in samples] == [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3
    assert len({sample.image.tobytes() for sample in samples}) == 6
    by_hand = {name: value[[0, 0, 0, 1, 1, 1]] for name, value in inputs.items()}
    # What is given is read once for all samples here: other sizes, other last digits.
    torch.testing.assert_close(generate(model, by_hand).images, out.images, rtol=0, atol=1e-5)
    monkeypatch.undo()
    torch.testing.assert_close(generate(model, by_hand).images, out.images, rtol=0, atol=1e-5)


def test_of_several_pictures_the_one_that_is_repainted_comes_back(processor, model):
    mask = np.zeros((2, 2, 8, 8), dtype=int)
    mask[:, 0, :4] = 1  # the first of two pictures
    four = pictures(4)
    inputs = processor(
        images=[four[:2], four[2:]], image_mask=mask, generate="image", return_tensors="pt"
    )
    out = generate(model, inputs)
    assert torch.equal(out.images[:, :, 4:], inputs["pixel_values"][:, 0, :, 4:])
    assert out.images[:, :, :4].abs().amin() > 0  # zeros are what was blanked


def test_known_pixels_come_back_exactly_from_a_model_in_bf16(processor, model):
    mask = np.zeros((8, 8), dtype=int)
    mask[:4] = 1
    inputs = processor(images=pictures(), image_mask=mask, generate="image", return_tensors="pt")
    out = generate(copy.deepcopy(model).bfloat16(), inputs)
    assert torch.equal(out.images[:, :, 4:], inputs["pixel_values"][:, :, 4:])
    assert all(sample.image.size == (8, 8) for sample in processor.post_process(out))


# --- regions that `generate` opens itself


OPENED = {
    "text": [{"text": PROMPTS}, {"images": pictures()}, {"text": PROMPTS, "images": pictures()}],
    "image": [{"text": PROMPTS}, {"class_labels": [1, 2]}, {"images": pictures()}],
    "joint": [{"text": PROMPTS}, {"images": pictures()}, {"class_labels": [1, 2]}],
}


@pytest.mark.parametrize(
    ("mode", "given"),
    [(mode, given) for mode, cases in OPENED.items() for given in cases],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_opening_a_region_equals_the_processors(mode, given, processor, model):
    region = {} if mode == "image" else {"max_new_tokens": 4}
    by_processor = processor(**given, generate=mode, **region, return_tensors="pt")
    plain = {"class_labels": torch.tensor(given["class_labels"])} if "class_labels" in given else {}
    if not plain:
        plain = processor(**given, return_tensors="pt")
    expected = generate(model, by_processor)
    out = generate(model, plain, generation_mode=mode, **region)
    assert (out.images is None) == (expected.images is None) == (mode == "text")
    if out.images is not None:
        assert (out.images - expected.images).abs().max() < 1e-5
    assert (out.sequences is None) == (expected.sequences is None) == (mode == "image")
    if out.sequences is not None:
        for sample, other in zip(
            processor.post_process(out), processor.post_process(expected), strict=True
        ):
            assert (sample.text, sample.prompt) == (other.text, other.prompt)


def test_opening_a_region_after_texts_of_different_lengths(processor, model):
    """Each item's region follows its own text, or stands alone where there is none."""
    texts = ["a one", "a photo of a seven", None]
    given = processor(text=texts, images=pictures(3), return_tensors="pt")
    options = {"generation_mode": "text", "max_new_tokens": 4}
    together, final = finish(model, given, seeded(0, 1, 2), **options)
    samples = processor.post_process(together)
    assert [sample.prompt for sample in samples] == texts
    for item, text in enumerate(texts):
        part = {} if text is None else {"text": text}
        alone = processor(**part, images=pictures(3)[item], return_tensors="pt")
        out, latents = finish(model, alone, seeded(item), **options)
        assert processor.post_process(out)[0] == samples[item]
        assert (latents["text"][0, -4:] - final["text"][item, -4:]).abs().max() < 1e-5


def test_turns_of_the_words_come_back(processor, model):
    inputs = processor(text=PROMPTS, return_tensors="pt")
    out = generate(model, inputs, generation_mode="text", max_new_tokens=3)
    assert out.turn_ids.shape == out.sequences.shape
    assert (out.turn_ids[:, -3:] == 1).all()
    known = inputs["attention_mask"].bool()
    assert (out.turn_ids[:, :-3][known] == 0).all()
    assert torch.equal(out.sequences[:, :-3][known], inputs["input_ids"][known])


def test_what_follows_end_is_not_read_as_a_second_text(processor, model):
    """One turn is one text, which `<end>` closes whatever the model wrote behind it."""
    end, words = processor.tokenizer.eos_token_id, ids_of(processor, "a one")
    out = generate(model, processor(generate="text", return_tensors="pt"))
    row = [*words, end, *words] + [0] * MAX_TEXT_LENGTH
    out.sequences = torch.tensor([row[:MAX_TEXT_LENGTH]])
    (sample,) = processor.post_process(out)
    assert sample.text == "a one" and sample.prompt is None


def test_generating_from_nothing(processor, model):
    out = generate(model, {})
    assert out.sequences.shape == (1, MAX_TEXT_LENGTH) and out.images is None
    out = generate(model, {}, generation_mode="joint", max_new_tokens=3)
    assert out.sequences.shape == (1, 3) and out.images.shape == (1, 1, 8, 8)
    by_processor = processor(generate="joint", max_new_tokens=3, return_tensors="pt")
    assert torch.equal(generate(model, by_processor).sequences, out.sequences)


def test_a_region_that_is_there_is_not_joined_by_another(processor, model):
    inputs = processor(images=pictures(), generate="text", max_new_tokens=4, return_tensors="pt")
    out = generate(model, inputs, generation_mode="joint")
    assert out.images is None and out.sequences.shape == (2, 4)


@pytest.mark.parametrize("size", [12, (8, 12), (4, 4)])
def test_pictures_of_another_size(size, processor, model):
    height, width = (size, size) if isinstance(size, int) else size
    inputs = processor(text=PROMPTS, generate="image", image_size=size, return_tensors="pt")
    out = generate(model, inputs)
    assert out.images.shape == (2, 1, height, width)
    assert processor.post_process(out)[0].image.size == (width, height)
    prompt = processor(text=PROMPTS, return_tensors="pt")
    opened = generate(model, prompt, generation_mode="image", image_size=size)
    assert (opened.images - out.images).abs().max() < 1e-5


def test_a_new_picture_is_as_large_as_the_given_one(processor, model):
    inputs = processor(images=pictures(), image_size=12, return_tensors="pt")
    out = generate(model, inputs, generation_mode="image")
    assert out.images.shape == (2, 1, 12, 12)
