# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Clocks, coordinates, statistics and logarithms keep float32, whatever type the weights have."""

import copy

import pytest
import torch
from tiny_model import every_random_source, make_model, mixed_batch, tiny_config
from torch import nn

from modeling_mdm import MDMForJointGeneration
from modeling_mdm.decoder import PlaceEmbedding, TimeEmbedding
from modeling_mdm.precision import KeepsPrecision, cast_parameters_alike
from modeling_mdm.solvers import SOLVERS, sampling_times
from modeling_mdm.vae import LatentStatistics

HALF = [torch.bfloat16, torch.float16]
# Of an embedding whose waves and weights are rounded to this type.
ROUNDING = {torch.bfloat16: 6e-3, torch.float16: 8e-4, torch.float32: 1e-4, torch.float64: 1e-12}
EXACT = ("A_log", "delta_bias", "mean", "variance")

casts = {
    "to": lambda model, dtype: model.to(dtype),
    "half-or-bfloat16": lambda model, dtype: (
        model.half() if dtype == torch.float16 else model.bfloat16()
    ),
    "to-like": lambda model, dtype: model.to(torch.zeros(1, dtype=dtype)),
    "copy": lambda model, dtype: copy.deepcopy(model).to(dtype),
}


def waves(values, size):
    """Wavelengths from 2 pi to 2 pi 10000, in float64."""
    half = size // 2
    angles = values.double()[..., None] / 10000 ** (torch.arange(half).double() / (half - 1))
    return torch.cat([angles.sin(), angles.cos()], -1)


