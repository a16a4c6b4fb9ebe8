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
from .cache import LayerCache, last_inputs
from .configuration_mdm import MDMConfig
from .convolution import causal_convolution, convolution_at, ordered_convolution
from .convolution_triton import convolution_triton
from .matmul import project
from .precision import KeepsPrecision, RMSNorm, at_least_float32
from .scan_orders import gather_rows, reorder
from .scan_pass import ScanPass, scans_at_once, stretch_length
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
        dtype, size = torch.promote_types(y.dtype, torch.float32), self.weight.shape
        if torch.is_grad_enabled():
            gated = (y * F.silu(gate)).to(dtype)
            return F.rms_norm(gated, size, self.weight.to(dtype), self.epsilon).to(y.dtype)
        gated = F.silu(gate).mul_(y).to(dtype)
        mean_square = torch.linalg.vector_norm(gated, dim=-1, keepdim=True).square_() / size[0]
        gated.mul_(torch.rsqrt_(mean_square.add_(self.epsilon))).mul_(self.weight)
        return gated.to(y.dtype)


class SelectiveScan(KeepsPrecision, nn.Module):
    """k scans of one sequence: reorder, convolve, select, run the recurrence (Eq. 10-13).

    Convolution, A, D and the bias of Delta are each scan's own.
    """

    precise = ("A_log", "delta_bias")
    no_weight_decay = ("A_log", "D", "delta_bias")  # as in mamba

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
        dtype = at_least_float32(torch.get_default_dtype())
        self.A_log = nn.Parameter(torch.empty(k, self.heads, dtype=dtype))
        self.D = nn.Parameter(torch.empty(k, self.heads))
        self.delta_bias = nn.Parameter(torch.empty(k, self.heads, dtype=dtype))

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
        stretch = None
        if hidden_states.device.type == "cpu" and not is_whole:
            width = batch * self.heads * self.sizes[1]
            steps = selection.longest if is_hard else length
            together = scans_at_once(k, width * steps)
            is_long = is_hard and SHORT_SELECTION * steps > length  # convolves every position
            if together == 1 and not is_long and not torch.is_grad_enabled():
                stretch = stretch_length(steps, width, self.chunk_size)
        passes, (order, inverse) = [], sequence.orders_of(self.scans)
        for start in range(0, k, together):
            part = slice(start, min(start + together, k))
            one = ScanPass(part, order[:, part], inverse[:, part], cache, stretch=stretch)
            one = one._replace(state=one.kept("state"))
            if is_hard:
                steps, real = compact_order(one.order, selection.kept[:, part], selection.longest)
                one = one._replace(steps=steps, real=real)
            elif selection is not None:
                one = one._replace(gate=selection.gate[:, part])
            passes.append(one)
        return passes

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
            return these.merge(self._scan(x, BC, raw_delta, these, sequence)[0], others)
        total = these.zeros(x, 1) if others is None else others[:, None]
        state = these.state
        for window in these.windows():
            y, state = self._scan(x, BC, raw_delta, window._replace(state=state), sequence)
            window.add_to(total, y)
        return total[:, 0]

    def separately(
        self, x: Tensor, BC: Tensor, raw_delta: Tensor, these: ScanPass, sequence: JointSequence
    ) -> Tensor:
        """Scan as `forward` does, without the sum: (b, k, l, h * p)."""
        if these.order.shape[1] == 1:
            return self(x, BC, raw_delta, these, sequence)[:, None]
        return these.bring_back(self._scan(x, BC, raw_delta, these, sequence)[0])

    def _scan(
        self, x: Tensor, BC: Tensor, raw_delta: Tensor, these: ScanPass, sequence: JointSequence
    ) -> tuple[Tensor, Tensor | None]:
        """Scan in the orders of `these`.

        Returns:
            (b, k, m, h * p) in scan order, of what is read, and the state after it,
            (b, k, h, n, p), where it is needed.
        """
        part = these.part
        raw_delta = these.read(raw_delta).to(at_least_float32(self.delta_bias.dtype))
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
        tail, orders, steps = these.kept(name), (these.order, these.inverse), these.steps
        if these.window is not None and steps is None:
            return self._convolve_window(x, weight, bias, these, tail)
        uses_triton = self._resolve_backend(x) == "triton"
        is_short = steps is not None and SHORT_SELECTION * steps.shape[-1] <= orders[0].shape[-1]
        if is_short and not these.is_recording and not uses_triton:
            convolved = convolution_at(x, orders[0], steps, weight, bias, tail)
            return F.silu(convolved, inplace=not torch.is_grad_enabled())
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
        tail = tail if before == these.window.start else None  # what the window's inputs replace
        return ordered_convolution(x, order, order, weight, bias, tail)[:, :, before:]

    def _resolve_backend(self, x: Tensor, length: int | None = None) -> str:
        return resolve_backend(self.backend, x.device, length, x.dtype, self.sizes)

    def _weight(self, sequence: JointSequence, gate: Tensor | None, part: slice) -> Tensor | None:
        """Factor of Delta and the output, (b, k, l) or (k, l): 0 where an order is not in use."""
        if sequence.all_active:
            return gate
        active = torch.stack([sequence.scan_active[k] for k in self.scans[part]])
        active = active.to(at_least_float32(self.delta_bias.dtype))
        return active if gate is None else active * gate

    def _recurrence(
        self, x: Tensor, BC: Tensor, delta: Tensor, these: ScanPass
    ) -> tuple[Tensor, Tensor | None]:
        """Discretise and run Eq. 10-11 on sequences in scan order.

        Returns:
            (b, k, m, h * p) like x, and the last state, (b, k, h, n, p), where it is needed.
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
            self._resolve_backend(x, length if these.window is None else these.order.shape[-1]),
            needs_state=these.is_recording or these.window is not None,
        )
        state = None if state is None else state.unflatten(0, (batch, k))
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
        self.in_proj = nn.Linear(config.hidden_size, projected, bias=False)
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
        projected = project(self.in_proj, hidden_states)
        passes = self.scan.passes(hidden_states, sequence, selection, cache)
        per_pass = [these.order.shape[1] * self.per_scan for these in passes]
        z, x, *scan_inputs = projected.split([*self.sizes, *per_pass], dim=-1)
        y = None
        for these, inputs in zip(passes, scan_inputs, strict=True):
            inputs = inputs.unflatten(-1, (-1, self.per_scan)).transpose(1, 2)  # (b, k, l, 2 n + h)
            BC, raw_delta = inputs.split([2 * self.state_size, self.scan.heads], dim=-1)
            y = self.scan(x, BC, raw_delta, these, sequence, y)
        return project(self.out_proj, self.norm(y, z))


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
        of_text, of_image = projections[f"text_{pair[1]}"], projections[f"image_{pair[0]}"]
        return torch.cat([project(of_text, text), project(of_image, image)], dim=1)

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
        self.norm = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.selection = None
        if self.is_attention:
            self.mixer = MDMAttentionMixer(config.hidden_size, config.num_attention_heads)
            self.feed_forward_norm = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
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
