# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a plan says of memory is what real objects hold, and a real step at its peak."""

from dataclasses import replace

import pytest
import torch
from tiny_model import MIXERS, tiny_config
from torch import nn

from benchmarks.timing import peak_memory
from modeling_mdm import MDMConfig, MDMForJointGeneration
from modeling_mdm.planning.flops import Batch
from modeling_mdm.planning.mesh import Mesh
from modeling_mdm.planning.optimizers import OPTIMIZERS, make_optimizer
from modeling_mdm.planning.rehearsal import Setting, enable_checkpointing, rehearse, run_step
from modeling_mdm.planning.spread import evenly_spread
from modeling_mdm.planning.states import count_states, model_sizes, optimizer_bytes
from modeling_mdm.training.ema import ExponentialMovingAverage

CPU = torch.device("cpu")


def nbytes(tensors):
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


# --- what is held all the time ---


@pytest.mark.parametrize("mixer", MIXERS)
def test_weights_and_average_are_those_of_the_model(mixer):
    config = tiny_config(**MIXERS[mixer], use_mode_head=True, image_decoder_layers=1)
    model, states = MDMForJointGeneration(config), count_states(model_sizes(config), config)
    assert states.weights == nbytes([*model.parameters(), *model.buffers()])
    assert states.average == nbytes(ExponentialMovingAverage(model).averages.values())
    assert states.gradients == nbytes(model.parameters())
    assert states.gathered == states.reducing == 0
    assert count_states(model_sizes(config), config, average=False).average == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_the_optimizer_are_those_of_the_real_one(name):
    config = tiny_config()
    learning = list(MDMForJointGeneration(config).parameters())
    optimizer = make_optimizer(name, learning)
    for parameter in learning:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    real = nbytes(leaf for state in optimizer.state.values() for leaf in state.values())
    assert optimizer_bytes(name, model_sizes(config).parameters) == real


def test_an_unknown_optimizer_is_named_with_the_fix():
    with pytest.raises(ValueError, match=r"optim='lomo'.*name one of adamw_torch"):
        optimizer_bytes("lomo", [])


def test_a_frozen_vq_vae_has_neither_gradients_nor_states():
    vq = {"model_type": "janus_vqgan", "num_patches": 2, "channel_multiplier": [1, 1, 1]}
    vq |= {"base_channels": 32, "num_embeddings": 16, "embed_dim": 4, "latent_channels": 32}
    config = tiny_config(vq_config=vq, num_channels=3)
    model, sizes = MDMForJointGeneration(config), model_sizes(config)
    learning = [p for p in model.parameters() if p.requires_grad]
    states = count_states(sizes, config, optimizer="sgd")
    assert states.gradients == nbytes(learning) < nbytes(model.parameters())
    assert sizes.numel - sizes.learning == sum(p.numel() for p in model.vq.parameters())
    assert states.optimizer == 0


@pytest.mark.parametrize("shards", [2, 3, 8])
def test_split_weights_are_parts_along_the_first_axis(shards):
    config = tiny_config()
    sizes = model_sizes(config)
    states = count_states(sizes, config, Mesh(shards, 8, "fsdp2", shards))
    real = [
        torch.empty(one.shape, device="meta").chunk(shards)[0].numel() for one in sizes.parameters
    ]
    assert states.weights == 4 * sum(real) + sizes.buffers
    assert states.gradients == states.average == 4 * sum(real)
    blocks = [p for n, p in _parameters(config) if n.startswith("decoder.layers.")]
    others = [p for n, p in _parameters(config) if not n.startswith("decoder.layers.")]
    whole = 4 * (sum(p.numel() for p in others) + sum(p.numel() for p in blocks))  # two blocks
    assert states.gathered == states.reducing == whole


def _parameters(config):
    with torch.device("meta"):
        return list(MDMForJointGeneration(config).named_parameters())


