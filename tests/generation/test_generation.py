# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`generate`: every task, guidance, solvers, generators, the callback, and what it refuses."""

import copy
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_digits import make_processor
from tiny_model import LATENT, MIXERS, PATCHES, SIDE, WORDS, make_model, mixed_batch

from modeling_mdm import MDMGenerationConfig
from modeling_mdm.solvers import SOLVERS

TEXT = ("input_ids", "attention_mask", "text_given", "turn_ids")
IMAGE = ("pixel_values", "pixel_attention_mask", "image_given")
MAX_TEXT_LENGTH = 14
PROMPTS = ["a photo of a one", "the number seven"]


@pytest.fixture(scope="module")
def processor():
    processor = make_processor()
    processor.max_text_length = MAX_TEXT_LENGTH
    return processor


@pytest.fixture(scope="module")
def model(processor):
    return make_model(
        torch.float32,
        vocab_size=len(processor.tokenizer),
        num_classes=10,
        max_text_length=MAX_TEXT_LENGTH,
        pad_token_id=processor.tokenizer.pad_token_id,
        mask_token_id=processor.tokenizer.mask_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )


@pytest.fixture(scope="module")
def exact():
    """A tiny model in float64, which needs no processor."""
    return make_model()


def pictures(count=2, side=8):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)) for _ in range(count)]


def patch_mask(mask):
    """Patches all of whose pixels a mask (b, 8, 8) holds: (b, 4)."""
    return torch.stack(
        [mask[:, i : i + 4, j : j + 4].all((1, 2)) for i in (0, 4) for j in (0, 4)], 1
    )


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def generate(model, inputs, seed=0, **options):
    """A short quiet run."""
    options = {"num_inference_steps": 2, "show_progress": False, **options}
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    return model.generate(**inputs, **options)


def ids_of(processor, text):
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


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


# --- what comes back


@pytest.mark.parametrize(
    ("solver", "steps", "evaluations"),
    [
        ("heun", 4, 7),
        ("ddim", 4, 4),
        ("ddpm", 4, 4),
        ("dpm_solver_2m", 4, 4),
        ("heun", 1, 1),
        ({"image": "heun", "text": "ddpm"}, 4, 7),
        ({"image": "heun", "text": "ddpm"}, {"image": 2, "text": 5}, 6),
    ],
)
def test_number_of_evaluations(solver, steps, evaluations, exact, monkeypatch):
    calls = record(monkeypatch, exact)
    guided = {"guidance_scale": 2.0, "joint_guidance_scale": 1.5}
    out = generate(exact, mixed_batch(), solver=solver, num_inference_steps=steps, **guided)
    assert out.num_evaluations == evaluations == len(calls)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kernel_backend": "reference"}, "reference"),
        ({"kernel_backend": "torch"}, "torch"),
        ({"mixer": "attention"}, "sdpa"),
    ],
)
def test_the_kernel_that_ran_is_named(changes, expected):
    assert generate(make_model(**changes), mixed_batch()).kernel_backend == expected


def test_confidence(exact):
    batch = mixed_batch()
    out = generate(exact, batch, guidance_scale=1.0)
    real = batch["attention_mask"].bool()
    noisy = real & ~batch["text_given"]
    assert out.confidence["text"].shape == (8, WORDS)
    assert (out.confidence["text"][real & ~noisy] == 1).all()
    assert (out.confidence["text"][~real] == 0).all()
    assert out.confidence["image"].shape == (8, PATCHES)
    given, absent = patch_mask(batch["image_given"]), torch.arange(8)[:, None] == 3
    assert (out.confidence["image"][given & ~absent] == 1).all()
    assert (out.confidence["image"][3] == 0).all()
    written = torch.cat([out.confidence["text"][noisy], out.confidence["image"][~given & ~absent]])
    assert written.min() > 0 and written.max() <= 1 and (written < 1).float().mean() > 0.8


