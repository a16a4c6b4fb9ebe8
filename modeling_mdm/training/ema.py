# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The moving average of the weights, which is what a finished model is made of (Sec. 5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from modeling_mdm.training.sharded import has_part, is_sharded, load_part

EMA_FILE = "ema.safetensors"
AVERAGE = "average"  # its name in a checkpoint of parts
_NUM_UPDATES = "num_updates"


class ExponentialMovingAverage:
    """The moving average of a model's trainable parameters, in float32 or better.

    After update n = 0, 1, ... the average is decay_n * average + (1 - decay_n) * parameter with
    decay_n = min(decay, (1 + n) / (10 + n)), so that a short run is not an average over its
    random start. Buffers (such as the running statistics of the latents) are averages already and
    stay the model's own.

    Where parameters are split over processes (FSDP2, DeepSpeed ZeRO-3), so are the averages: each
    process averages its own shard. `state`, and with it `save`, then gathers whole tensors, so
    every process must call it.

    Args:
        model: the model that is trained; its parameters may be replaced in place, never exchanged.
            Under FSDP2 and ZeRO-3, after it was split.
        decay: how much of the average stays in each update, in [0, 1).

    Raises:
        ValueError: if decay is outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay} must be in [0, 1); 0 follows the weights exactly.")
        self.decay = decay
        self.num_updates = 0
        self._model = model
        self._reshard()
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.averages = {
            name: local_shard(p).to(_at_least_float32(p), copy=True)
            for name, p in self._parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present parameters."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages = list(self.averages.values())
        present = [
            local_shard(parameter).to(average.dtype)
            for parameter, average in zip(self._parameters.values(), averages, strict=True)
        ]
        torch._foreach_lerp_(averages, present, 1.0 - decay)
        self.num_updates += 1

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Put the averages into the model for good."""
        self._write(self.averages)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the model the averaged weights inside a `with` block, and its own back after it."""
        own = {name: local_shard(p).clone() for name, p in self._parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, tensors: dict[str, torch.Tensor]) -> None:
        self._reshard()
        for name, parameter in self._parameters.items():
            local_shard(parameter).copy_(tensors[name])

    def _reshard(self) -> None:
        # FSDP2 may keep the gathered weights of the last forward pass, and would use them again.
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def state(self) -> dict[str, torch.Tensor]:
        """Return the whole averages; every process must call this, and each gets them."""
        return {
            name: _whole(average, self._parameters[name]) for name, average in self.averages.items()
        }

    def parts(self) -> dict[str, Any]:
        """The averages split as the weights are; what is written into them stays."""
        averages = {n: _as_split(own, self._parameters[n]) for n, own in self.averages.items()}
        return {"averages": averages, "num_updates": torch.tensor(self.num_updates)}

    def load_from(self, checkpoint: str | Path) -> None:
        """Go on from a checkpoint; every process must call this.

        Raises:
            FileNotFoundError: if it was written without an average.
            ValueError: if it belongs to another model.
        """
        if not has_average(checkpoint):
            raise FileNotFoundError(
                f"checkpoint={str(checkpoint)!r} has no average of the weights, such as {EMA_FILE}:"
                " it was trained with ema_decay=0."
            )
        if is_sharded(checkpoint):
            self.num_updates = int(load_part(AVERAGE, self.parts(), checkpoint)["num_updates"])
        else:
            self.load(Path(checkpoint) / EMA_FILE)

    def save(self, path: str | Path, writes: bool = True) -> None:
        """Write the averages and the number of updates to a safetensors file.

        Args:
            path: the file.
            writes: whether this process is the one that writes it.
        """
        tensors = {name: average.contiguous() for name, average in self.state().items()}
        if writes:
            save_file(tensors, str(path), metadata={_NUM_UPDATES: str(self.num_updates)})

    def load(self, path: str | Path) -> None:
        """Go on from a file that `save` wrote, in any number of processes.

        Raises:
            ValueError: if the file's parameters are not those of the model.
        """
        with safe_open(str(path), framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            expected = {name: _whole_shape(p) for name, p in self._parameters.items()}
            if found != expected:
                differing = sorted(
                    name
                    for name in found.keys() | expected.keys()
                    if found.get(name) != expected.get(name)
                )
                raise ValueError(
                    f"path={str(path)!r} is the average of another model; these differ: "
                    f"{', '.join(differing[:5])}. Use the checkpoint of a model of this shape."
                )
            for name, average in self.averages.items():
                average.copy_(_shard_of(file.get_tensor(name), self._parameters[name]))
            self.num_updates = int((file.metadata() or {})[_NUM_UPDATES])


def has_average(checkpoint: str | Path) -> bool:
    """Whether an average of the weights lies in a folder."""
    if is_sharded(checkpoint):
        return has_part(AVERAGE, checkpoint)
    return (Path(checkpoint) / EMA_FILE).is_file()


def is_split(model: nn.Module) -> bool:
    """Whether parameters are split over processes, so that all of them must take part in a pass."""
    return any(isinstance(p, DTensor) or _zero_shard(p) is not None for p in model.parameters())


def local_shard(parameter: torch.Tensor) -> torch.Tensor:
    """What this process holds of a parameter, without its gradient; changes to it stay."""
    if isinstance(parameter, DTensor):
        return parameter.detach().to_local()
    shard = _zero_shard(parameter)
    return (parameter if shard is None else shard).detach()


def _zero_shard(parameter: torch.Tensor) -> torch.Tensor | None:
    """Give ZeRO-3's flat shard of a parameter, the same length everywhere; None elsewhere."""
    return getattr(parameter, "ds_tensor", None)


def _whole_shape(parameter: torch.Tensor) -> list[int]:
    return list(getattr(parameter, "ds_shape", parameter.shape))


def _as_split(shard: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Say of a tensor that it is split as a parameter is."""
    if not isinstance(parameter, DTensor):
        return shard
    split: torch.Tensor = DTensor.from_local(
        shard,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return split


def _whole(shard: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Gather a tensor that is split as a parameter is."""
    split = _as_split(shard, parameter)
    if isinstance(split, DTensor):
        return split.full_tensor()
    if _zero_shard(parameter) is None:
        return shard
    shards = [torch.empty_like(shard) for _ in range(dist.get_world_size())]
    dist.all_gather(shards, shard)
    shape = parameter.ds_shape
    return torch.cat(shards)[: shape.numel()].view(shape)


def _shard_of(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Cut out of a whole tensor what this process holds of a parameter."""
    if isinstance(parameter, DTensor):
        # No process sends: each has read the file itself.
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
    shard = _zero_shard(parameter)
    if shard is None:
        return whole
    start = dist.get_rank() * shard.numel()
    own = whole.flatten()[start : start + shard.numel()]
    return torch.cat([own, own.new_zeros(shard.numel() - own.numel())])


def load_averaged_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Put the averaged weights of a training checkpoint into a model.

    A checkpoint's own `model.safetensors` holds the weights that training goes on from.

    Raises:
        FileNotFoundError: if the checkpoint was written without an average.
        ValueError: if it belongs to another model.
    """
    average = ExponentialMovingAverage(model)
    average.load_from(checkpoint)
    average.copy_to_model()


def _at_least_float32(parameter: torch.Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
