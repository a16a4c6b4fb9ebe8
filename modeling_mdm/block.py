# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Mamba-2 block of the decoder (Sec. 4.2.1): several scans between two projections.

Axes: b batch, k scans, l positions, h heads, p head width, n state width. Positions are in storage
order except inside `SelectiveScan`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import MDMAttentionMixer, MDMFeedForward
from .configuration_mdm import MDMConfig
from .convolution import causal_convolution, convolution_at, ordered_convolution
from .convolution_triton import convolution_triton
from .products import Projection
from .prompt_cache import LayerCache, last_inputs
from .scans import add_rows, gather_rows, merge, reorder
from .selection import Selection, SelectionHead, compact_order
from .sequence import JointSequence
from .ssd import discretize, resolve_backend, ssd

# Where a scan reads at most one item in so many, it convolves at these alone.
SHORT_SELECTION = 2

# A CPU runs as many scans at once as have this many numbers: more of them in new memory, and out of
# its caches, cost more than one pass after the other.
PASS_NUMBERS = 2**17

# Without gradients it runs a long scan in stretches of so many numbers for each of its cores, which
# stay in the core's cache from the reading of a stretch until its outputs are added up.
STRETCH_NUMBERS = 2**19


class GatedRMSNorm(nn.Module):
    """RMS norm of y * silu(gate), as in Mamba-2."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """Normalise (..., size), in float32 at least."""
        dtype, size = torch.promote_types(y.dtype, torch.float32), self.weight.shape
        if torch.is_grad_enabled():
            gated = (y * F.silu(gate)).to(dtype)
            return F.rms_norm(gated, size, self.weight.to(dtype), self.epsilon).to(y.dtype)
        gated = F.silu(gate).mul_(y).to(dtype)
        mean_square = torch.linalg.vector_norm(gated, dim=-1, keepdim=True).square_() / size[0]
        gated.mul_(torch.rsqrt_(mean_square.add_(self.epsilon))).mul_(self.weight)
        return gated.to(y.dtype)


class ScanPass(NamedTuple):
    """Some of a block's scans, which read a sequence at once.

    part: which of the block's scans. order, inverse: (b, k, l). cache: what the scans go on from.
    state: that of the positions before these, (b, k, h, n, p); None for none. steps, real: (b, k, m), the steps that are read where
    items are dropped, and False at fillers; None where all are read. gate: (b, k, l) by position,
    multiplies Delta and hides the output; None for none. stretch: how many steps are read at a
    time; None for all. window: the steps of one stretch.
    """

    part: slice
    order: Tensor
    inverse: Tensor
    cache: LayerCache | None = None
    state: Tensor | None = None
    steps: Tensor | None = None
    real: Tensor | None = None
    gate: Tensor | None = None
    stretch: int | None = None
    window: slice | None = None

    @property
    def is_recording(self) -> bool:
        """Whether the cache keeps what these scans read."""
        return self.cache is not None and self.cache.is_recording

    def kept(self, name: str) -> Tensor | None:
        """What the cache has for these scans under a name."""
        tensor = None if self.cache is None else self.cache.get(name)
        return None if tensor is None else tensor[:, self.part]

    def read(self, values: Tensor) -> Tensor:
        """Read (b, k, l, c) in every scan's order: (b, k, m, c)."""
        if self.reads_all:
            return reorder(values, self.order, self.inverse)
        return gather_rows(values, self.positions)

    @property
    def reads_all(self) -> bool:
        """Whether every step is read, at once."""
        return self.steps is None and self.window is None

    @property
    def positions(self) -> Tensor:
        """What is read, (b, k, m)."""
        return self.order[..., self.window] if self.steps is None else self.order.gather(-1, self.steps)

    def windows(self) -> Iterator["ScanPass"]:
        """Yield the stretches that are read one after another, the last of which may be shorter."""
        length = self.order.shape[-1]
        for start in range(0, length, self.stretch):
            yield self._replace(window=slice(start, min(start + self.stretch, length)))

    def zeros(self, y: Tensor, targets: int) -> Tensor:
        """Zeros for sums of what is read of y (b, ..., c), (b, targets, l, c)."""
        return y.new_zeros(y.shape[0], targets, self.order.shape[-1], y.shape[-1])

    def bring_back(self, y: Tensor) -> Tensor:
        """Bring (b, k, m, c) back to storage order, 0 where nothing was read: (b, k, l, c)."""
        if self.steps is None:
            return reorder(y, self.inverse, self.order)
        total = self.zeros(y, self.order.shape[1])
        return add_rows(total, y * self.real[..., None], self.positions)

    def merge(self, y: Tensor, others: Tensor | None) -> Tensor:
        """Sum (b, k, m, c) over the scans in storage order, onto `others` if any: (b, l, c)."""
        if self.steps is None:
            merged = merge(y, self.order, self.inverse)
        elif y.device.type != "cpu":
            # Added up side by side, a sum would differ from run to run in its last digits.
            merged = self.bring_back(y).sum(1)
        else:
            merged = self.zeros(y, 1)
            merged = add_rows(merged, y * self.real[..., None], self.positions)[:, 0]
        if others is None:
            return merged
        return others + merged if torch.is_grad_enabled() else others.add_(merged)


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

    def passes(
        self,
        hidden_states: Tensor,
        sequence: JointSequence,
        selection: Selection | None,
        cache: LayerCache | None,
    ) -> list[ScanPass]:
        """Say which scans run at once on (b, l, hidden): a CPU runs long ones one by one."""
        k = together = len(self.scans)
        batch, length = hidden_states.shape[:2]
        is_hard = selection is not None and selection.gate is None
        is_whole = (cache is not None and cache.is_recording) or torch.compiler.is_compiling()
        if hidden_states.device.type == "cpu" and not is_whole:
            items = batch * (selection.longest if is_hard else length)
            numbers = items * self.heads * self.sizes[1]
            together = min(k, max(1, PASS_NUMBERS // max(1, numbers)))
        stretch = self._stretch(hidden_states) if not is_whole and together == 1 else None
        passes, (order, inverse) = [], sequence.orders_of(self.scans)
        for start in range(0, k, together):
            part = slice(start, min(start + together, k))
            state = None if cache is None else cache.get("state")
            state = None if state is None else state[:, part]
            one = ScanPass(part, order[:, part], inverse[:, part], cache, state, stretch=stretch)
            if is_hard:
                steps, real = compact_order(one.order, selection.kept[:, part], selection.longest)
                one = one._replace(steps=steps, real=real, stretch=None)
            elif selection is not None:
                one = one._replace(gate=selection.gate[:, part])
            passes.append(one)
        return passes

    def _stretch(self, hidden_states: Tensor) -> int | None:
        """Say how many steps a CPU reads at a time of (b, l, hidden); None where that is all."""
        batch, length = hidden_states.shape[:2]
        if hidden_states.device.type != "cpu" or torch.is_grad_enabled():
            return None
        numbers = STRETCH_NUMBERS * torch.get_num_threads()
        stretch = numbers // (batch * self.heads * self.sizes[1])
        stretch = max(1, stretch // self.chunk_size) * self.chunk_size
        return stretch if stretch < length else None

    def forward(
        self,
        x: Tensor,
        BC: Tensor,
        raw_delta: Tensor,
        these: ScanPass,
        sequence: JointSequence,
        others: Tensor | None = None,
    ) -> Tensor:
        """Scan a sequence in the k orders of one of `passes`, and sum over them.

        Args:
            x: (b, l, h * p), shared by all scans, or (b, k, l, h * p). BC: (b, k, l, 2 n).
            raw_delta: (b, k, l, h).
            these: the scans, what they read and what they go on from. sequence: masks.
            others: the sum over the passes before, (b, l, h * p), which may be overwritten.

        Returns:
            (b, l, h * p) in storage order, 0 where nothing is read.
        """
        if these.stretch is None:
            return these.merge(self._read(x, BC, raw_delta, these, sequence)[0], others)
        total = these.zeros(x, 1) if others is None else others[:, None]
        state = these.state
        for window in these.windows():
            y, state = self._read(x, BC, raw_delta, window._replace(state=state), sequence)
            add_rows(total, y, window.positions)
        return total[:, 0]

    def separately(
        self, x: Tensor, BC: Tensor, raw_delta: Tensor, these: ScanPass, sequence: JointSequence
    ) -> Tensor:
        """Scan as `forward` does, without the sum: (b, k, l, h * p)."""
        if these.order.shape[1] == 1:
            return self(x, BC, raw_delta, these, sequence)[:, None]
        return these.bring_back(self._read(x, BC, raw_delta, these, sequence)[0])

    def _read(
        self, x: Tensor, BC: Tensor, raw_delta: Tensor, these: ScanPass, sequence: JointSequence
    ) -> tuple[Tensor, Tensor]:
        """Scan in the orders of `these`.

        Returns:
            (b, k, m, h * p) in scan order, of what is read, and the state after it, (b, k, ...).
        """
        part = these.part
        raw_delta = these.read(raw_delta).to(self.delta_bias.dtype)
        delta = F.softplus(raw_delta + self.delta_bias[part, None]).clamp(*self.delta_limit)
        weight = self._weight(sequence, these.gate, part)
        if weight is not None:
            weight = these.read(weight.expand(these.order.shape)[..., None])
            delta = delta * weight
        count = sequence.valid.sum(-1)  # (b,), real positions, which lead every scan
        if these.real is not None:
            delta = delta * these.real[..., None]
        elif these.is_recording:
            # The state that is kept is that of the last real position.
            places = torch.arange(these.order.shape[-1], device=x.device)
            delta = delta * (places < count[:, None])[:, None, :, None]
        split = x.shape[-1]
        x = self._convolve("x_tail", x, slice(None, split), these, count)
        BC = self._convolve("BC_tail", BC, slice(split, None), these, count)
        y, state = self._recurrence(x, BC, delta, these)
        if weight is not None:
            # The gate learns through Delta alone: the norm behind this scales any share of an
            # output that no other scan adds to up to full size, so its gradient would explode.
            y = y * weight.detach().to(y.dtype)
        return y, state

    def _convolve(
        self, name: str, x: Tensor, channels: slice, these: ScanPass, count: Tensor
    ) -> Tensor:
        """Read some channels in every order, convolve them from the cache's last inputs, SiLU.

        x: (b, l, c) or (b, k, l, c) in storage order. Returns (b, k, l, c) in scan order, or
        (b, k, m, c) at the steps that are read.
        """
        weight = self.conv_weight[these.part, channels]
        bias = self.conv_bias[these.part, channels]
        if these.window is not None:
            return self._convolve_window(x, weight, bias, these, these.kept(name))
        tail, orders, steps = these.kept(name), (these.order, these.inverse), these.steps
        uses_triton = self._resolve_backend(x) == "triton"
        is_short = steps is not None and SHORT_SELECTION * steps.shape[-1] <= orders[0].shape[-1]
        if is_short and not these.is_recording and not uses_triton:
            return F.silu(convolution_at(x, orders[0], steps, weight, bias, tail))
        if uses_triton and not these.is_recording:
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
            tail = None if tail is None else tail.to(x.dtype)
            convolved = convolution_triton(x, *orders, weight, bias, tail)
        elif not these.is_recording:
            convolved = ordered_convolution(x, *orders, weight, bias, tail)
        else:
            x = reorder(x, *orders)
            these.cache.store(**{name: last_inputs(x, count, tail, weight.shape[-1] - 1)})
            convolved = F.silu(causal_convolution(x, weight, bias, tail))
        return convolved if steps is None else gather_rows(convolved, steps)

    def _convolve_window(
        self, x: Tensor, weight: Tensor, bias: Tensor, these: ScanPass, tail: Tensor | None
    ) -> Tensor:
        """As `_convolve`, of a window, with what is before it: (b, k, m, c)."""
        before = min(weight.shape[-1] - 1, these.window.start)
        order = these.order[..., these.window.start - before : these.window.stop]
        tail = None if before else tail
        return ordered_convolution(x, order, order, weight, bias, tail)[:, :, before:]

    def _resolve_backend(self, x: Tensor, length: int | None = None) -> str:
        return resolve_backend(self.backend, x.device, length, x.dtype, self.sizes)

    def _weight(self, sequence: JointSequence, gate: Tensor | None, part: slice) -> Tensor | None:
        """Factor of Delta and the output, (b, k, l) or (k, l): 0 where an order is not in use."""
        if sequence.all_active:
            return gate
        active = torch.stack([sequence.scan_active[k] for k in self.scans[part]])
        active = active.to(self.delta_bias.dtype)
        return active if gate is None else active * gate

    def _recurrence(
        self, x: Tensor, BC: Tensor, delta: Tensor, these: ScanPass
    ) -> tuple[Tensor, Tensor]:
        """Discretise and run Eq. 10-11 on sequences in scan order.

        Returns:
            (b, k, m, h * p) like x, and the last state, (b, k, h, n, p).
        """
        batch, k, length, inner = x.shape
        A = -torch.exp(self.A_log[these.part].to(delta.dtype))[:, None]  # (k, 1, h)
        log_decay, input_scale = discretize(delta, A, self.discretization)
        x = x.reshape(batch * k, length, self.heads, inner // self.heads)
        B, C = BC.flatten(0, 1).chunk(2, dim=-1)
        discrete = (input_scale.flatten(0, 1), log_decay.flatten(0, 1))
        entering = these.state
        y, state = ssd(
            x,
            *discrete,
            B,
            C,
            None if entering is None else entering.flatten(0, 1),
            self.chunk_size,
            self._resolve_backend(x, these.order.shape[-1] if these.window else length),
        )
        state = state.unflatten(0, (batch, k))
        if these.is_recording:
            these.cache.store(state=state)
        D = self.D[these.part].to(x.dtype).repeat(batch, 1)[:, None, :, None]  # (b * k, 1, h, 1)
        y = y + D * x if torch.is_grad_enabled() else y.addcmul_(D, x)
        return y.reshape(batch, k, length, inner), state

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
        inner, self.state_size = config.inner_size, config.state_size
        self.sizes, self.per_scan = [inner, inner], 2 * self.state_size + config.num_ssm_heads
        projected = 2 * inner + len(scans) * self.per_scan
        self.in_proj = Projection(config.hidden_size, projected, bias=False)
        self.scan = SelectiveScan(config, scans)
        self.norm = GatedRMSNorm(inner, config.layer_norm_epsilon)
        self.out_proj = Projection(inner, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        sequence: JointSequence,
        selection: Selection | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Mix positions: (b, l, hidden) -> (b, l, hidden)."""
        projected = self.in_proj(hidden_states)
        passes = self.scan.passes(hidden_states, sequence, selection, cache)
        per_pass = [these.order.shape[1] * self.per_scan for these in passes]
        z, x, *scan_inputs = projected.split([*self.sizes, *per_pass], dim=-1)
        y = None
        for these, inputs in zip(passes, scan_inputs, strict=True):
            inputs = inputs.unflatten(-1, (-1, self.per_scan)).transpose(1, 2)  # (b, k, l, 2 n + h)
            BC, raw_delta = inputs.split([2 * self.state_size, self.scan.heads], dim=-1)
            y = self.scan(x, BC, raw_delta, these, sequence, y)
        return self.out_proj(self.norm(y, z))


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
        boundary, outputs = sequence.text_segment, []
        for these in self.scan.passes(hidden_states, sequence, selection, cache):
            pairs, norms = self.pairs[these.part], list(self.norm)[these.part]
            projected = torch.stack(
                [self._project(self.in_proj, pair, hidden_states, boundary) for pair in pairs], 1
            )
            z, x, BC, raw_delta = projected.split(self.sizes, dim=-1)  # (b, k, l, ...)
            y = self.scan.separately(x, BC, raw_delta, these, sequence)
            outputs += [
                self._project(self.out_proj, pair, norm(y[:, i], z[:, i]), boundary)
                for i, (pair, norm) in enumerate(zip(pairs, norms, strict=True))
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