def test_confidence_of_a_word_is_its_probability(exact, monkeypatch):
    logits = {}
    original = exact.denoise

    def denoise(*args, **kwargs):
        out = original(*args, **kwargs)
        logits.update(out.logits)
        return out

    monkeypatch.setattr(exact, "denoise", denoise)
    batch = mixed_batch()
    out = generate(exact, batch, guidance_scale=1.0, use_cache=False)
    expected = logits["text"].softmax(-1).gather(-1, out.sequences[..., None])[..., 0].float()
    noisy = batch["attention_mask"].bool() & ~batch["text_given"]
    assert torch.allclose(out.confidence["text"][noisy], expected[noisy])


def test_confidence_of_a_patch_falls_with_the_score_entropy_of_one_latent_dimension(
    exact, monkeypatch
):
    """exp(-se / d), se from the head's log(1 + se), and no more than 1 where that is below 0."""
    features, model = {}, copy.deepcopy(exact)
    original = model.denoise

    def denoise(*args, **kwargs):
        out = original(*args, **kwargs)
        features.update(out.features)
        return out

    monkeypatch.setattr(model, "denoise", denoise)
    predict = model.score_entropy_head.predict
    predict.bias.data.fill_(0.3)
    batch = mixed_batch()
    out = generate(model, batch, guidance_scale=1.0, use_cache=False)
    predicted = features["image"] @ predict.weight[0] + 0.3
    entropy = predicted.exp() - 1
    assert (entropy > 0.3).any() and (entropy < 0).any()
    expected = torch.where(entropy > 0, torch.exp(-entropy / LATENT), 1.0).float()
    noisy = ~patch_mask(batch["image_given"])
    assert torch.allclose(out.confidence["image"][noisy], expected[noisy])


def test_trajectory(exact):
    batch = mixed_batch()
    steps = {"image": 5, "text": 3}
    out = generate(exact, batch, num_inference_steps=steps, output_trajectory=True)
    assert out.trajectory["image"].shape == (8, 5, 1, SIDE, SIDE)
    assert out.trajectory["text"].shape == (8, 5, WORDS)
    assert torch.equal(out.trajectory["image"][:, -1], out.images)
    assert torch.equal(out.trajectory["text"][:, -1], out.sequences)
    assert not torch.equal(out.trajectory["image"][:, 0], out.images)
    known = batch["image_given"][:, None, None].expand_as(out.trajectory["image"])
    pixels = batch["pixel_values"][:, None].expand_as(out.trajectory["image"])
    assert torch.equal(out.trajectory["image"][known], pixels[known])
    assert generate(exact, batch).trajectory is None


def test_one_modality_gives_a_trajectory_of_one(exact):
    batch = {name: mixed_batch()[name][:1] for name in (*TEXT, *IMAGE)}
    out = generate(exact, batch, output_trajectory=True)
    assert set(out.trajectory) == set(out.confidence) == {"image"}


def test_the_callback_sees_times_and_estimates_and_stops_the_run(exact):
    seen = []

    def stop(info):
        seen.append(info)
        return info.step == 2

    options = {"num_inference_steps": 5, "solver": "ddim", "output_trajectory": True}
    out = generate(exact, mixed_batch(), callback_on_step_end=stop, **options)
    assert [info.step for info in seen] == [0, 1, 2] and seen[0].num_steps == 5
    for info, t in zip(seen, (1, 0.8, 0.6), strict=True):
        assert info.times == {"image": pytest.approx(t), "text": pytest.approx(t)}
        assert info.clean_estimates["image"].shape == (8, PATCHES, LATENT)
        assert info.clean_estimates["text"].shape == (8, WORDS, LATENT)
    assert out.num_evaluations == 3 and out.trajectory["text"].shape == (8, 3, WORDS)
    assert torch.equal(out.trajectory["text"][:, -1], out.sequences)
    assert torch.equal(out.trajectory["image"][:, -1], out.images)
    free = generate(exact, mixed_batch(), callback_on_step_end=lambda info: None, **options)
    assert free.num_evaluations == 5


def test_the_progress_bar_can_be_turned_off(exact, capfd):
    generate(exact, mixed_batch(), show_progress=False)
    assert capfd.readouterr().err == ""
    generate(exact, mixed_batch(), show_progress=True)
    assert "2/2" in capfd.readouterr().err


# --- same seed, same result


