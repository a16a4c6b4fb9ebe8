# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Past turns: what a model has read of conversations, for a later call to go on from.

Older turns are read before newer ones in every scan (Sec. 3.2), so what is known of a turn stays as
it is when the conversation goes on: a call reads only the turns that are new.

Axes: b batch, n positions of one modality, m those of them that were read.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .cache import PromptCache
from .content import GENERATION_MODES, MODALITIES, ModalityContent
from .inputs import EncodedInputs
from .network import MDMNetwork
from .sequence import JointSequence, SequencePart, take_part

# Behind every turn: `given_first_order` keeps turns apart that are below it.
END = 1 << 20


@dataclass(frozen=True)
class PastTurns:
    """
    The turns of conversations that a model has read: `cache` of `generate`.

    It holds given content alone and never changes, so several calls may go on from the same one. It
    belongs to the weights that read it: others, such as another adapter's, read all anew.

    Attributes:
        cache: what every block keeps of these turns.
        dtype: of the model.
        stop: (b,) long, the turn before which all that is given was read; 0 where nothing was.
        tokens: (b, 3) long, the class label, and whether there are words and pictures, written ones
            included: their special tokens are read before all turns.
        content: by modality, what was read by name, (b, m, ...) each, 0 at fillers.
        positions_read: (b,) long, how many positions had to be read for this, in all calls.
        mode_logits: (b, modes), what a reply to the last of these turns may hold; None without a
            [`ModeHead`].
        weights: that have read, from [`weights_fingerprint`].
    """

    cache: PromptCache
    dtype: torch.dtype
    stop: Tensor
    tokens: Tensor
    content: dict[str, dict[str, Tensor]]
    positions_read: Tensor
    mode_logits: Tensor | None = None
    weights: bytes = b""

    def __len__(self) -> int:
        return len(self.stop)

    @property
    def modes(self) -> list[str]:
        """What a reply to each conversation holds, by the model's own choice."""
        return [GENERATION_MODES[index] for index in self.mode_logits.argmax(-1).tolist()]

    def batch_select_indices(self, indices: Tensor) -> "PastTurns":
        """Choose some conversations (m,), which may repeat."""
        content = {}
        for modality, read in self.content.items():
            chosen = {name: value[indices] for name, value in read.items()}
            if longest := int(chosen["real"].sum(-1).max()):
                content[modality] = {name: value[:, :longest] for name, value in chosen.items()}
        return replace(
            self,
            cache=self.cache.rows(indices),
            stop=self.stop[indices],
            tokens=self.tokens[indices],
            content=content,
            positions_read=self.positions_read[indices],
            mode_logits=None if self.mode_logits is None else self.mode_logits[indices],
        )

    def batch_repeat_interleave(self, repeats: int) -> "PastTurns":
        """Repeat every conversation, for samples of a reply that each go on as one of their own."""
        items = torch.arange(len(self), device=self.stop.device)
        return self.batch_select_indices(items.repeat_interleave(repeats))

    def begin(self, encoded: EncodedInputs) -> bool:
        """Whether every item begins with these turns, special tokens included."""
        if not torch.equal(self.tokens, _special_tokens(encoded)):
            return False
        content = _given_before(encoded, self.stop)
        return content.keys() == self.content.keys() and all(
            torch.equal(value, self.content[modality][name])
            for modality, given in content.items()
            for name, value in given.items()
        )

    def check(self, network: MDMNetwork, batch: int) -> None:
        """Refuse what cannot be gone on from by this model with so many items.

        Raises:
            ValueError: another number of items, another type or device.
        """
        if len(self) != batch:
            raise ValueError(
                f"`cache` holds {len(self)} conversations, but the inputs hold {batch}: "
                "pass as many in the same order; its `batch_repeat_interleave` and "
                "`batch_select_indices` repeat and choose conversations."
            )
        mine = (len(self.cache.layers), self.dtype, self.stop.device)
        theirs = (len(network.decoder.layers), network.dtype, network.device)
        if mine != theirs:
            raise ValueError(
                "`cache` was made by a model of {} layers in {} on {}, and this one has "
                "{} in {} on {}: leave it out.".format(*mine, *theirs)
            )


