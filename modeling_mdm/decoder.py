# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The multi-step selection diffusion decoder (Sec. 4.2): from noisy latents and times to features.

Axes: b batch, l positions of the joint sequence, n positions of one modality, d latent_dim.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import MDMAttentionBlock
from .block import MDMBlock, modulate
from .cache import PromptCache
from .configuration_mdm import MDMConfig
from .content import MODALITIES, ModalityContent
from .context_parallel import SequenceShare
from .precision import RMSNorm, at_least_float32
from .sequence import JointSequence, build_sequence


@dataclass
class DecoderInputs:
    """All that one evaluation of the decoder reads.

    sequence: from `lay_out`, for this content, or a part of it.
    content: by modality; latents count where given.
    z_t: noisy latents (b, n, d) by modality, count where noisy.
    times: (r,) by modality; r divides b, and b / r items that follow each other share one.
    class_labels: (b,), -1 where there is none.
    estimates: last clean estimates (b, n, d) by modality, or None.
    keep: share of items that each scan reads.
    cache: given positions that come before these; see [`PromptCache`].
    """

    sequence: JointSequence
    content: dict[str, ModalityContent]
    z_t: dict[str, Tensor]
    times: dict[str, Tensor]
    class_labels: Tensor
    estimates: dict[str, Tensor] | None = None
    keep: float = 1.0
    cache: PromptCache | None = None