@pytest.mark.parametrize("projections", ["shared", "separate"])
def test_tensor_parallel_blocks_are_those_of_a_model_with_fewer_heads(projections):
    wide = tiny_config(expand=4, scan_projections=projections)
    narrow = tiny_config(expand=1, scan_projections=projections)
    found = count_states(model_sizes(wide), wide, Mesh(4, 8, "ddp", 1, tensor=4))
    alone = count_states(model_sizes(narrow), narrow)
    assert (found.weights, found.gradients) == (alone.weights, alone.gradients)


def test_ddp_adds_gradients_up_in_buckets():
    config = tiny_config()
    sizes = model_sizes(config)
    alone, together = (count_states(sizes, config, Mesh(n, 8)) for n in (1, 4))
    assert together.reducing == together.gradients == alone.gradients
    assert together.weights == alone.weights and alone.reducing == 0


# --- what a step holds ---


def real_peak(config, batch, setting):
    """Most bytes that torch's allocator held in a second step on this CPU."""
    torch.manual_seed(0)
    model = MDMForJointGeneration(config).train()
    if setting.checkpointing:
        enable_checkpointing(model)
        chosen = evenly_spread(config.num_hidden_layers, setting.checkpointed_blocks)
        for layer, again in zip(model.decoder.layers, chosen, strict=True):
            layer.gradient_checkpointing = again
    inputs = {"self_condition": setting.self_conditioned, "keep": setting.keep}
    inputs["drop_prompt"] = torch.ones(batch.items, dtype=torch.bool)
    if batch.words:
        inputs["input_ids"] = torch.full((batch.items, batch.words), 5)
    if batch.patches:
        side = round(batch.patches**0.5) * config.patch_size
        inputs["pixel_values"] = torch.zeros(batch.items, config.num_channels, side, side)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(setting.optimizer, learning)

    def step():
        model(**inputs).loss.backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    return peak_memory(step, CPU)


def on_cpu(**changes):
    return Setting(**{"device": "cpu", "compute": "float32", "optimizer": "adamw_torch", **changes})


def preset(name):
    return MDMConfig.from_pretrained(f"configuration/{name}")


DEEP = {"hidden_size": 64, "num_hidden_layers": 6}


def test_the_peak_of_a_step_is_the_real_one():
    config = tiny_config(kernel_backend="torch", hidden_size=64)
    batch, setting = Batch(2, 30, 36), on_cpu()
    found = rehearse(config, batch, setting).peak()
    assert found == pytest.approx(real_peak(config, batch, setting), rel=0.1)