def read_given(
    network: MDMNetwork,
    encoded: EncodedInputs,
    sequence: JointSequence,
    weights: bytes,
    past: PastTurns | None = None,
) -> tuple[PastTurns, PromptCache]:
    """Read what is given, from where the past turns stop if every item begins with them.

    All is read anew where it does not, or where other weights have read them.

    Args:
        network: whose decoder reads. encoded: the items. sequence: their layout.
        weights: of the model, from `weights_fingerprint`. past: of as many items.

    Returns:
        what later calls may go on from: the turns before the first with a known part of a region,
        which will be another turn once it is written; and the cache of all that is given.
    """
    content, labels = encoded.content, encoded.class_labels
    nothing = torch.zeros_like(labels)
    count = nothing if past is None else past.positions_read
    if past is None or past.weights != weights or not past.begin(encoded):
        cache = PromptCache(len(network.decoder.layers))
        past = PastTurns(cache, network.dtype, nothing, labels, {}, nothing)
    limit = torch.stack([_first_unfinished(positions) for positions in content.values()]).amin(0)
    limit = torch.maximum(past.stop, limit)
    last = torch.stack([last_given(positions, limit) for positions in content.values()]).amax(0)
    stop = torch.minimum(limit, torch.maximum(past.stop, last + 1).clamp(min=1))
    part = take_part(sequence, content, given=True, turns=(past.stop, stop))
    cache, features = _read(network, part, labels, past.cache)
    turns = PastTurns(
        cache,
        network.dtype,
        stop,
        _special_tokens(encoded),
        _given_before(encoded, stop),
        count,
        _mode_logits(network, past, part, features, last),
        weights,
    )
    rest = take_part(sequence, content, given=True, turns=(stop, torch.full_like(stop, END)))
    cache, _ = _read(network, rest, labels, cache)
    count = count + part.sequence.valid.sum(-1) + rest.sequence.valid.sum(-1)
    return replace(turns, positions_read=count), cache


def _read(
    network: MDMNetwork, part: SequencePart, class_labels: Tensor, cache: PromptCache
) -> tuple[PromptCache, dict[str, Tensor] | None]:
    """Read some more: a cache that has it too, and its features; None if there is nothing."""
    if not bool(part.sequence.valid.any()):
        return cache, None
    cache = PromptCache.join([cache])
    return cache, network.read(part, class_labels, cache)


def _mode_logits(
    network: MDMNetwork,
    past: PastTurns,
    part: SequencePart,
    features: dict[str, Tensor] | None,
    last: Tensor,
) -> Tensor | None:
    """What replies may hold, (b, modes): from the last turn (b,), or as before where it is old."""
    if not network.config.use_mode_head or features is None:
        return past.mode_logits
    logits = network.mode_head(features, part.content, last)
    before = torch.zeros_like(logits) if past.mode_logits is None else past.mode_logits
    return torch.where((last >= past.stop)[:, None], logits, before)


def _special_tokens(encoded: EncodedInputs) -> Tensor:
    """What special tokens stand before all turns, as in [`PastTurns`]: (b, 3) long."""
    labels, content = encoded.class_labels, encoded.content
    absent = torch.zeros_like(labels)
    starts = [
        content[modality].valid.any(-1).long() if modality in content else absent
        for modality in MODALITIES
    ]
    return torch.stack([labels, *starts], dim=-1)


def _first_unfinished(positions: ModalityContent) -> Tensor:
    """First turn in which something is known of a region that is being written; (b,), or `END`."""
    known = positions.valid & positions.given & ~positions.prompt()
    return _with_end(positions.turn, known, END).amin(-1)


def last_given(positions: ModalityContent, limit: Tensor | None = None) -> Tensor:
    """Last turn, of those before a limit (b,), in which anything is given; (b,), or -1."""
    known = positions.valid & positions.given
    if limit is not None:
        known = known & (positions.turn < limit[:, None])
    return _with_end(positions.turn, known, -1).amax(-1)


def _with_end(turn: Tensor, mask: Tensor, value: int) -> Tensor:
    """Turns where a mask holds, another value elsewhere and behind them: (b, n + 1)."""
    masked = turn.masked_fill(~mask, value)
    return torch.cat([masked, masked.new_full((len(masked), 1), value)], dim=1)


def _given_before(encoded: EncodedInputs, stop: Tensor) -> dict[str, dict[str, Tensor]]:
    """Given content of the turns before some turn (b,), of the modalities that have any."""
    found = {}
    for modality, encoding in encoded.modalities.items():
        positions = encoding.content
        mask = positions.valid & positions.given & (positions.turn < stop[:, None])
        longest = int(mask.sum(-1).max()) if len(mask) else 0
        if not longest:
            continue
        index = (~mask).long().argsort(dim=-1, stable=True)[:, :longest]
        real = mask.gather(1, index)
        found[modality] = {"real": real}
        values = {"target": encoding.target, "turn": positions.turn, "place": positions.place}
        for name, value in values.items():
            value = value.flatten(2) if value.dim() > 2 else value[..., None]  # (b, n, c)
            value = value.gather(1, index[..., None].expand(-1, -1, value.shape[-1]))
            found[modality][name] = value.masked_fill(~real[..., None], 0)
    return found


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
