# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How processes share a model and its data: `--parallel fsdp2`, `hsdp=8`, `tp=2`, `cp=4`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modeling_mdm.configuration_mdm import MDMConfig

SPLITS = ("ddp", "fsdp2", "hsdp")
PLANNED_ONLY = ("tp",)


@dataclass(frozen=True)
class Mesh:
    """Processes, one a GPU, and what each has of the model and of a step.

    processes: all. machine: of one machine. split: `ddp`, `fsdp2` or `hsdp`. shards: processes that
    split weights, gradients, optimizer and average among them. tensor, context: processes that
    share a block's heads, or an item's positions.
    """

    processes: int = 1
    machine: int = 8
    split: str = "ddp"
    shards: int = 1
    tensor: int = 1
    context: int = 1

    @property
    def data(self) -> int:
        """Groups of processes that read different items."""
        return self.processes // (self.tensor * self.context)

    @property
    def replicas(self) -> int:
        """How often the split weights are there."""
        return self.processes // (self.shards * self.tensor)

    @property
    def not_run_here(self) -> list[str]:
        """What training in this package does not run yet."""
        used = {"tp": self.tensor > 1, "cp": self.context > 1}
        return [name for name in PLANNED_ONLY if used[name]]

    def words(self) -> list[str]:
        """Write it as `--parallel` does."""
        split = f"hsdp={self.shards}" if self.split == "hsdp" else self.split
        degrees = {"tp": self.tensor, "cp": self.context}
        return [split, *(f"{name}={degree}" for name, degree in degrees.items() if degree > 1)]


def _parse(words: Sequence[str]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in (*SPLITS, "tp", "cp"):
            raise ValueError(
                f"parallel holds {word!r}: choose among ddp, fsdp2, hsdp, hsdp=N, tp=N and cp=N."
            )
        if name in found:
            raise ValueError(f"parallel names {name} twice: name it once.")
        takes_number, needs_number = name in ("hsdp", "tp", "cp"), name in ("tp", "cp")
        if (number and not takes_number) or (needs_number and not number):
            fix = f"write {name}=2, for example" if needs_number else f"write {name} alone"
            raise ValueError(f"parallel holds {word!r}: {fix}.")
        if number and (not number.isdigit() or int(number) < 1):
            raise ValueError(f"parallel holds {word!r}: {name} takes a whole number of at least 1.")
        found[name] = int(number) if number else None
    if len(chosen := [name for name in SPLITS if name in found]) > 1:
        raise ValueError(f"parallel names {' and '.join(chosen)}: choose one of them.")
    return found


def make_mesh(processes: int, machine: int, words: Sequence[str], config: MDMConfig) -> Mesh:
    """Read how processes share a model; without a word for it, fsdp2 where there are several.

    Args:
        processes: all, one a GPU. machine: of one machine. words: of `--parallel`.

    Raises:
        ValueError: an unknown word, or numbers that do not divide processes or heads.
    """
    for name, count in (("gpus", processes), ("gpus_per_machine", machine)):
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1.")
    machine = min(machine, processes)
    if processes % machine:
        raise ValueError(
            f"gpus={processes} do not fill machines of gpus_per_machine={machine}: use a multiple, "
            f"such as {processes // machine * machine or machine}."
        )
    found = _parse(words)
    tensor, context = (found.get(name) or 1 for name in ("tp", "cp"))
    if processes % (tensor * context):
        raise ValueError(
            f"parallel tp={tensor} x cp={context} = {tensor * context} does not divide "
            f"gpus={processes}: use degrees that do, such as "
            f"{_nearest_divisor(processes, tensor * context)} in all."
        )
    _check_heads(config, tensor, context)
    split = next((name for name in SPLITS if name in found), "fsdp2" if processes > 1 else "ddp")
    sharing = processes // tensor
    shards = {"ddp": 1, "fsdp2": sharing}.get(split, found.get("hsdp") or max(1, machine // tensor))
    if sharing % shards:
        raise ValueError(
            f"parallel hsdp={shards} does not divide the {sharing} processes that share weights: "
            f"use hsdp={_nearest_divisor(sharing, shards)}."
        )
    return Mesh(processes, machine, split, shards, tensor, context)


def _check_heads(config: MDMConfig, tensor: int, context: int) -> None:
    is_mamba = config.mixer == "mamba2"
    if tensor > 1 and not is_mamba:
        raise ValueError(
            f"parallel tp={tensor} splits the heads of Mamba-2, and this model's mixer is "
            f"{config.mixer!r}: use fsdp2, or cp."
        )
    name = "num_ssm_heads" if is_mamba else "num_attention_heads"
    heads = config.num_ssm_heads if is_mamba else int(config.num_attention_heads or 1)
    degree = tensor * context
    if heads % degree:
        raise ValueError(
            f"parallel tp={tensor} x cp={context} = {degree} does not divide the {heads} heads "
            f"({name}): use degrees that do, such as {_nearest_divisor(heads, degree)} in all."
        )


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda n: (abs(n - wanted), n))


def items_each(batch: int, accumulation: int, mesh: Mesh) -> int:
    """Items that a process reads at once.

    Args:
        batch: items of a step, of all processes and accumulated batches.

    Raises:
        ValueError: they cannot be divided.
    """
    for name, count in (("batch", batch), ("accumulation", accumulation)):
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1.")
    parts = mesh.data * accumulation
    if batch % parts:
        lower = batch // parts * parts
        near = f"{lower} or {lower + parts}" if lower else str(parts)
        raise ValueError(
            f"batch={batch} cannot be divided among {mesh.data} processes that read different "
            f"items, accumulation={accumulation} batches each: use {near}."
        )
    return batch // parts