def same(first, second):
    return torch.equal(first.images, second.images) and torch.equal(
        first.sequences, second.sequences
    )


def test_a_seed_decides_the_result(exact):
    batch = mixed_batch()
    assert same(generate(exact, batch, seed=4), generate(exact, batch, seed=4))
    assert not same(generate(exact, batch, seed=4), generate(exact, batch, seed=5))
    generator = torch.Generator().manual_seed(4)
    first, second = (generate(exact, batch, generator=generator) for _ in range(2))
    assert same(first, generate(exact, batch, seed=4)) and not same(first, second)


def test_a_list_of_generators_is_one_for_each_item(exact):
    inputs = {"class_labels": torch.tensor([1, 1, 1])}
    options = {"generation_mode": "joint", "num_inference_steps": 3}
    out = generate(exact, inputs, generator=seeded(1, 2, 1), **options)
    assert torch.allclose(out.images[0], out.images[2])
    assert not torch.allclose(out.images[0], out.images[1])
    one = {"class_labels": torch.tensor([1])}
    twice = generate(exact, one, generator=seeded(1, 2), num_return_sequences=2, **options)
    assert torch.allclose(out.images[:2], twice.images)


# --- an item alone equals the same item in any batch


SAMPLERS = {
    "defaults": {"num_inference_steps": 3},
    "deterministic": {
        "num_inference_steps": {"image": 4, "text": 3},
        "solver": {"image": "heun", "text": "ddim"},
        "guidance_scale": {"image": 3.0, "text": 1.5},
    },
    "stochastic": {
        "num_inference_steps": {"image": 2, "text": 5},
        "solver": {"image": "ddpm", "text": "heun"},
        "guidance_scale": 2.0,
        "joint_guidance_scale": {"image": 1.5, "text": 2.0},
    },
    "hard": {
        "num_inference_steps": {"image": 3, "text": 2},
        "solver": {"image": "dpm_solver_2m", "text": "ddpm"},
        "guidance_scale": 2.0,
        "keep": 0.5,
    },
}


def alone(batch, item):
    """One item of a batch without any padding: no alignment, no absent picture, no absent text."""
    one = {name: value[item : item + 1] for name, value in batch.items()}
    length = int(one["attention_mask"].sum())
    for name in TEXT:
        one[name] = one[name][:, :length]
        if not length:
            del one[name]
    if not one["pixel_attention_mask"].any():
        for name in IMAGE:
            del one[name]
    if one["class_labels"] == -1:
        del one["class_labels"]
    return one


def finish(model, inputs, generators, **options):
    seen = []
    out = generate(
        model,
        inputs,
        generator=generators,
        callback_on_step_end=lambda info: seen.append(info.clean_estimates),
        **options,
    )
    return out, seen[-1]


