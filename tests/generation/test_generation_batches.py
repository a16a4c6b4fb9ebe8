# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""An item alone equals the same item in any batch, and padding changes nothing."""

import pytest
import torch
from tiny_generation import IMAGE, TEXT, finish, generate, patch_mask, seeded
from tiny_model import MIXERS, make_model, mixed_batch

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
    "restarts": {
        "num_inference_steps": {"image": 6, "text": 4},
        "solver": {"image": "heun", "text": "ddpm"},
        "guidance_scale": 2.0,
        "guidance_window": {"image": (-5.0, -1.0), "text": (-8.0, 3.0)},
        "num_restarts": 2,
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
    [{"self_conditioning": False}, {"kernel_backend": "reference"}, {"image_decoder_layers": 2}],
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
