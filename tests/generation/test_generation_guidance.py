# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adaptive stopping, `torch.compile` and the CUDA graph: other ways to run the same evaluations."""

import copy

import pytest
import torch
from tiny_model import MIXERS, make_model, mixed_batch

STEPS = 6


def run(model, batch, **options):
    options = {"num_inference_steps": STEPS, "show_progress": False, **options}
    generator = [torch.Generator().manual_seed(seed) for seed in range(len(batch["input_ids"]))]
    return model.generate(**batch, generator=generator, **options)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["parallel", "attention"])
def test_compiled_evaluations_give_the_same_result(mixer):
    model, batch = make_model(torch.float32, **MIXERS[mixer]), mixed_batch(torch.float32)
    plain = run(model, batch, guidance_scale=2.0)
    compiled = run(model, batch, guidance_scale=2.0, compile=True)
    assert (plain.images - compiled.images).abs().max() < 1e-4
    assert torch.equal(plain.sequences, compiled.sequences)
    chosen = ["sdpa"] * 2 if mixer == "attention" else ["quadratic", "torch"]
    assert [plain.kernel_backend, compiled.kernel_backend] == chosen


def test_what_was_compiled_serves_the_next_call_and_a_copy_computes_with_its_own_weights():
    model, batch = make_model(torch.float32), mixed_batch(torch.float32)
    options = {"guidance_scale": 1.0, "compile": True, "num_inference_steps": 2}
    run(model, batch, **options)
    frames = dict(torch._dynamo.utils.counters["frames"])
    run(model, batch, **options)
    assert dict(torch._dynamo.utils.counters["frames"]) == frames  # nothing was compiled anew
    other = copy.deepcopy(model)
    other.image_head.bias.data += 1.0
    plain = run(other, batch, **{**options, "compile": False})
    assert (run(other, batch, **options).images - plain.images).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_cuda_graph_gives_the_same_result(mixer):
    model = make_model(torch.float32, **MIXERS[mixer]).cuda()
    batch = {name: value.cuda() for name, value in mixed_batch(torch.float32).items()}
    plain = run(model, batch, guidance_scale=2.0, cuda_graph=False)
    graphed = run(model, batch, guidance_scale=2.0)
    assert (plain.images - graphed.images).abs().max() < 1e-4
    assert torch.equal(plain.sequences, graphed.sequences)
