# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Flops of a training step are torch's own count of the real one, and MFU is made of them."""

from dataclasses import replace

import pytest
import torch
from tiny_model import tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling_mdm import MDMForJointGeneration
from modeling_mdm.planning.flops import Batch, sampling_flops, step_flops
from modeling_mdm.planning.operations import codes_of
from modeling_mdm.planning.rehearsal import enable_checkpointing

WIDER = {"kernel_backend": "torch", "hidden_size": 64, "state_size": 16, "head_dim": 32}
# What changes of the tiny model, what is read, whether it estimates twice and drops prompts.
CASES = {
    "parallel scans": ({}, Batch(2, 11, 16), True),
    "cyclic scans, many words": (
        {"scan_mode": "cyclic", "num_hidden_layers": 4},
        Batch(2, 100, 16),
        False,
    ),
    "separate projections": ({"scan_projections": "separate"}, Batch(3, 7, 64), True),
    "few scans": ({"image_scans": [1, 2], "text_scans": [1]}, Batch(1, 40, 9), False),
    "Transformer": ({"mixer": "attention"}, Batch(2, 30, 36), True),
    "mode head": ({"use_mode_head": True, "vocab_size": 300}, Batch(2, 30, 36), False),
    "trajectory": (
        {"se_candidates": "trajectory", "latent_gradient_scale": 0.5},
        Batch(2, 30, 36),
        True,
    ),
    "pictures, one chunk, assembled": (
        {"image_decoder_layers": 2, "chunk_size": 64},
        Batch(2, 0, 36),
        False,
    ),
    "words, one chunk": ({"chunk_size": 64}, Batch(2, 50, 0), False),
    "large VAE": ({"vae_hidden_size": 128, "vocab_size": 500}, Batch(2, 20, 16), True),
    "conditioned": (
        {"pooled_conditioning": True, "place_conditioning": True, "latent_gradient_scale": 0.5},
        Batch(4, 20, 16),
        False,
    ),
    "no self-conditioning": ({"self_conditioning": False}, Batch(4, 20, 16), False),
}


def inputs_of(config, batch):
    inputs = {}
    if batch.words:
        inputs["input_ids"] = torch.full((batch.items, batch.words), 5)
    if batch.patches:
        side = round(batch.patches**0.5) * config.patch_size
        inputs["pixel_values"] = torch.zeros(batch.items, config.num_channels, side, side)
    return inputs


def counted_by_torch(config, batch, twice, checkpointing=False, again=None):
    """Flops of a real step: torch counts no product by oneDNN, and attention as two products."""
    model = MDMForJointGeneration(config).train()
    if checkpointing:
        enable_checkpointing(model)
    for layer, is_again in zip(model.decoder.layers, again or (), strict=False):
        layer.gradient_checkpointing = is_again
    dropped = torch.full((batch.items,), twice)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(
            **inputs_of(config, batch), self_condition=twice, keep=1.0, drop_prompt=dropped
        )
        forward = counter.get_total_flops()
        output.loss.backward()
    return forward, counter.get_total_flops()


@pytest.fixture
def without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.mark.parametrize("case", CASES)
def test_flops_are_torchs(case, without_onednn):
    changes, batch, twice = CASES[case]
    config = tiny_config(**{**WIDER, **changes})
    forward, total = counted_by_torch(config, batch, twice)
    nulls = config.num_null_tokens if twice else 0
    counted = step_flops(config, batch, num_null=nulls, self_conditioned=float(twice))
    before = counted.forward + counted.self_conditioning + counted.mode
    assert before == pytest.approx(forward, rel=0.02)
    assert counted.model == counted.total == pytest.approx(total, rel=0.02)


def test_checkpointing_repeats_the_blocks(without_onednn):
    config, batch = tiny_config(**WIDER), Batch(2, 20, 16)
    _, total = counted_by_torch(config, batch, True, checkpointing=True)
    nulls = config.num_null_tokens
    found = step_flops(config, batch, nulls, self_conditioned=1.0, checkpointing=True)
    assert found.total == pytest.approx(total, rel=0.02)
    plain = step_flops(config, batch, nulls, self_conditioned=1.0)
    assert found.model == plain.total and found.recomputed > 0


def test_checkpointing_repeats_a_share_of_the_blocks(without_onednn):
    config, batch = tiny_config(**WIDER, num_hidden_layers=4), Batch(2, 20, 16)
    _, plain = counted_by_torch(config, batch, False)
    _, total = counted_by_torch(config, batch, False, True, [False, False, False, True])
    found = step_flops(config, batch, 0, self_conditioned=0.0, checkpointing=0.25)
    assert found.recomputed == pytest.approx(total - plain, rel=0.05)


def test_what_training_draws_counts_by_how_often_it_does():
    config, batch = tiny_config(), Batch(2, 11, 16)
    found = step_flops(config, batch)
    always = step_flops(config, batch, self_conditioned=1.0)
    assert found.self_conditioning == always.self_conditioning / 2 > 0
    without = step_flops(config, batch, num_null=0)
    assert found.dropped_prompts == pytest.approx(found.total - without.total) and (
        without.dropped_prompts == 0
    )
    never = tiny_config(null_prompt_probability=0.0)
    assert step_flops(never, batch).dropped_prompts == 0


def test_guidance_evaluates_every_item_twice():
    config, batch = tiny_config(num_null_tokens=0), Batch(3, 11, 16)
    assert sampling_flops(config, batch, 2) == 2 * sampling_flops(config, batch, 1)


def test_the_vq_vae_is_counted_for_every_item():
    janus = {
        "model_type": "janus_vqgan", "num_patches": 2, "channel_multiplier": [1, 1, 1],
        "base_channels": 32, "num_embeddings": 40, "embed_dim": 8, "z_channels": 16,
        "latent_channels": 16,
    }  # fmt: skip
    config = tiny_config(vq_config=janus, num_channels=3)
    assert codes_of(config) == 40
    one, two = (step_flops(config, Batch(items, 4, 16)) for items in (1, 2))
    assert two.vq == 2 * one.vq > 0
    assert step_flops(config, Batch(2, 4, 16), frozen=0.0).total == two.total - two.vq
    assert step_flops(config, Batch(2, 4, 0)).vq == 0


def test_a_vq_vae_that_the_plan_does_not_know_is_named_with_the_fix():
    config = tiny_config(vq_config={"model_type": "chameleon"}, num_channels=3)
    with pytest.raises(ValueError, match=r"'chameleon'.*janus_vqgan, emu3_vqgan.*vq_config=null"):
        step_flops(config, Batch(1, 4, 4))


def test_the_given_part_is_read_once_more_for_the_mode_head():
    config, batch = tiny_config(use_mode_head=True), Batch(2, 20, 16)
    more = step_flops(config, replace(batch, given_words=10, given_patches=16))
    assert more.mode > 2 * step_flops(config, batch).mode
