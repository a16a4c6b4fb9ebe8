# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Guidance as a function; `torch.compile` and the CUDA graph: other ways to run evaluations."""

import copy

import pytest
import torch
from tiny_model import MIXERS, make_model, mixed_batch

from modeling_mdm.generation_guidance import guide

STEPS = 6


def run(model, batch, **options):
    options = {"num_inference_steps": STEPS, "show_progress": False, **options}
    generator = [torch.Generator().manual_seed(seed) for seed in range(len(batch["input_ids"]))]
    return model.generate(**batch, generator=generator, **options)


def test_guidance_extrapolates_from_every_weaker_branch_by_its_own_scale():
    draw = torch.Generator().manual_seed(0)
    names = ("conditional", "unconditional", "image", "text")
    outputs = {name: torch.randn(2, 3, 5, generator=draw, dtype=torch.float64) for name in names}
    strong, weak, alone = outputs["conditional"], outputs["unconditional"], outputs["image"]
    guided = guide(outputs, {"unconditional": 3.0, "image": 1.5})
    assert (guided - (3.5 * strong - 2 * weak - 0.5 * alone)).abs().max() < 1e-12
    # Classifier-free guidance as it is usually written, and off at 1 or without the branch.
    free = weak + 2.5 * (strong - weak)
    assert (guide(outputs, {"unconditional": 2.5, "text": 1.0}) - free).abs().max() < 1e-12
    outputs["unconditional"] = torch.full_like(weak, float("nan"))
    assert torch.equal(guide(outputs, {"unconditional": 1.0}), strong)
    del outputs["unconditional"]
    assert torch.equal(guide(outputs, {"unconditional": 3.0}), strong)


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


@pytest.mark.slow
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
