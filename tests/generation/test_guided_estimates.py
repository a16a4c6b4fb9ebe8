# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Guidance and self-conditioning, each evaluation made again by `forward`."""

from itertools import pairwise

import pytest
import torch
from tiny_generation import IMAGE, generate, patch_mask, record
from tiny_model import make_model, mixed_batch


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
