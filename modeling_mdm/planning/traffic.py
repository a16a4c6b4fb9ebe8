# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the processes of a step send each other, and how long that takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.planning.flops import SELF_CONDITIONED, Batch
from modeling_mdm.planning.gpus import GPU
from modeling_mdm.planning.mesh import Mesh
from modeling_mdm.planning.operations import scans_of
from modeling_mdm.planning.states import ModelSizes

SENT = 4  # bytes of a number of weights that are gathered, and of gradients that are added up


@dataclass(frozen=True)
class Traffic:
    """One kind of exchange in a step.

    bytes: that a process sends. seconds: at the full speed of the slowest connection in its group.
    is_hidden: whether it runs beside the computation.
    """

    name: str
    bytes: float
    seconds: float
    is_hidden: bool


def _speed(gpu: GPU, mesh: Mesh, group: int, spread: int = 1) -> float:
    """Bytes/s between the processes of a group whose members are `spread` processes apart."""
    return gpu.link if group * spread <= mesh.machine else gpu.network


def _traffic(
    name: str, gpu: GPU, mesh: Mesh, group: int, spread: int, sent: float, is_hidden: bool
) -> Traffic:
    return Traffic(name, sent, sent / _speed(gpu, mesh, group, spread), is_hidden)


def step_traffic(
    config: MDMConfig,
    sizes: ModelSizes,
    mesh: Mesh,
    gpu: GPU,
    batch: Batch,
    accumulation: int = 1,
    size: int = 2,
    checkpointing: float = 0.0,
) -> list[Traffic]:
    """List the exchanges of a step.

    Args:
        batch: what a process reads at once. accumulation: how often in a step.
        size: bytes of a number as it is computed with, as blocks exchange them.
        checkpointing: share of the blocks that are computed again for their gradients.
    """
    weights, learning = sizes.numel / mesh.tensor, sizes.learning / mesh.tensor
    first = SELF_CONDITIONED if config.self_conditioning else 0.0
    # Tensor parallel processes stand next to each other, then those of a context, then the rest.
    found: list[Traffic] = []
    if mesh.shards > 1:
        share = (mesh.shards - 1) / mesh.shards
        gathers = 2 + first  # forward, backward, and the first estimate
        for name, sent in (
            ("gather weights", gathers * weights * SENT * share),
            ("reduce gradients", learning * SENT * share),
        ):
            total = accumulation * sent
            found.append(_traffic(name, gpu, mesh, mesh.shards, mesh.tensor, total, True))
    if mesh.replicas > 1:
        share = (mesh.replicas - 1) / mesh.replicas
        sent = 2 * share * SENT * learning / mesh.shards
        spread = mesh.shards * mesh.tensor
        found.append(_traffic("add gradients up", gpu, mesh, mesh.replicas, spread, sent, True))
    found += _within_blocks(config, mesh, gpu, batch, accumulation, size, first, checkpointing)
    return found


def _within_blocks(
    config: MDMConfig,
    mesh: Mesh,
    gpu: GPU,
    batch: Batch,
    accumulation: int,
    size: int,
    first: float,
    checkpointing: float,
) -> Iterator[Traffic]:
    """Exchanges of tensor and context parallelism, which every block waits for."""
    rows = batch.positions * config.num_hidden_layers * accumulation * size
    passes = 2 + first + checkpointing  # each way once, first estimates, what is made again
    if mesh.tensor > 1:
        share = 2 * (mesh.tensor - 1) / mesh.tensor
        sent = passes * share * rows * config.hidden_size
        yield _traffic("add parts of blocks up", gpu, mesh, mesh.tensor, 1, sent, False)
    if mesh.context > 1:
        own = 1 / mesh.context  # of the positions
        share = (mesh.context - 1) / mesh.context
        if config.mixer == "attention":
            numbers = share * 4 * config.hidden_size
        else:
            copies = 1 if config.scan_projections == "shared" else scans_of(config)
            exchanged = copies * 2 * config.inner_size + scans_of(config) * config.num_ssm_heads
            # B and C go whole to all.
            whole = scans_of(config) * 2 * config.state_size * mesh.context
            numbers = share * (exchanged / mesh.tensor + whole)
        sent = passes * rows * own * numbers
        yield _traffic("exchange heads", gpu, mesh, mesh.context, mesh.tensor, sent, False)