def sinusoids(values: Tensor, size: int, longest: float) -> Tensor:
    """Sines and cosines of a coordinate (...): (..., size), in float32 at least.

    Wavelengths are geometric, from 2 pi to 2 pi `longest`.
    """
    values = values.to(at_least_float32(values.dtype))
    half = size // 2
    exponents = torch.arange(half, device=values.device, dtype=values.dtype) / max(half - 1, 1)
    angles = values[..., None] * torch.exp(-math.log(longest) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, so that what it adds or gates does too."""


class StartTokens(nn.Module):
    """The start token of every modality; read by a call, so that offloading can bring it back."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        for modality in sorted(MODALITIES):  # the order in which seeds fill them
            self.register_parameter(modality, nn.Parameter(torch.zeros(hidden_size)))

    def forward(self, modality: str) -> Tensor:
        """Give one of them, (hidden,)."""
        return getattr(self, modality)


# In the modules below a type is asked of a bias: quantisation gives weights types of its own.


class PlaceEmbedding(nn.Module):
    """Embeds where a position stands: word index, or row and column; and its turn."""

    features = 64

    def __init__(self, axes: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear((axes + 1) * self.features, hidden_size)

    def forward(self, place: Tensor, turn: Tensor) -> Tensor:
        """place (b, n) or (b, n, axes) and turn (b, n), long -> (b, n, hidden)."""
        place = place if place.dim() == 3 else place[..., None]
        coordinates = torch.cat([place, turn[..., None]], dim=-1)
        dtype = self.proj.bias.dtype
        waves = sinusoids(coordinates.to(at_least_float32(dtype)), self.features, 10000.0)
        return self.proj(waves.flatten(-2).to(dtype))


class TimeEmbedding(nn.Module):
    """Embeds an item's three times: of what is given (0), of noisy words and of noisy patches."""

    features = 256
    no_weight_decay = ("kind",)

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.kind = nn.Parameter(torch.zeros(3, hidden_size))
        self.in_proj = nn.Linear(self.features, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, times: Tensor) -> Tensor:
        """times (b, 3) in [0, 1] -> (b, 3, hidden)."""
        dtype = self.kind.dtype
        waves = sinusoids(times.to(at_least_float32(dtype)) * 1000, self.features, 10000.0)
        return self.out_proj(F.silu(self.in_proj(waves.to(dtype)))) + self.kind


class PooledConditioning(nn.Module):
    """Embeds what is given as one vector of an item, its latents added up, as SDXL pools a prompt.

    A word then reaches every patch and block at once, and not only through the states of the scans.
    """

    def __init__(self, latent_dim: int, hidden_size: int) -> None:
        super().__init__()
        # From zero: weights that were trained without it go on as they were.
        self.proj = nn.ModuleDict(
            {m: ZeroLinear(latent_dim, hidden_size, bias=False) for m in MODALITIES}
        )

    def forward(
        self, content: dict[str, ModalityContent], cache: PromptCache | None, dtype: torch.dtype
    ) -> Tensor:
        """Pool what is given here and what a cache has read before: (b, hidden) of a dtype.

        A sum of n latents of unit variance is divided by the root of n. A cache that records is
        given the sums.
        """
        totals = {} if cache is None else dict(cache.totals)
        for modality, positions in content.items():
            known = (positions.valid & positions.given)[..., None]
            # Where a branch drops its prompt nothing of it may be read, infinities included.
            latents = torch.where(known, positions.latents, 0.0)
            total = torch.cat([latents, known.to(latents.dtype)], dim=-1).sum(1)
            totals[modality] = total + totals[modality] if modality in totals else total
        if cache is not None and cache.is_recording:
            cache.totals = totals
        pooled = {
            m: total[:, :-1] / total[:, -1:].clamp(min=1).sqrt() for m, total in totals.items()
        }
        return torch.stack([self.proj[m](one.to(dtype)) for m, one in pooled.items()]).sum(0)


class PlaceConditioning(nn.Module):
    """Shows a noisy patch what was given last at its place, as InstructPix2Pix shows its source.

    What an edit leaves is then there from the start, and need not be carried by the scans.
    """

    def __init__(self, latent_dim: int, hidden_size: int) -> None:
        super().__init__()
        # From zero: weights that were trained without it go on as they were.
        self.proj = ZeroLinear(latent_dim, hidden_size, bias=False)

    def forward(
        self,
        positions: ModalityContent,
        grid: tuple[int, int, int],
        cache: PromptCache | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Embed what stood at the places of patches (b, n): (b, n, hidden), 0 where they are given.

        A later turn hides an earlier one, and of one turn the last picture the others. A cache that
        records is given the canvas: (b, rows * columns, d), 0 where nothing was given.
        """
        (batch, count), (_, rows, columns) = positions.given.shape, grid
        # The pictures of a turn stand side by side; here each is laid on the same canvas.
        place = positions.place[..., 0] * columns + positions.place[..., 1] % max(1, columns)
        known = positions.valid & positions.given
        order = positions.turn * count + torch.arange(count, device=place.device)
        order = torch.where(known, order, -1)
        newest = order.new_full((batch, rows * columns), -1)
        newest = newest.scatter_reduce(1, place, order, "amax")
        latents = F.pad(positions.latents, (0, 0, 0, 1))  # zeros, of places where nothing was given
        source = torch.where(newest >= 0, newest % max(1, count), count)
        canvas = latents.gather(1, _for_latents(source, latents))
        if cache is not None and "image" in cache.canvas:
            canvas = torch.where((newest >= 0)[..., None], canvas, cache.canvas["image"])
        if cache is not None and cache.is_recording:
            cache.canvas = {"image": canvas}
        shown = canvas.gather(1, _for_latents(place, latents))
        return self.proj((shown * positions.noisy[..., None]).to(dtype))


def _for_latents(index: Tensor, latents: Tensor) -> Tensor:
    """Index (b, m) as an index of latents (b, n, d): (b, m, d)."""
    return index[..., None].expand(-1, -1, latents.shape[-1])


@contextmanager
def recorded_states(layers: nn.ModuleList, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Collect what enters every block and what leaves the last one, while the context is open."""
    states: list[Tensor] = []
    if not wanted:
        yield states
        return
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        for layer in layers
    ]
    handles.append(layers[-1].register_forward_hook(lambda _, __, output: states.append(output)))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded_selections(layers: nn.ModuleList, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Collect which items (b, k, l) the scans of every block read, while the context is open."""
    kept: list[Tensor] = []
    heads = [layer.selection for layer in layers] if wanted else []
    handles = [
        head.register_forward_hook(lambda _, __, output: kept.append(output[0])) for head in heads
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


class MDMDecoder(nn.Module):
    """Reads given and noisy positions of both modalities, gives features of all of them."""

    # Single vectors, which would decay in steps that do not even read them.
    no_weight_decay = ("class_embedding", "null_tokens", "start_tokens")
    # Processes that share out each sequence among them; they must all be given the same inputs.
    context_group: "dist.ProcessGroup | None" = None

    def __init__(self, config: MDMConfig) -> None:
        super().__init__()
        self.config, self.scans = config, config.joint_scans
        self.used_orders = {"text": tuple(config.text_scans), "image": tuple(config.image_scans)}
        width = config.hidden_size
        inputs = config.latent_dim * (2 if config.self_conditioning else 1)
        self.latent_proj = nn.ModuleDict({m: nn.Linear(inputs, width) for m in MODALITIES})
        self.place_embedding = nn.ModuleDict(
            {"text": PlaceEmbedding(1, width), "image": PlaceEmbedding(2, width)}
        )
        if config.place_conditioning:
            self.place_conditioning = PlaceConditioning(config.latent_dim, width)
        self.class_embedding = nn.Embedding(max(1, config.num_classes), width)
        self.null_tokens = nn.Parameter(torch.zeros(config.num_null_tokens, width))
        self.start_tokens = StartTokens(width)
        self.time_embedding = TimeEmbedding(width)
        self.time_token = nn.ModuleDict({m: nn.Linear(width, width) for m in MODALITIES})
        block = MDMAttentionBlock if config.mixer == "attention" else MDMBlock
        # What splits a model over devices fails where a kind of block that is named is not there.
        self._no_split_modules = [block.__name__]
        if config.pooled_conditioning:
            self.pooled_conditioning = PooledConditioning(config.latent_dim, width)
        self.modulation = ZeroLinear(width, block.modulation_parts * width)
        self.layers = nn.ModuleList(
            block(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(width, eps=config.layer_norm_epsilon)
        self.norm_modulation = ZeroLinear(width, 2 * width)

    def lay_out(
        self,
        content: dict[str, ModalityContent],
        has_class: Tensor,
        has_null: Tensor,
        grid: tuple[int, int, int],
    ) -> JointSequence:
        """Lay out and order the joint sequence; null tokens take no place if no item has them."""
        num_null = self.config.num_null_tokens if bool(has_null.any()) else 0
        pairs, used = self.scans, self.used_orders
        return build_sequence(content, has_class, has_null, num_null, grid, pairs, used)

    def _embed(self, inputs: DecoderInputs, clock: Tensor) -> Tensor:
        """Embed special tokens and positions in storage order: (b, l, hidden)."""
        sequence, labels = inputs.sequence, inputs.class_labels
        batch, tokens = labels.shape[0], []
        clock = clock.repeat_interleave(batch // max(1, clock.shape[0]), dim=0)
        if sequence.has_given:
            tokens.append(self.class_embedding(labels.clamp(min=0))[:, None])
            tokens.append(self.null_tokens[: sequence.num_null].expand(batch, -1, -1))
        for index, modality in enumerate(MODALITIES, start=1):
            if modality not in inputs.content:
                continue
            if sequence.has_given:
                tokens.append(self.start_tokens(modality).expand(batch, 1, -1))
            if sequence.has_noisy:
                tokens.append(self.time_token[modality](clock[:, index, None]))
            tokens.append(self._embed_positions(modality, inputs))
        return torch.cat([token.to(clock.dtype) for token in tokens], dim=1)

    def _embed_positions(self, modality: str, inputs: DecoderInputs) -> Tensor:
        """Embed what stands at every position, and where that is: (b, n, hidden)."""
        positions = inputs.content[modality]
        noisy = positions.noisy[..., None]
        latents = torch.where(noisy, inputs.z_t[modality], positions.latents)
        if self.config.self_conditioning:
            # What is given carries no estimate: its features never depend on what is noisy.
            fed_back = (inputs.estimates or {}).get(modality)
            last = torch.zeros_like(latents) if fed_back is None else fed_back * noisy
            latents = torch.cat([latents, last.to(latents.dtype)], dim=-1)
        latents = latents.to(self.latent_proj[modality].bias.dtype)
        places = self._embed_places(modality, inputs)
        return self.latent_proj[modality](latents) + places

    def _embed_places(self, modality: str, inputs: DecoderInputs) -> Tensor:
        """Embed places and turns (b, n, hidden), once for all steps that share a cache.

        With place conditioning also what was given there, which no step changes either.
        """
        positions, cache = inputs.content[modality], inputs.cache
        if cache is not None and not cache.is_recording and modality in cache.places:
            return cache.places[modality]
        places = self.place_embedding[modality](positions.place, positions.turn)
        if modality == "image" and self.config.place_conditioning:
            grid, dtype = inputs.sequence.grid, places.dtype
            places = places + self.place_conditioning(positions, grid, cache, dtype)
        if cache is not None and not cache.is_recording:
            cache.places[modality] = places
        return places

    def forward(self, inputs: DecoderInputs) -> dict[str, Tensor]:
        """Give features (b, n, hidden) of every position of every modality."""
        sequence, times = inputs.sequence, inputs.times
        if self.context_group is not None:
            share = SequenceShare(self.context_group, sequence.valid.shape[1])
            sequence = replace(sequence, share=share)
        zero = torch.zeros_like(next(iter(times.values())))
        clock = self.time_embedding(
            torch.stack([zero, *(times.get(modality, zero) for modality in MODALITIES)], dim=1)
        )
        hidden_states = self._embed(inputs, clock)
        if self.config.pooled_conditioning:
            pooled = self.pooled_conditioning(inputs.content, inputs.cache, clock.dtype)
            clock = clock.repeat_interleave(len(pooled) // max(1, len(clock)), dim=0)
            # What is given is never modulated by it: it must not depend on what comes after it.
            clock = torch.cat([clock[:, :1], clock[:, 1:] + pooled[:, None]], dim=1)
        activated = F.silu(clock)
        modulation = (
            self.modulation(activated).unflatten(-1, (-1, self.config.hidden_size)).to(clock.dtype)
        )
        modulation = sequence.share.spread(modulation)
        hidden_states = sequence.share.split(hidden_states)
        caches = [None] * len(self.layers) if inputs.cache is None else inputs.cache.layers
        for layer, cache in zip(self.layers, caches, strict=True):
            hidden_states = layer(hidden_states, modulation, sequence, inputs.keep, cache)
        hidden_states = sequence.share.join(hidden_states)
        final = self.norm_modulation(activated).unflatten(-1, (2, -1)).to(clock.dtype)
        features = modulate(self.norm(hidden_states), *sequence.at_positions(final))
        places = {"text": sequence.words, "image": sequence.patches}
        return {m: features[:, where] for m, where in places.items() if m in inputs.content}
