# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bytes that a process holds from step to step: weights, gradients, optimizer, their average.

Counted on a model without numbers (the meta device), parameter by parameter, as they are split.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.planning.mesh import Mesh
from modeling_mdm.planning.optimizers import make_optimizer


@dataclass(frozen=True)
class Tensors:
    """A parameter: name, shape and whether it learns; bytes of a number."""

    name: str
    shape: tuple[int, ...]
    learns: bool
    size: int = 4

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class States:
    """Bytes of a process.

    weights: parameters and buffers. gradients, optimizer, average: of what learns. gathered: of
    split weights, what is whole at once: all outside of the blocks, and two blocks. reducing:
    gradients of as much on their way to be split, or the buckets of DDP.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    gathered: int = 0
    reducing: int = 0

    @property
    def total(self) -> int:
        """What is held all the time; gradients come and go within a step."""
        return self.weights + self.optimizer + self.average + self.gathered + self.reducing


@dataclass(frozen=True)
class ModelSizes:
    """Parameters of a model, bytes of its buffers, and numbers of all and of what learns."""

    parameters: tuple[Tensors, ...]
    buffers: int

    @property
    def numel(self) -> int:
        """Numbers of all parameters, a frozen VQ-VAE's among them."""
        return sum(one.numel for one in self.parameters)

    @property
    def learning(self) -> int:
        """Numbers of the parameters that learn."""
        return sum(one.numel for one in self.parameters if one.learns)


def model_sizes(config: MDMConfig) -> ModelSizes:
    """List the parameters of a model, in float32 as they are trained.

    Raises:
        ValueError: the VQ-VAE of the configuration is unknown.
    """
    with torch.device("meta"):
        model = MDMForJointGeneration(config)
    return sizes_of(model)


def sizes_of(model: nn.Module) -> ModelSizes:
    """List the parameters of a model that is there, or on the meta device."""
    parameters = tuple(
        Tensors(name, tuple(p.shape), p.requires_grad, p.element_size())
        for name, p in model.named_parameters()
    )
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    return ModelSizes(parameters, buffers)


def _of_tensor_parallel(one: Tensors, config: MDMConfig, degree: int) -> Tensors:
    """What a process has of a parameter where heads are split: B and C stay whole."""
    if degree == 1 or ".mixer." not in one.name:
        return one
    inner, heads = config.inner_size, config.num_ssm_heads
    kind = one.name.split(".mixer.")[1].split(".")
    first, *rest = one.shape
    if kind[0] == "in_proj":
        scans = (first - 2 * inner) // (2 * config.state_size + heads)
        first -= (2 * inner + scans * heads) * (degree - 1) // degree
    elif kind[0] == "out_proj":
        rest = [rest[0] // degree]
    elif kind[0] == "norm":
        first //= degree
    elif kind[-1] in ("conv_weight", "conv_bias"):
        rest[0] -= inner * (degree - 1) // degree
    elif kind[-1] in ("A_log", "D", "delta_bias"):
        rest[0] //= degree
    return Tensors(one.name, (first, *rest), one.learns, one.size)


def _shard(one: Tensors, shards: int) -> Tensors:
    """The largest part of a parameter that is split along its first axis, as FSDP2 does."""
    if shards == 1 or not one.shape:
        return one
    return Tensors(one.name, (-(-one.shape[0] // shards), *one.shape[1:]), one.learns, one.size)


def _bytes(parameters: Iterable[Tensors], size: int | None = None) -> int:
    return sum(one.numel * (size or one.size) for one in parameters)


def optimizer_bytes(name: str, parameters: Iterable[Tensors]) -> int:
    """Bytes of an optimizer's states after a step, counted on the real optimizer.

    Raises:
        ValueError: the plan does not know the optimizer.
    """
    dtypes = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
    learning = [
        nn.Parameter(torch.empty(one.shape, device="meta", dtype=dtypes[one.size]))
        for one in parameters
        if one.learns
    ]
    optimizer = make_optimizer(name, learning, without_numbers=True)
    for parameter in learning:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    leaves = [leaf for state in optimizer.state.values() for leaf in state.values()]
    return sum(x.numel() * x.element_size() for x in leaves if isinstance(x, torch.Tensor))


def count_states(
    sizes: ModelSizes,
    config: MDMConfig,
    mesh: Mesh | None = None,
    optimizer: str = "adamw_torch_fused",
    average: bool = True,
) -> States:
    """Count the bytes of the process that has most.

    Args:
        optimizer: by transformers' name. average: whether one of the weights is kept.

    Raises:
        ValueError: the plan does not know the optimizer.
    """
    mesh = mesh or Mesh()
    own = [_of_tensor_parallel(one, config, mesh.tensor) for one in sizes.parameters]
    held = [_shard(one, mesh.shards) for one in own]
    learning = [one for one in held if one.learns]
    gathered = reducing = 0
    if mesh.shards > 1:
        blocks = [one for one in own if one.name.startswith("decoder.layers.")]
        others = [one for one in own if not one.name.startswith("decoder.layers.")]
        two = 2 * _bytes(blocks) // max(1, config.num_hidden_layers)
        gathered = _bytes(others) + two
        reducing = two + _bytes([one for one in others if one.learns])
    elif mesh.processes > mesh.tensor:
        reducing = _bytes(learning)
    return States(
        _bytes(held) + sizes.buffers,
        _bytes(learning),
        optimizer_bytes(optimizer, held),
        # In float32 at least.
        sum(one.numel * max(4, one.size) for one in learning) if average else 0,
        gathered,
        reducing,
    )