SLOW = {
    "digits": (lambda: preset("mdm-digits"), Batch(16, 12, 16), on_cpu()),
    "fashion": (lambda: preset("mdm-fashion"), Batch(4, 12, 16), on_cpu()),
    "emoji": (lambda: preset("mdm-emoji"), Batch(2, 24, 16), on_cpu(checkpointing=True)),
    "plain scans": (
        lambda: tiny_config(kernel_backend="torch", **DEEP),
        Batch(2, 100, 64),
        on_cpu(self_conditioned=False),
    ),
    "checkpointed": (lambda: tiny_config(**DEEP), Batch(2, 100, 64), on_cpu(checkpointing=True)),
    "some checkpointed": (
        lambda: tiny_config(**{**DEEP, "num_hidden_layers": 12}),
        Batch(2, 100, 64),
        on_cpu(checkpointing=True, checkpointed_blocks=0.3),
    ),
    "cyclic, half checkpointed": (
        lambda: tiny_config(scan_mode="cyclic", **{**DEEP, "num_hidden_layers": 15}),
        Batch(2, 60, 64),
        on_cpu(checkpointing=True, checkpointed_blocks=0.5),
    ),
    "Transformer, most checkpointed": (
        lambda: tiny_config(mixer="attention", **{**DEEP, "num_hidden_layers": 8}),
        Batch(4, 30, 64),
        on_cpu(checkpointing=True, checkpointed_blocks=0.75),
    ),
    "one dense matrix": (lambda: tiny_config(**DEEP), Batch(4, 10, 64), on_cpu(keep=1.0)),
    "Transformer": (lambda: tiny_config(mixer="attention", **DEEP), Batch(4, 30, 64), on_cpu()),
    "separate": (
        lambda: tiny_config(scan_projections="separate", **DEEP),
        Batch(2, 0, 256),
        on_cpu(optimizer="sgd"),
    ),
    "cyclic": (
        lambda: tiny_config(scan_mode="cyclic", **{**DEEP, "num_hidden_layers": 14}),
        Batch(2, 60, 64),
        on_cpu(optimizer="adafactor"),
    ),
    "many words to choose from": (
        lambda: tiny_config(vocab_size=4000, vae_hidden_size=64, **DEEP),
        Batch(4, 80, 0),
        on_cpu(),
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", SLOW)
def test_peaks_of_many_settings_are_the_real_ones(case):
    make, batch, setting = SLOW[case]
    config = make()
    found = rehearse(config, batch, setting).peak()
    assert found == pytest.approx(real_peak(config, batch, setting), rel=0.1)


def test_a_deep_model_follows_from_few_blocks():
    config = tiny_config(num_hidden_layers=5)
    batch, setting = Batch(2, 8, 4), on_cpu()
    few = rehearse(config, batch, setting)
    (more,) = few.more
    assert more.blocks < config.num_hidden_layers
    whole = max(run_step(config, batch, setting).peaks().values())
    assert few.peak() == pytest.approx(whole, rel=0.01)


def half_checkpointed(blocks):
    config = tiny_config(hidden_size=64, num_hidden_layers=blocks)
    return config, Batch(2, 30, 36), on_cpu(checkpointing=True, checkpointed_blocks=0.5)


def test_the_peak_where_half_of_the_blocks_are_checkpointed_is_the_real_one():
    config, batch, setting = half_checkpointed(4)
    half = rehearse(config, batch, setting)
    assert [one.blocks for one in half.more] == [3, 3]
    assert half.peak() == pytest.approx(real_peak(config, batch, setting), rel=0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_share_of_checkpointed_blocks_follows_from_few():
    config, batch, setting = half_checkpointed(6)
    whole = max(run_step(config, batch, setting).peaks().values())
    half = rehearse(config, batch, setting).peak()
    assert half == pytest.approx(whole, rel=0.01)
    none, everything = (
        rehearse(config, batch, replace(setting, checkpointed_blocks=share)).peak()
        for share in (0.0, 1.0)
    )
    assert none == rehearse(config, batch, on_cpu()).peak()
    assert everything == rehearse(config, batch, on_cpu(checkpointing=True)).peak()
    assert none > 1.1 * half > 1.2 * everything


def test_on_a_gpu_shorter_numbers_and_checkpointing_hold_less():
    config, batch = tiny_config(hidden_size=64), Batch(2, 30, 36)
    wide, short = (
        rehearse(config, batch, Setting(compute=kind, weights=kind)).peak(0.0)
        for kind in ("float32", "bfloat16")
    )
    assert 0.4 * wide < short < wide
    again = rehearse(config, batch, Setting(compute="float32", checkpointing=True)).peak(0.0)
    assert again < wide


@pytest.mark.parametrize("backend", ["triton", "torch", "torch_factored"])
def test_a_checkpointed_step_runs_as_on_a_gpu(backend):
    """With the buffers of Triton's kernels, whose gradients must read what was saved once only."""
    config = tiny_config(kernel_backend=backend)
    assert rehearse(config, Batch(1, 8, 4), Setting(checkpointing=True)).peak() > 0


def test_nothing_real_is_changed():
    """The rehearsal plays a GPU by patches that do not outlive it, and draws no numbers."""
    before = torch.get_rng_state()
    rehearse(tiny_config(), Batch(1, 4, 4), Setting())
    assert torch.equal(before, torch.get_rng_state())
    layer = nn.Linear(2, 2)
    assert layer.weight.device == CPU and not torch.is_autocast_enabled("cpu")
    model = MDMForJointGeneration(tiny_config())
    assert model(input_ids=torch.full((1, 4), 5)).loss.isfinite()
