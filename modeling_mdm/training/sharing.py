# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trainer whose processes share each sequence (context parallel), for those that fit no GPU.

Each process of a group loads a batch of its own, as ever; then the group works on these batches,
all together on one after the other. So a step has the same items as without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.network import MDMNetwork
from modeling_mdm.training.splitting import SplitsWeights


def check_context(size: int, processes: int, config: MDMConfig) -> None:
    """Refuse groups that cannot share a model's sequences.

    Raises:
        ValueError: so many processes do not divide the heads, or all processes, or the blocks are
            those of a Transformer.
    """
    found = f"context_parallel_size={size}"
    if size < 1:
        raise ValueError(f"{found} must be >= 1; 1 shares no sequence.")
    if size > 1 and config.mixer != "mamba2":
        raise ValueError(f"{found} shares the scans of mixer='mamba2', and this is {config.mixer}.")
    if processes % size:
        raise ValueError(
            f"{found} does not divide the number of processes, {processes}: launch a multiple of "
            f"{size}, or set it to a divisor of {processes}."
        )
    if (heads := config.num_ssm_heads) % size:
        raise ValueError(
            f"{found} does not divide the {heads} heads of a block (hidden_size x expand / "
            f"head_dim): set it to a divisor of {heads}."
        )


@contextmanager
def shared_sequences(model: nn.Module, group: dist.ProcessGroup) -> Iterator[None]:
    """Have the decoders of a model share every sequence with a group, inside a `with` block."""
    decoders = [module.decoder for module in model.modules() if isinstance(module, MDMNetwork)]
    for decoder in decoders:
        decoder.context_group = group
    try:
        yield
    finally:
        for decoder in decoders:
            decoder.context_group = None


def batches_of_group(
    batch: Mapping[str, Any], group: dist.ProcessGroup, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Yield the batches that the processes of a group have, one after the other, to all of them.

    Tensors are sent one by one, on the device that they are on; all else by pickle.
    """
    layout = {
        name: (value.shape, value.dtype) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    is_tensor = {name for name, value in batch.items() if isinstance(value, torch.Tensor)}
    layouts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(layouts, (layout, is_tensor), group=group)
    for rank, (its_layout, tensors) in enumerate(layouts):
        shared = {}
        for name, value in its_layout.items():
            if name in tensors:
                shape, dtype = value
                is_mine = rank == dist.get_rank(group)
                value = (
                    batch[name].contiguous()
                    if is_mine
                    else torch.empty(shape, dtype=dtype, device=device)
                )
                dist.broadcast(value, src=dist.get_global_rank(group, rank), group=group)
            shared[name] = value
        yield shared


class SharesSequences(SplitsWeights):
    """A Trainer whose processes share each sequence where `context_parallel_size` says so."""

    _context: dist.ProcessGroup | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        size = self.args.context_parallel_size
        config = getattr(self.model, "config", None)
        if not isinstance(config, MDMConfig):
            return
        check_context(size, self.args.world_size, config)
        if size > 1 and self.is_deepspeed_enabled:
            raise ValueError(
                f"context_parallel_size={size} is not for DeepSpeed: launch with "
                "configuration/accelerate/fsdp2.yaml."
            )
        if size > 1:
            self._context = dist.new_subgroups(size)[0]

    def batches_to_share(self) -> int:
        """How many batches, of as many processes, a group works on one after the other."""
        return 1 if self._context is None else self.args.context_parallel_size

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Take the gradients of a batch, or of those of all processes of a group."""
        if self._context is None:
            return super().training_step(model, inputs, *args, **kwargs)
        batches = batches_of_group(self._prepare_inputs(inputs), self._context, self.args.device)
        total, count = 0, self.batches_to_share()
        with shared_sequences(self.model, self._context):
            for number, batch in enumerate(batches, start=1):
                # Split weights are summed up at once: whole gradients would not fit.
                waits = number < count and not self.is_fsdp_enabled
                with self.accelerator.no_sync(model) if waits else nullcontext():
                    total = total + super().training_step(model, batch, *args, **kwargs)
        return total