def linear(layer, x):
    return x @ layer.weight.double().T + layer.bias.double()


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_times_are_embedded_as_in_float64(dtype):
    torch.manual_seed(0)
    embedding = TimeEmbedding(48).to(dtype)
    with torch.no_grad():
        embedding.kind.normal_(std=0.02)
        times = torch.rand(200, 3, dtype=torch.float64)
        hidden = linear(embedding.in_proj, waves(times * 1000, 256))
        expected = linear(embedding.out_proj, hidden * hidden.sigmoid()) + embedding.kind.double()
        found = embedding(times.to(torch.promote_types(dtype, torch.float32)))
    assert found.dtype == dtype
    assert relative_error(found, expected) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_places_are_embedded_as_in_float64_and_each_differs(dtype):
    torch.manual_seed(0)
    embedding = PlaceEmbedding(1, 48).to(dtype)
    place = torch.arange(16384)[None]
    with torch.no_grad():
        found = embedding(place, torch.full_like(place, 3))
        coordinates = torch.stack([place, torch.full_like(place, 3)], -1)
        expected = linear(embedding.proj, waves(coordinates, 64).flatten(-2))
    assert found.dtype == dtype
    assert relative_error(found, expected) < ROUNDING[dtype]
    for count in (1024, 16384):
        assert len(found[0, :count].unique(dim=0)) == count


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("cast", casts.values(), ids=casts)
@pytest.mark.parametrize("mixer", ["mamba2", "attention"])
def test_a_cast_leaves_what_rounding_would_ruin(dtype, cast, mixer):
    model = make_model(torch.float32, mixer=mixer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model = cast(model, dtype)
    for name, value in model.state_dict().items():
        if name.endswith(EXACT):
            assert value.dtype == torch.float32 and torch.equal(value, before[name]), name
        elif value.is_floating_point():
            assert value.dtype == dtype, name
    again = model.double().to(dtype).float().state_dict()
    assert all(torch.equal(again[name], before[name]) for name in again if name.endswith(EXACT))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_loading_and_making_a_model_in_a_short_type_do_so_too(dtype, tmp_path):
    model = make_model(torch.float32)
    model.save_pretrained(tmp_path)
    loaded = MDMForJointGeneration.from_pretrained(tmp_path, dtype=dtype)
    made = MDMForJointGeneration._from_config(tiny_config(), dtype=dtype)
    for name, value in model.state_dict().items():
        if name.endswith(EXACT):
            assert torch.equal(loaded.state_dict()[name], value), name
            assert made.state_dict()[name].dtype == torch.float32, name


def test_a_float64_model_stays_float64():
    model = make_model(torch.float32).to(torch.float64)
    dtypes = {p.dtype for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()}
    assert dtypes == {torch.float64}
    mean, logvar = model.vae.encode(torch.arange(5), "text")
    output = model.vae.posterior(model.vae.encoder(model.vae.embed_tokens(torch.arange(5))))
    assert torch.equal(torch.cat([mean, logvar], -1), output)  # without a detour by float32


def test_gradients_follow_the_type_of_what_they_belong_to():
    class Layer(KeepsPrecision, nn.Module):
        precise = ("exact",)

        def __init__(self):
            super().__init__()
            self.exact, self.rough = nn.Parameter(torch.rand(2)), nn.Parameter(torch.rand(2))

    layer = Layer()
    (layer.exact + layer.rough).sum().backward()
    layer.bfloat16()
    assert layer.exact.dtype == layer.exact.grad.dtype == torch.float32
    assert layer.rough.dtype == layer.rough.grad.dtype == torch.bfloat16
    assert layer.to("meta").exact.dtype == torch.float32


def test_for_deepspeed_a_cast_reaches_every_parameter_but_no_statistics():
    model = make_model(torch.float32)
    cast_parameters_alike(model)
    model.bfloat16()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, buffer in model.named_buffers():
        assert buffer.dtype == (torch.long if name.endswith("updates") else torch.float32)


@pytest.mark.parametrize("changes", [{}, {"scan_projections": "separate", "text_scans": [1]}])
def test_the_recurrence_is_computed_in_float32_where_its_parameters_are_short(changes):
    """As by FSDP's mixed precision: numbers that bfloat16 holds, in either type."""
    model, found = make_model(torch.float32, **changes), []
    for dtype in (torch.bfloat16, torch.float32):
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", "delta_bias")):
                parameter.data = parameter.data.bfloat16().to(dtype)
        torch.manual_seed(0)
        found.append(model(**mixed_batch(torch.float32)).logits)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_statistics_of_a_cast_model_do_not_stall(dtype):
    """Steps of a hundredth of the way, which a short type rounds away near the end."""
    statistics = LatentStatistics(3, 0.01).to(dtype)
    mean, variance = torch.zeros(3).double(), torch.ones(3).double()
    draw = torch.Generator().manual_seed(0)
    for update in range(500):
        latents = torch.randn(2, 9, 3, generator=draw) * 2 + 5
        statistics.update(latents.to(dtype), torch.ones(2, 9).bool())
        seen = latents.to(dtype).double().flatten(0, 1)
        rate = max(1 / (update + 1), 0.01)
        mean += rate * (seen.mean(0) - mean)
        variance += rate * (seen.var(0, correction=0) - variance)
    torch.testing.assert_close(statistics.mean.double(), mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(statistics.variance.double(), variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_steps", [300, 1000, 5000])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_sampling_times_of_any_type_are_the_grid(num_steps, dtype):
    times = sampling_times(num_steps, dtype=dtype)
    exact = 1 - torch.arange(num_steps + 1).double() / num_steps
    assert (times.double() - exact).abs().max() < 1e-6
    assert (times.diff() < 0).all()


@pytest.mark.parametrize("num_steps", [300, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_cast_model_takes_many_steps_on_the_float32_clock(solver, num_steps, monkeypatch):
    model = make_model(torch.float32, num_hidden_layers=1, hidden_size=16).bfloat16()
    seen = []

    def denoise(inputs, candidates):
        z_t, times = inputs.z_t, inputs.times
        seen.append(float(times["image"]))
        assert times["image"].dtype == z_t["image"].dtype == torch.float32
        clean = {g: z * 0.5 for g, z in z_t.items()}
        features = {g: z.new_zeros(*z.shape[:2], 16).bfloat16() for g, z in z_t.items()}
        return type("Denoised", (), {"clean": clean, "logits": {}, "features": features})

    monkeypatch.setattr(model, "denoise", denoise)
    out = model.generate(
        generation_mode="image",
        solver=solver,
        num_inference_steps=num_steps,
        show_progress=False,
        generator=torch.Generator().manual_seed(0),
    )
    assert out.images.isfinite().all()
    exact = torch.tensor([1 - step / num_steps for step in range(num_steps)])
    visited = torch.tensor(sorted(set(seen), reverse=True))
    torch.testing.assert_close(visited, exact, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_cast_model_is_sampled_in_300_steps(solver):
    model = make_model(torch.float32, num_hidden_layers=1, hidden_size=16).bfloat16()
    arguments = {"solver": solver, "num_inference_steps": 300, "show_progress": False}
    out = model.generate(generation_mode="image", image_size=4, guidance_scale=1, **arguments)
    assert out.images.isfinite().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_cast_model_gives_the_loss_of_the_float32_one(dtype):
    batch = mixed_batch(torch.float32)
    model = make_model(torch.float32)
    torch.manual_seed(0)
    expected = model(**batch)
    torch.manual_seed(0)
    found = model.to(dtype)(**batch)
    for name in ("loss_se_text", "loss_rec_text", "loss_rec_image", "loss_kl"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=0.05), name
    assert found.clean_estimates["image"].dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_times_that_are_passed_in_a_short_type_are_computed_with_in_float32(dtype):
    model = make_model(torch.float32)
    batch, times = mixed_batch(torch.float32), torch.tensor([0.999] * 8)
    found = {}
    for passed in (times.to(dtype), times.to(dtype).float()):
        torch.manual_seed(0)
        out = model(**batch, times={"text": passed, "image": passed})
        found[passed.dtype] = out.loss_se
    assert torch.equal(found[dtype], found[torch.float32])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_former_times_are_computed_in_float32_where_the_noise_is_short(dtype):
    model = make_model(torch.float32, se_candidates="trajectory", num_trajectory_candidates=3)
    sources, found = every_random_source(8, torch.float32), []
    for passed in (dtype, torch.float32):
        noise = {g: value.to(dtype).to(passed) for g, value in sources["candidate_noise"].items()}
        out = model(**mixed_batch(torch.float32), **{**sources, "candidate_noise": noise})
        found.append(out.loss_se.item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
