# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which weights a model has, told by a digest of their bits and of what its modules are set to.

The bits, because nothing else tells weights apart that were trained, loaded, merged or written past
autograd; the settings, because adapters are switched by attributes of modules. It reads every
weight once, in whole numbers, which takes a small part of one evaluation of the network.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64  # whole numbers that are summed without weights
SMALL = 1 << 15  # numbers; smaller tensors are joined first
_INTERNALS = set(vars(nn.Module()))


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> bytes:
    """Give 16 bytes, equal for equal weights under equal settings, in a copy of the model too.

    Weights that cannot be seen now, because they are offloaded, give other bytes at every call.
    """
    tensors = list(_plain_tensors([*model.parameters(), *model.buffers()]))
    if any(tensor.is_meta for tensor in tensors):
        return os.urandom(16)
    small: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    large = []
    for tensor in tensors:
        if tensor.numel() < SMALL:
            small.setdefault((tensor.dtype, tensor.device), []).append(tensor.reshape(-1))
        else:
            large.append(tensor)
    sums = [_sum_of_bits(tensor) for tensor in [*large, *map(torch.cat, small.values())]]
    digest = hashlib.blake2b(repr(_settings(model)).encode(), digest_size=16)
    digest.update(repr([tuple(tensor.shape) for tensor in tensors]).encode())
    for device in dict.fromkeys(value.device for value in sums):
        own = torch.stack([value for value in sums if value.device == device])
        digest.update(repr(own.tolist()).encode())
    return digest.digest()


def _plain_tensors(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors that quantised, sharded and other tensors are made of."""
    for tensor in tensors:
        tensor = getattr(tensor, "ds_tensor", tensor)  # ZeRO-3's share of a weight
        if hasattr(tensor, "__tensor_flatten__"):
            parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
            # A mesh of processes is among the parts of a sharded one.
            yield from _plain_tensors(part for part in parts if isinstance(part, Tensor))
        else:
            yield tensor.detach()


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Sum the bits of a tensor as whole numbers, blocks of them weighted by place; 0-dim long."""
    if tensor.storage_offset() * tensor.element_size() % 8:  # part of another, between words
        tensor = tensor.clone()
    octets = tensor.contiguous().view(-1).view(torch.uint8)
    whole = octets.numel() // (8 * BLOCK) * (8 * BLOCK)
    blocks = octets[:whole].view(torch.int64).view(-1, BLOCK).sum(-1)
    rest = octets[whole:].long()
    numbers = torch.cat([blocks, rest])
    # Odd weights: a product with one loses no bit.
    weights = torch.arange(1, 2 * len(numbers), 2, device=tensor.device)
    return (numbers * weights).sum()


def _settings(model: nn.Module) -> list[Any]:
    """What modules beside torch's own are set to (active adapters, their scales), and hooks."""
    found: list[Any] = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    for name, module in model.named_modules():
        found += (name, *module._forward_hooks, *module._forward_pre_hooks)
        if name and not type(module).__module__.startswith("torch."):
            found += [
                (key, value)
                for key, value in vars(module).items()
                if key not in _INTERNALS and _is_plain(value)
            ]
    return found


def _is_plain(value: Any) -> bool:
    """Whether a value is numbers and names, and shows as the same in a copy."""
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | None)