def assert_alone_equals_batched(model, dtype, tolerance, **options):
    batch = mixed_batch(dtype)
    noisy = batch["attention_mask"].bool() & ~batch["text_given"]
    patches = patch_mask(batch["pixel_attention_mask"].bool()) & ~patch_mask(batch["image_given"])
    together, final = finish(model, batch, seeded(*range(8)), **options)
    for item in range(8):
        one = alone(batch, item)
        out, latents = finish(model, one, seeded(item), **options)
        assert ("text" in latents, "image" in latents) == (noisy[item].any(), patches[item].any())
        if "text" in latents:
            length = one["input_ids"].shape[1]
            where = noisy[item, :length]
            error = latents["text"][0] - final["text"][item, :length]
            assert error[where].abs().max() < tolerance, (item, "text")
            assert torch.equal(out.sequences[0], together.sequences[item, :length])
            error = out.confidence["text"][0] - together.confidence["text"][item, :length]
            assert error.abs().max() < max(tolerance, 1e-6)
        if "image" in latents:
            error = latents["image"][0] - final["image"][item]
            assert error[patches[item]].abs().max() < tolerance, (item, "image")
            assert (out.images[0] - together.images[item]).abs().max() < tolerance
            error = out.confidence["image"][0] - together.confidence["image"][item]
            assert error.abs().max() < max(tolerance, 1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_item_alone_equals_the_same_item_in_a_batch(sampler, exact):
    assert_alone_equals_batched(exact, torch.float64, 1e-10, **SAMPLERS[sampler])


def mixers_with_samplers():
    """Every mixer with either sampler; each with one of them in the fast lane."""
    mixers = [name for name in MIXERS if name != "parallel"]
    for index, mixer in enumerate(mixers):
        for place, sampler in enumerate(("deterministic", "stochastic")):
            marks = [] if (index + place) % 2 else [pytest.mark.slow]
            yield pytest.param(mixer, sampler, id=f"{mixer}-{sampler}", marks=marks)


@pytest.mark.parametrize(("mixer", "sampler"), [*mixers_with_samplers()])
def test_an_item_alone_equals_the_same_item_in_a_batch_with_every_mixer(mixer, sampler):
    options = dict(SAMPLERS[sampler])
    if mixer != "attention" and sampler == "stochastic":
        options["keep"] = 0.5
    model = make_model(**MIXERS[mixer])
    assert_alone_equals_batched(model, torch.float64, 1e-10, **options)


@pytest.mark.parametrize(
    "changes",
    [{"self_conditioning": False}, {"kernel_backend": "reference"}],
    ids=str,
)
def test_an_item_alone_equals_the_same_item_in_a_batch_with_every_option(changes):
    model = make_model(**changes)
    assert_alone_equals_batched(model, torch.float64, 1e-10, **SAMPLERS["deterministic"])


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_an_item_alone_equals_the_same_item_in_a_batch_when_words_go_ahead(overlap, exact):
    batch = {name: value[[2, 7, 2]] for name, value in mixed_batch().items()}
    options = {"joint_overlap": overlap, "num_inference_steps": 6, "solver": {"image": "heun"}}
    options["joint_guidance_scale"] = {"image": 3.0}
    together, final = finish(exact, batch, seeded(0, 1, 2), **options)
    for item in range(3):
        out, latents = finish(exact, alone(batch, item), seeded(item), **options)
        assert (latents["image"][0] - final["image"][item]).abs().max() < 1e-10
        assert torch.equal(out.sequences[0], together.sequences[item])


@pytest.mark.parametrize("mixer", MIXERS)
def test_an_item_alone_equals_the_same_item_in_a_batch_in_float32(mixer):
    model = make_model(torch.float32, **MIXERS[mixer])
    sampler = "deterministic" if mixer == "attention" else "hard"
    assert_alone_equals_batched(model, torch.float32, 1e-5, **SAMPLERS[sampler])


@pytest.mark.parametrize("mixer", ["parallel", "cyclic-separate", "attention"])
def test_what_padding_holds_changes_nothing(mixer):
    model = make_model(**MIXERS[mixer])
    batch, other = mixed_batch(), mixed_batch()
    padding = batch["attention_mask"] == 0
    other["input_ids"][padding] = 7
    other["text_given"][padding] = ~batch["text_given"][padding]
    other["turn_ids"][padding] = 3
    absent = batch["pixel_attention_mask"][:, None] == 0
    other["pixel_values"][absent] = -0.5
    other["image_given"][absent[:, 0]] = False
    first, second = generate(model, batch), generate(model, other)
    assert torch.equal(first.sequences, second.sequences)
    present = batch["pixel_attention_mask"].bool().all((1, 2))
    assert (first.images - second.images)[present].abs().max() < 1e-10


# --- guidance


def record(monkeypatch, model):
    """Every evaluation of the network: its arguments, and what it gave."""
    calls, original = [], model.denoise

    def denoise(inputs, candidates):
        arguments = {**vars(inputs), "candidates": candidates}
        copied = {k: dict(v) if isinstance(v, dict) else v for k, v in arguments.items()}
        out = original(inputs, candidates)
        calls.append(SimpleNamespace(**copied, out=out))
        return out

    monkeypatch.setattr(model, "denoise", denoise)
    return calls


def by_hand(model, batch, call, drop_prompt, at_one=None):
    """Logits of words and estimates of patches from one pass of `forward` at the states of a call.

    `forward` adds noise itself, so it is given the noise that leads to these states.
    at_one: the initial noise of a modality that is shown at t = 1 instead.
    """
    count = len(batch["input_ids"])
    z = {g: state[:count] for g, state in call.z_t.items()}
    times = {g: time[:1].expand(count) for g, time in call.times.items()}  # of the first branch
    for g, initial in (at_one or {}).items():
        z[g], times[g] = initial, torch.ones_like(times[g])
    encoded = model.encode_inputs(**batch)
    zeros = {g: torch.zeros_like(state) for g, state in z.items()}
    noise = {}
    for g, state in z.items():
        abar = torch.sigmoid(model.schedules[g].log_snr(times[g]))[:, None, None]
        clean = encoded.content[g].latents  # posterior means, standardised
        noise[g] = (state - abar.sqrt() * clean) / (1 - abar).sqrt()
    with torch.no_grad():
        out = model(
            **batch,
            drop_prompt=torch.full((count,), drop_prompt),
            times=times,
            noise=noise,
            posterior_noise=zeros,
            keep=1.0,
            self_condition=False,
            return_loss=False,
        )
    return {"text": out.logits, "image": out.clean_estimates["image"]}


def mean_of_words(model, logits):
    mean, _ = model.vae.encode(torch.arange(model.config.vocab_size), "text")
    statistics = model.vae.statistics["text"]
    y = (mean - statistics.mean) / (statistics.variance + 1e-6).sqrt()
    return torch.einsum("btv,vd->btd", logits.softmax(-1), y)


def guided_run(monkeypatch, model, batch, **options):
    calls, seen = record(monkeypatch, model), []
    options |= {"num_inference_steps": 3, "use_cache": False}  # all positions in every call
    generate(model, batch, callback_on_step_end=seen.append, **options)
    monkeypatch.undo()
    assert len(calls) == len(seen) == 3
    return list(zip(calls, [info.clean_estimates for info in seen], strict=True))


@pytest.fixture(scope="module")
def forgetful():
    """Without self-conditioning every evaluation can be made again by `forward`."""
    return make_model(self_conditioning=False)


def assert_equal_where_noisy(batch, estimates, expected):
    for g, given, valid in (
        ("text", batch["text_given"], batch["attention_mask"].bool()),
        ("image", *(patch_mask(batch[name].bool()) for name in ("image_given", IMAGE[1]))),
    ):
        error = (estimates[g] - expected[g])[valid & ~given]
        assert error.abs().max() < 1e-6, g  # posterior means are float32


@pytest.mark.parametrize("scales", [{"image": 3.0, "text": 1.5}, {"image": 0.5, "text": 2.0}])
def test_guidance_extrapolates_from_a_pass_without_the_prompt(scales, forgetful, monkeypatch):
    """u + w (c - u): on the clean estimate for patches, on logits for words (section 8)."""
    batch = mixed_batch()
    for call, estimates in guided_run(monkeypatch, forgetful, batch, guidance_scale=scales):
        assert len(call.class_labels) == 16  # both branches in one batch
        c, u = (by_hand(forgetful, batch, call, dropped) for dropped in (False, True))
        unprompted = 2  # joint from nothing: nothing to take away
        guided = {g: u[g] + scales[g] * (c[g] - u[g]) for g in c}
        for g in guided:
            guided[g][unprompted] = c[g][unprompted]
        assert (guided["image"] - c["image"]).abs().max() > 1e-2
        guided["text"] = mean_of_words(forgetful, guided["text"])
        assert_equal_where_noisy(batch, estimates, guided)


def test_guidance_of_one_is_the_conditional_model(forgetful, monkeypatch):
    batch = mixed_batch()
    for call, estimates in guided_run(monkeypatch, forgetful, batch, guidance_scale=1.0):
        assert len(call.class_labels) == 8  # one branch
        c = by_hand(forgetful, batch, call, False)
        c["text"] = mean_of_words(forgetful, c["text"])
        assert_equal_where_noisy(batch, estimates, c)


def test_one_modality_may_be_guided(forgetful, monkeypatch):
    batch, scales = mixed_batch(), {"image": 1.0, "text": 2.0}
    for call, estimates in guided_run(monkeypatch, forgetful, batch, guidance_scale=scales):
        c, u = (by_hand(forgetful, batch, call, dropped) for dropped in (False, True))
        text = u["text"] + 2 * (c["text"] - u["text"])
        text[2] = c["text"][2]
        guided = {"image": c["image"], "text": mean_of_words(forgetful, text)}
        assert_equal_where_noisy(batch, estimates, guided)


def test_without_a_prompt_guidance_needs_no_second_branch(exact, monkeypatch):
    calls = record(monkeypatch, exact)
    generate(exact, {}, generation_mode="joint", guidance_scale=3.0)
    assert {len(call.class_labels) for call in calls} == {1}


def test_joint_guidance_extrapolates_from_a_pass_with_the_other_at_time_one(forgetful, monkeypatch):
    rows = [2, 7]  # both modalities are written
    batch = {name: value[rows] for name, value in mixed_batch().items()}
    scales = {"image": 2.0, "text": 1.5}
    options = {"guidance_scale": 1.0, "joint_guidance_scale": scales}
    run = guided_run(monkeypatch, forgetful, batch, **options)
    initial = {g: state[:2] for g, state in run[0][0].z_t.items()}
    for call, estimates in run:
        assert len(call.class_labels) == 6  # three branches, one batch
        c = by_hand(forgetful, batch, call, False)
        guided = {}
        for g, other in (("image", "text"), ("text", "image")):
            hidden = by_hand(forgetful, batch, call, False, {other: initial[other]})
            guided[g] = hidden[g] + scales[g] * (c[g] - hidden[g])
        guided["text"] = mean_of_words(forgetful, guided["text"])
        assert_equal_where_noisy(batch, estimates, guided)


def test_the_last_clean_estimate_is_fed_back_in_each_branch(exact, monkeypatch):
    calls = record(monkeypatch, exact)
    generate(exact, mixed_batch(), num_inference_steps=3, guidance_scale=2.0)
    assert not any(part.any() for part in (calls[0].estimates or {}).values())
    for before, call in pairwise(calls):
        for g in ("image", "text"):
            assert torch.equal(call.estimates[g], before.out.clean[g])


def test_a_waiting_modality_keeps_what_is_fed_back(exact, monkeypatch):
    """So that an item which writes it alone does not see how long others take."""
    calls = record(monkeypatch, exact)
    generate(exact, mixed_batch(), num_inference_steps={"image": 4, "text": 2}, solver="ddim")
    fed = [(call.estimates or {}).get("text") for call in calls]
    assert all(part is None or not part.any() for part in fed[:2])
    assert torch.equal(fed[2], calls[1].out.clean["text"]) and torch.equal(fed[2], fed[3])


# --- words that go ahead of the picture


@pytest.mark.parametrize("closed", [False, True])
def test_words_that_go_ahead_are_a_prompt_once_they_are_finished(closed):
    """Without any overlap, joint generation is writing a text and then a picture of it."""
    model = make_model()
    options = {"guidance_scale": {"image": 3.0, "text": 1.0}, "joint_overlap": 0.0}

    def write(inputs, mode, steps):
        options["generator"] = seeded(5)
        return generate(model, inputs, generation_mode=mode, num_inference_steps=steps, **options)

    words = write({}, "joint", 6).sequences[0].tolist()
    if closed:  # a text ends with its third word, and what follows is not part of a prompt
        model.config.eos_token_id = words[2]
        words = words[: words.index(words[2]) + 1]
    joint = write({}, "joint", 6)
    given = {"input_ids": torch.tensor([words]), "text_given": torch.ones(1, len(words))}
    picture = write(given, "image", 3)
    assert (joint.images - picture.images).abs().max() < 1e-10
    assert joint.num_evaluations == 6


def test_words_go_ahead_by_what_does_not_overlap(exact):
    seen = []
    options = {"generation_mode": "joint", "joint_overlap": 0.5, "num_inference_steps": 6}
    out = generate(exact, {}, callback_on_step_end=seen.append, **options)
    times = [[round(info.times[g], 3) for info in seen] for g in ("text", "image")]
    assert times == [[1, 0.75, 0.5, 0.25, 0, 0], [1, 1, 1, 0.75, 0.5, 0.25]]
    assert torch.equal(seen[-1].clean_estimates["text"], seen[3].clean_estimates["text"])
    assert out.num_evaluations == 6 and out.confidence["text"].min() > 0


def test_words_go_ahead_only_where_both_are_written(exact):
    """A caption and a picture of a class in one batch have nothing to share."""
    batch = {name: value[[1, 4]] for name, value in mixed_batch().items()}
    assert same(generate(exact, batch, joint_overlap=0.0), generate(exact, batch))


# --- faults


def test_nothing_to_generate_is_a_fault(exact):
    """Where everything is given a region is opened; only a batch of no items leaves nothing."""
    nothing = {"class_labels": torch.zeros(0, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"Nothing to generate.*0 items.*pass at least one"):
        generate(exact, nothing)


OPTIONS = {
    "no steps": ({"num_inference_steps": 0}, "`num_inference_steps` is 0.*at least 1"),
    "steps of one": (
        {"num_inference_steps": {"text": -1}},
        "`num_inference_steps` is -1 for text.*at least 1",
    ),
    "half a step": ({"num_inference_steps": 2.5}, "`num_inference_steps` is 2.5.*integer"),
    "solver": ({"solver": "euler"}, "`solver` is 'euler'.*heun, dpm_solver_2m, ddim, ddpm"),
    "solver of one": ({"solver": {"image": "rk4"}}, "`solver` is 'rk4' for image.*heun"),
    "modality": ({"guidance_scale": {"audio": 2.0}}, "`guidance_scale`.*'audio'.*image.*text"),
    "keyword": ({"temperature": 0.5}, r"temperature=0\.5.*MDMGenerationConfig.*num_inference"),
    "keep none": ({"keep": 0}, r"`keep` is 0.*\(0, 1\]"),
    "keep more": ({"keep": 1.5}, r"`keep` is 1\.5.*\(0, 1\]"),
    "samples": ({"num_return_sequences": 0}, "`num_return_sequences` is 0.*at least 1"),
    "overlap": ({"joint_overlap": 1.5}, r"`joint_overlap` is 1\.5.*\[0, 1\]"),
    "overlap of some": ({"joint_overlap": 0.5}, r"`joint_overlap` is 0\.5.*6 of 8 items.*or use 1"),
    "generators": ({"generator": seeded(0)}, "`generator`.* 1 for 8 items.*pass"),
    "mode": ({"generation_mode": "video"}, "`generation_mode` is 'video'.*text, image, joint"),
}


@pytest.mark.parametrize("fault", OPTIONS)
def test_a_fault_names_the_argument_the_value_and_the_fix(fault, exact):
    options, message = OPTIONS[fault]
    with pytest.raises(ValueError, match=message):
        generate(exact, mixed_batch(), **options)


def test_generators_are_counted_against_all_samples(exact):
    one = {"class_labels": torch.tensor([1])}
    with pytest.raises(ValueError, match=r"`generator`.* 1 for 2 items.*pass"):
        generate(exact, one, generator=seeded(0), num_return_sequences=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0.*at least 1"),
        ({"generation_mode": "image", "image_size": 6}, "`image_size` is .*6.*`patch_size` = 4"),
        ({"generation_mode": "image", "image_size": 0}, "`image_size` is .*0.*`patch_size` = 4"),
    ],
)
def test_a_region_of_an_impossible_size_is_a_fault(options, message, exact):
    with pytest.raises(ValueError, match=message):
        generate(exact, {"class_labels": torch.tensor([1])}, **options)


def test_a_new_picture_of_another_size_than_the_given_one_is_a_fault(processor, model):
    inputs = processor(images=pictures(), return_tensors="pt")
    with pytest.raises(ValueError, match=r"`image_size` is .*12.*8.*"):
        generate(model, inputs, generation_mode="image", image_size=12)


def test_a_model_without_selection_refuses_to_select():
    for changes in ({"use_selection": False}, {"mixer": "attention"}):
        with pytest.raises(ValueError, match=r"`keep` is 0\.5.*1 for a model.*without selection"):
            generate(make_model(**changes), mixed_batch(), keep=0.5)


@pytest.mark.parametrize("changes", [{"num_null_tokens": 0}, {"null_prompt_probability": 0.0}])
def test_a_model_without_a_null_prompt_refuses_guidance_and_does_without(changes):
    model = make_model(**changes)
    for scale in (2.0, {"image": 2.0}, {"text": 0.5}):
        with pytest.raises(ValueError, match=r"`guidance_scale` is .*null prompt.*use 1"):
            generate(model, mixed_batch(), guidance_scale=scale)
    model.generation_config.guidance_scale = 2.0
    with pytest.raises(ValueError, match=r"`guidance_scale` is 2\.0.*null prompt.*use 1"):
        generate(model, mixed_batch())
    model.generation_config.guidance_scale = None
    assert same(generate(model, mixed_batch()), generate(model, mixed_batch(), guidance_scale=1.0))


def test_inputs_are_checked_as_in_forward(exact):
    batch = mixed_batch()
    batch["class_labels"] = torch.full((8,), 99)
    with pytest.raises(ValueError, match=r"`class_labels`.*99"):
        generate(exact, batch)


# --- defaults: keywords before the configuration before the class


def test_defaults_are_those_of_the_documentation(exact, monkeypatch):
    calls, seen = record(monkeypatch, exact), []
    batch = {name: value[7:] for name, value in mixed_batch().items()}
    out = exact.generate(**batch, callback_on_step_end=seen.append, generator=seeded(7))
    assert out.num_evaluations == len(seen) == 30 and len(calls[0].class_labels) == 2
    monkeypatch.undo()
    explicit = generate(
        exact,
        batch,
        generator=seeded(7),
        num_inference_steps=30,
        guidance_scale={"image": 2.0, "text": 1.0},
        joint_guidance_scale=1.0,
        solver={"image": "dpm_solver_2m", "text": "ddpm"},
        keep=1.0,
        num_return_sequences=1,
    )
    assert same(out, explicit)


def test_keywords_come_before_the_configuration(exact):
    config = MDMGenerationConfig(
        num_inference_steps={"image": 3},
        guidance_scale={"image": 3.0, "text": 1.5},
        solver="ddim",
        show_progress=False,
    )
    batch = mixed_batch()

    def run(**options):
        return exact.generate(**batch, generator=seeded(*range(8)), **options)

    configured = run(generation_config=config, num_inference_steps={"text": 2})
    explicit = run(
        num_inference_steps={"image": 3, "text": 2},
        guidance_scale={"image": 3.0, "text": 1.5},
        solver="ddim",
        show_progress=False,
    )
    assert same(configured, explicit) and configured.num_evaluations == 3
    changed = run(
        generation_config=config,
        num_inference_steps=2,
        guidance_scale={"image": 1.0},
        solver="ddpm",
    )
    explicit = run(
        num_inference_steps=2,
        guidance_scale={"image": 1.0, "text": 1.5},
        solver="ddpm",
        show_progress=False,
    )
    assert same(changed, explicit) and changed.num_evaluations == 2


def test_a_configuration_that_names_one_modality_leaves_the_other_at_its_default(exact):
    config = MDMGenerationConfig(solver={"image": "ddim"}, show_progress=False)
    options = {"num_inference_steps": 2, "generator": seeded(*range(8))}
    out = exact.generate(**mixed_batch(), generation_config=config, **options)
    options["generator"] = seeded(*range(8))
    solver = {"image": "ddim", "text": "ddpm"}
    assert same(out, exact.generate(**mixed_batch(), solver=solver, **options))


def test_what_transformers_pipelines_pass_along_is_accepted(processor, model):
    inputs = processor(images=pictures(), return_tensors="pt")
    out = generate(model, inputs, max_new_tokens=4, pad_token_id=0, eos_token_id=3, do_sample=True)
    assert out.sequences.shape == (2, 4)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_runs_with_one_step(solver, exact):
    out = generate(exact, mixed_batch(), solver=solver, num_inference_steps=1)
    assert out.num_evaluations == 1 and out.images.isfinite().all()
