# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Mamba-2 block of the decoder (Sec. 4.2.1): several scans between two projections.

Axes: b batch, k scans, l positions, h heads, p head width, n state width. Positions are in storage
order except inside `SelectiveScan`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import MDMAttentionMixer, MDMFeedForward
from .configuration_mdm import MDMConfig
from .convolution import causal_convolution, convolution_at, ordered_convolution
from .convolution_triton import convolution_triton
from .prompt_cache import LayerCache, last_inputs
from .scans import gather_rows, merge, reorder
from .selection import Selection, SelectionHead, compact_order
from .sequence import JointSequence
from .ssd import discretize, resolve_backend, ssd

# Where a scan reads at most one item in so many, it convolves at these alone.
SHORT_SELECTION = 2


class GatedRMSNorm(nn.Module):
    """RMS norm of y * silu(gate), as in Mamba-2."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """Normalise (..., size), in float32 at least."""
        gated = (y * F.silu(gate)).to(torch.promote_types(y.dtype, torch.float32))
        normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.epsilon)
        return (normed * self.weight).to(y.dtype)


class SelectiveScan(nn.Module):
    """k scans of one sequence: reorder, convolve, select, run the recurrence (Eq. 10-13).

    Convolution, A, D and the bias of Delta are each scan's own.
    """

    def __init__(self, config: MDMConfig, scans: tuple[int, ...]) -> None:
        super().__init__()
        self.scans = scans
        self.heads, self.state_size = config.num_ssm_heads, config.state_size
        self.sizes = (config.state_size, config.head_dim)
        self.chunk_size, self.discretization = config.chunk_size, config.discretization
        self.delta_limit, self.backend = tuple(config.delta_limit), config.kernel_backend
        k, channels = len(scans), config.inner_size + 2 * config.state_size
        self.conv_weight = nn.Parameter(torch.empty(k, channels, config.conv_kernel))
        self.conv_bias = nn.Parameter(torch.empty(k, channels))
        self.A_log = nn.Parameter(torch.empty(k, self.heads))
        self.D = nn.Parameter(torch.empty(k, self.heads))
        self.delta_bias = nn.Parameter(torch.empty(k, self.heads))

    def forward(
        self,
        x: Tensor,
        BC: Tensor,
        raw_delta: Tensor,
        orders: tuple[Tensor, Tensor],
        sequence: JointSequence,
        selection: Selection | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Scan a sequence in all orders.

        Args:
            x: (b, l, h * p), shared by all scans, or (b, k, l, h * p). BC: (b, k, l, 2 n).
            raw_delta: (b, k, l, h).
            orders: of these scans, and their inverses, (b, k, l). sequence: masks.
            selection: the items that each scan reads; None for all.
            cache: states of the positions before these, which the scans go on from.

        Returns:
            (b, k, l, h * p) in scan order; 0 where an item is not read.
        """
        order = orders[0]
        is_hard = selection is not None and selection.gate is None
        steps, real = None, None
        if is_hard:
            steps, real = compact_order(order, selection.kept, selection.longest)  # (b, k, m)
        raw_delta = self._read(raw_delta, orders, steps).to(self.delta_bias.dtype)
        delta = F.softplus(raw_delta + self.delta_bias[:, None]).clamp(*self.delta_limit)
        weight = self._weight(sequence, None if selection is None else selection.gate)
        if weight is not None:
            weight = self._read(weight.expand(order.shape)[..., None], orders, steps)
            delta = delta * weight
        count = sequence.valid.sum(-1)  # (b,), real positions, which lead every scan
        if is_hard:
            delta = delta * real[..., None]
        elif cache is not None and cache.is_recording:
            # The state that is kept is that of the last real position.
            places = torch.arange(order.shape[-1], device=order.device)
            delta = delta * (places < count[:, None])[:, None, :, None]
        split = x.shape[-1]
        x = self._convolve("x_tail", x, slice(None, split), orders, steps, count, cache)
        BC = self._convolve("BC_tail", BC, slice(split, None), orders, steps, count, cache)
        y = self._recurrence(x, BC, delta, cache)
        if weight is not None:
            # The gate learns through Delta alone: the norm behind this scales any share of an
            # output that no other scan adds to up to full size, so its gradient would explode.
            y = y * weight.detach().to(y.dtype)
        return self._scatter(y * real[..., None], steps, order.shape[-1]) if is_hard else y

    @staticmethod
    def _read(values: Tensor, orders: tuple[Tensor, Tensor], steps: Tensor | None) -> Tensor:
        """Read (b, k, l, c) in every scan's order, all of it or at some steps (b, k, m)."""
        if steps is None:
            return reorder(values, *orders)
        return gather_rows(values, orders[0].gather(-1, steps))

    @staticmethod
    def _scatter(y: Tensor, steps: Tensor, length: int) -> Tensor:
        """Put (b, k, m, c) back to the steps that it comes from, 0 elsewhere: (b, k, l, c)."""
        batch, k, _, inner = y.shape
        first = torch.arange(batch * k, device=y.device).view(batch, k, 1) * length
        result = y.new_zeros(batch * k * length, inner)
        rows = (steps + first).flatten()
        return result.index_copy_(0, rows, y.flatten(0, 2)).view(batch, k, length, inner)

    def _convolve(
        self,
        name: str,
        x: Tensor,
        channels: slice,
        orders: tuple[Tensor, Tensor],
        steps: Tensor | None,
        count: Tensor,
        cache: LayerCache | None,
    ) -> Tensor:
        """Read some channels in every order, convolve them from the cache's last inputs, SiLU.

        x: (b, l, c) or (b, k, l, c) in storage order. Returns (b, k, l, c) in scan order, or
        (b, k, m, c) at `steps`.
        """
        weight, bias = self.conv_weight[:, channels], self.conv_bias[:, channels]
        tail = None if cache is None else cache.get(name)
        is_recording = cache is not None and cache.is_recording
        uses_triton = self._resolve_backend(x) == "triton"
        is_short = steps is not None and SHORT_SELECTION * steps.shape[-1] <= orders[0].shape[-1]
        if is_short and not is_recording and not uses_triton:
            return F.silu(convolution_at(x, orders[0], steps, weight, bias, tail))
        if uses_triton and not is_recording:
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
            tail = None if tail is None else tail.to(x.dtype)
            convolved = convolution_triton(x, *orders, weight, bias, tail)
        elif not is_recording:
            convolved = ordered_convolution(x, *orders, weight, bias, tail)
        else:
            x = reorder(x, *orders)
            cache.store(**{name: last_inputs(x, count, tail, weight.shape[-1] - 1)})
            convolved = F.silu(causal_convolution(x, weight, bias, tail))
        return convolved if steps is None else gather_rows(convolved, steps)

    def _resolve_backend(self, x: Tensor, length: int | None = None) -> str:
        return resolve_backend(self.backend, x.device, length, x.dtype, self.sizes)

    def _weight(self, sequence: JointSequence, gate: Tensor | None) -> Tensor | None:
        """Factor of Delta and the output, (b, k, l) or (k, l): 0 where an order is not in use."""
        if sequence.all_active:
            return gate
        active = torch.stack([sequence.scan_active[k] for k in self.scans])
        active = active.to(self.delta_bias.dtype)
        return active if gate is None else active * gate

    def _recurrence(self, x: Tensor, BC: Tensor, delta: Tensor, cache: LayerCache | None) -> Tensor:
        """Discretise and run Eq. 10-11 on sequences in scan order: (b, k, l, h * p) -> the same."""
        batch, k, length, inner = x.shape
        A = -torch.exp(self.A_log.to(delta.dtype))[:, None]  # (k, 1, h)
        log_decay, input_scale = discretize(delta, A, self.discretization)
        x = x.reshape(batch * k, length, self.heads, inner // self.heads)
        B, C = BC.flatten(0, 1).chunk(2, dim=-1)
        discrete = (input_scale.flatten(0, 1), log_decay.flatten(0, 1))
        entering = None if cache is None else cache.get("state")
        y, state = ssd(
            x,
            *discrete,
            B,
            C,
            None if entering is None else entering.flatten(0, 1),
            self.chunk_size,
            self._resolve_backend(x, length),
        )
        if cache is not None:
            cache.store(state=state.unflatten(0, (batch, k)))
        D = self.D.to(x.dtype).repeat(batch, 1)[:, None, :, None]  # (b * k, 1, h, 1)
        y = y + D * x if torch.is_grad_enabled() else y.addcmul_(D, x)
        return y.reshape(batch, k, length, inner)

    @torch.no_grad()
    def initialize(self, config: MDMConfig) -> dict[str, Tensor]:
        """Draw Mamba-2's initial values: A = -1 ... -h, D = 1, Delta log-uniform in its range."""
        k = len(self.scans)
        uniform = torch.rand(k, self.heads)
        low, high = math.log(config.delta_min), math.log(config.delta_max)
        delta = torch.exp(uniform * (high - low) + low).clamp(min=config.delta_floor)
        bound = config.conv_kernel**-0.5
        return {
            "A_log": torch.log(torch.arange(1, self.heads + 1, dtype=torch.float32)).repeat(k, 1),
            "D": torch.ones(k, self.heads),
            "delta_bias": delta + torch.log(-torch.expm1(-delta)),  # inverse of softplus
            "conv_weight": torch.empty(self.conv_weight.shape).uniform_(-bound, bound),
            "conv_bias": torch.empty(self.conv_bias.shape).uniform_(-bound, bound),
        }


class MDMMamba2Mixer(nn.Module):
    """Mamba-2 with k scans that share x, the gate, the norm and both projections.

    Project once, scan k times, project once. With one scan, `"euler"` and equal weights it equals
    transformers' `Mamba2Mixer`.
    """

    def __init__(self, config: MDMConfig, scans: tuple[int, ...]) -> None:
        super().__init__()
        inner, per_scan = config.inner_size, 2 * config.state_size + config.num_ssm_heads
        self.sizes = [inner, inner, len(scans) * per_scan]
        self.state_size = config.state_size
        self.in_proj = nn.Linear(config.hidden_size, sum(self.sizes), bias=False)
        self.scan = SelectiveScan(config, scans)
        self.norm = GatedRMSNorm(inner, config.layer_norm_epsilon)
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        sequence: JointSequence,
        selection: Selection | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Mix positions: (b, l, hidden) -> (b, l, hidden)."""
        z, x, scan_inputs = self.in_proj(hidden_states).split(self.sizes, dim=-1)
        scan_inputs = scan_inputs.unflatten(-1, (len(self.scan.scans), -1)).transpose(
            1, 2
        )  # (b, k, l, 2 n + h)
        BC, raw_delta = scan_inputs.split([2 * self.state_size, self.scan.heads], dim=-1)
        orders = sequence.orders_of(self.scan.scans)
        y = self.scan(x, BC, raw_delta, orders, sequence, selection, cache)  # (b, k, l, inner)
        return self.out_proj(self.norm(merge(y, *orders), z))


class MDMSeparateMixer(nn.Module):
    """Mamba-2 in which every order of every modality has projections of its own.

    Most of MDM's 7 billion parameters are these. In a scan, a position uses the projections of its
    own modality's order.
    """

    def __init__(self, config: MDMConfig, scans: tuple[int, ...]) -> None:
        super().__init__()
        inner = config.inner_size
        self.sizes = [inner, inner, 2 * config.state_size, config.num_ssm_heads]
        self.pairs = [config.joint_scans[scan] for scan in scans]
        orders = {
            "image": sorted({image for image, _ in self.pairs}),
            "text": sorted({text for _, text in self.pairs}),
        }
        width = config.hidden_size
        self.in_proj = nn.ModuleDict(
            {
                f"{g}_{order}": nn.Linear(width, sum(self.sizes), bias=False)
                for g in orders
                for order in orders[g]
            }
        )
        self.out_proj = nn.ModuleDict(
            {
                f"{g}_{order}": nn.Linear(inner, width, bias=False)
                for g in orders
                for order in orders[g]
            }
        )
        self.scan = SelectiveScan(config, scans)
        self.norm = nn.ModuleList(GatedRMSNorm(inner, config.layer_norm_epsilon) for _ in scans)

    def _project(
        self, projections: nn.ModuleDict, pair: tuple[int, int], x: Tensor, boundary: int
    ) -> Tensor:
        text, image = x[:, :boundary], x[:, boundary:]
        return torch.cat(
            [projections[f"text_{pair[1]}"](text), projections[f"image_{pair[0]}"](image)], dim=1
        )

    def forward(
        self,
        hidden_states: Tensor,
        sequence: JointSequence,
        selection: Selection | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Mix positions: (b, l, hidden) -> (b, l, hidden)."""
        boundary = sequence.text_segment
        projected = torch.stack(
            [self._project(self.in_proj, pair, hidden_states, boundary) for pair in self.pairs],
            dim=1,
        )
        z, x, BC, raw_delta = projected.split(self.sizes, dim=-1)  # (b, k, l, ...)
        order, inverse = sequence.orders_of(self.scan.scans)
        y = self.scan(x, BC, raw_delta, (order, inverse), sequence, selection, cache)
        y = reorder(y, inverse, order)  # (b, k, l, inner) in storage order
        outputs = [
            self._project(self.out_proj, pair, self.norm[i](y[:, i], z[:, i]), boundary)
            for i, pair in enumerate(self.pairs)
        ]
        return torch.stack(outputs).sum(0)


def modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale normalised features by what depends on time (adaLN)."""
    return normed * (1 + scale) + shift


class MDMBlock(GradientCheckpointingLayer):
    """One layer of the decoder: norm, time modulation, mixer, gate, residual.

    With attention, a feed-forward too. `modulation` comes from one network shared by all blocks;
    each block adds a bias of its own. Gates start at zero.
    """

    def __init__(self, config: MDMConfig, layer_index: int) -> None:
        super().__init__()
        self.is_attention = config.mixer == "attention"
        num_scans = len(config.joint_scans)
        scans = (
            tuple(range(num_scans))
            if config.scan_mode == "parallel"
            else (layer_index % num_scans,)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.selection = None
        if self.is_attention:
            self.mixer = MDMAttentionMixer(config.hidden_size, config.num_attention_heads)
            self.feed_forward_norm = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
            self.feed_forward = MDMFeedForward(config.hidden_size, config.intermediate_size)
        else:
            mixer = MDMMamba2Mixer if config.scan_projections == "shared" else MDMSeparateMixer
            self.mixer = mixer(config, scans)
            if config.use_selection:
                self.selection = SelectionHead(config.hidden_size, len(scans))
        self.modulation_bias = nn.Parameter(
            torch.zeros(modulation_parts(config), config.hidden_size)
        )

    def forward(
        self,
        hidden_states: Tensor,
        modulation: Tensor,
        sequence: JointSequence,
        keep: float = 1.0,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Refine features.

        Args:
            hidden_states: (b, l, hidden).
            modulation: (r, 3, parts, hidden), one row for each of the times given, text and image;
                as for `JointSequence.at_positions`.
            sequence: orders and masks. keep: share of items that each scan reads.
            cache: what this block keeps of given positions before these.
        """
        parts = sequence.at_positions(modulation + self.modulation_bias)  # parts x (b, l, hidden)
        normed = modulate(self.norm(hidden_states), parts[0], parts[1])
        if self.is_attention:
            mixed = self.mixer(normed, sequence.given, sequence.valid, sequence.turn, cache)
            hidden_states = hidden_states + parts[2] * mixed
            normed = modulate(self.feed_forward_norm(hidden_states), parts[3], parts[4])
            return hidden_states + parts[5] * self.feed_forward(normed)
        selection = None
        if self.selection is not None and keep < 1:
            masks = sequence.given, sequence.valid, sequence.special
            kept, gate = self.selection(normed, keep, *masks)
            longest = sequence.longest_selection(keep)
            selection = Selection(kept, longest, gate if self.training else None)
        return hidden_states + parts[2] * self.mixer(normed, sequence, selection, cache)


def modulation_parts(config: MDMConfig) -> int:
    """Vectors that time modulates a block with: shift, scale and gate of each residual branch."""
    return 6 if config.mixer == "attention" else 3
