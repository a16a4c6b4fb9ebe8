# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Mamba-2 block of the decoder (Sec. 4.2.1): several scans between two projections.

`MDMBlock` norms features, modulates them by time, selects what every scan reads, and adds what its
mixer makes of them. A mixer projects them to z, x, B, C and Delta, has them scanned, gates and
norms the sum by z, and projects it back. `SelectiveScan` reads them in every scan's order, gives
every step its Delta, convolves, discretises (Eq. 12-13) and runs the recurrence (Eq. 10-11).

Axes: b batch, k scans, l positions, m positions that are read, h heads, p head width, n state
width. Positions are in storage order except inside `SelectiveScan`.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .cache import LayerCache
from .configuration_mdm import MDMConfig
from .convolution import convolve, last_inputs
from .matmul import project
from .precision import KeepsPrecision, RMSNorm, at_least_float32
from .scan_pass import ScanPass, scans_at_once, split_passes
from .selection import Selection, SelectionHead
from .sequence import JointSequence
from .ssd import discretize, resolve_backend, ssd


def modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale normalised features by what depends on time (adaLN)."""
    return normed * (1 + scale) + shift


class MDMBlock(GradientCheckpointingLayer):
    """One layer of the decoder: norm, time modulation, Mamba-2, gate, residual.

    `modulation` comes from one network shared by all blocks; each block adds a bias of its own.
    Gates start at zero.
    """

    modulation_parts = 3  # shift, scale and gate

    def __init__(self, config: MDMConfig, layer_index: int) -> None:
        super().__init__()
        scans = tuple(range(len(config.joint_scans)))
        if config.scan_mode == "cyclic":
            scans = (layer_index % len(scans),)
        mixer = MDMMamba2Mixer if config.scan_projections == "shared" else MDMSeparateMixer
        self.norm = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mixer = mixer(config, scans)
        self.selection = None
        if config.use_selection:
            self.selection = SelectionHead(config.hidden_size, len(scans))
        self.modulation_bias = nn.Parameter(torch.zeros(self.modulation_parts, config.hidden_size))

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
            hidden_states: (b, l, hidden), or of the sequence's share (b, s, hidden).
            modulation: (r, 3, parts, hidden), one row for each of the times given, text and image;
                as for `JointSequence.at_positions`.
            sequence: orders and masks. keep: share of items that each scan reads.
            cache: what this block keeps of given positions before these.
        """
        values = modulation + self.modulation_bias
        shift, scale, gate = sequence.at_positions(values, sequence.share)
        normed = modulate(self.norm(hidden_states), shift, scale)
        selection = self._select(normed, sequence, keep)
        return hidden_states + gate * self.mixer(normed, sequence, selection, cache)

    def _select(self, normed: Tensor, sequence: JointSequence, keep: float) -> Selection | None:
        """Select what every scan reads of (b, l, hidden): None for everything."""
        if self.selection is None or keep >= 1:
            return None
        masks = sequence.given, sequence.valid, sequence.special
        kept, gate = self.selection(normed, keep, *masks, sequence.share.gather)
        if self.training:  # the gate hides what is not kept: how much is read is not asked
            return Selection(kept, 0, gate)
        return Selection(kept, sequence.longest_selection(keep))


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
        projected, share = project(self.in_proj, hidden_states), sequence.share
        passes = self.scan.passes(hidden_states, sequence, selection, cache)
        per_pass = [scan_pass.num_scans * self.per_scan for scan_pass in passes]
        z, x, *scan_inputs = projected.split([*self.sizes, *per_pass], dim=-1)
        x, y = share.to_heads(x), None
        for scan_pass, inputs in zip(passes, scan_inputs, strict=True):
            inputs = inputs.unflatten(-1, (-1, self.per_scan)).transpose(1, 2)  # (b, k, l, 2 n + h)
            BC, raw_delta = inputs.split([2 * self.state_size, self.scan.heads], dim=-1)
            own = ScanInputs(x, share.gather(BC), share.to_heads(raw_delta))
            y = self.scan(own, scan_pass, sequence, y)
        return project(self.out_proj, self.norm(share.to_positions(y), z))


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
        image_orders = sorted({image for image, _ in self.pairs})
        text_orders = sorted({text for _, text in self.pairs})
        names = [f"image_{order}" for order in image_orders]
        names += [f"text_{order}" for order in text_orders]
        width = config.hidden_size
        self.in_proj = nn.ModuleDict(
            {name: nn.Linear(width, sum(self.sizes), bias=False) for name in names}
        )
        self.out_proj = nn.ModuleDict({name: nn.Linear(inner, width, bias=False) for name in names})
        self.scan = SelectiveScan(config, scans)
        self.norm = nn.ModuleList(GatedRMSNorm(inner, config.layer_norm_epsilon) for _ in scans)

    def _project(
        self, projections: nn.ModuleDict, pair: tuple[int, int], x: Tensor, boundary: int
    ) -> Tensor:
        """Project words (the first `boundary` positions) and patches by an order of their own."""
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
        share, outputs = sequence.share, []
        boundary = share.before(sequence.text_segment)
        for scan_pass in self.scan.passes(hidden_states, sequence, selection, cache):
            pairs, norms = self.pairs[scan_pass.scans], list(self.norm)[scan_pass.scans]
            projected = torch.stack(
                [self._project(self.in_proj, pair, hidden_states, boundary) for pair in pairs], 1
            )
            z, *inputs = projected.split(self.sizes, dim=-1)  # (b, k, l, ...)
            x, BC, raw_delta = inputs
            own = ScanInputs(share.to_heads(x), share.gather(BC), share.to_heads(raw_delta))
            y = share.to_positions(self.scan.separately(own, scan_pass, sequence))
            outputs += [
                self._project(self.out_proj, pair, norm(y[:, i], z[:, i]), boundary)
                for i, (pair, norm) in enumerate(zip(pairs, norms, strict=True))
            ]
        return torch.stack(outputs).sum(0)


class ScanInputs(NamedTuple):
    """What scans take of a projection, in storage order.

    x: (b, l, h * p), shared by all scans, or (b, k, l, h * p). BC: (b, k, l, 2 n). raw_delta:
    (b, k, l, h), Delta before its bias and softplus. Of a shared sequence h are this process's.
    """

    x: Tensor
    BC: Tensor
    raw_delta: Tensor


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
        (batch, length), together = sequence.valid.shape, len(self.scans)
        is_whole = (cache is not None and cache.is_recording) or torch.compiler.is_compiling()
        if hidden_states.device.type == "cpu" and not is_whole:
            is_hard = selection is not None and selection.gate is None
            steps = selection.longest if is_hard else length
            heads = self.heads // sequence.share.size
            together = scans_at_once(together, batch * steps * heads * self.sizes[1])
        return split_passes(sequence.orders_of(self.scans), together, selection, cache)

    def forward(
        self,
        inputs: ScanInputs,
        scan_pass: ScanPass,
        sequence: JointSequence,
        others: Tensor | None = None,
    ) -> Tensor:
        """Scan a sequence in the k orders of one of `passes`, and sum over them.

        Args:
            inputs: what the scans take of the projection.
            scan_pass: the scans, what they read and what they go on from. sequence: masks.
            others: the sum over the passes before, (b, l, h * p), which may be overwritten.

        Returns:
            (b, l, h * p) in storage order, 0 where nothing is read.
        """
        return scan_pass.reading.merge(self._scan(inputs, scan_pass, sequence), others)

    def separately(
        self, inputs: ScanInputs, scan_pass: ScanPass, sequence: JointSequence
    ) -> Tensor:
        """Scan as `forward` does, without the sum: (b, k, l, h * p)."""
        return scan_pass.reading.bring_back(self._scan(inputs, scan_pass, sequence))

    def _scan(self, inputs: ScanInputs, scan_pass: ScanPass, sequence: JointSequence) -> Tensor:
        """Give the outputs of what is read, in scan order: (b, k, m, h * p)."""
        count = sequence.valid.sum(-1)  # (b,), real positions, which lead every scan
        gate, heads = self._gate(scan_pass, sequence), sequence.share.heads(self.heads)
        delta = self._step_sizes(inputs.raw_delta, heads, gate, scan_pass, count)
        channels = sequence.share.heads(self.heads * self.sizes[1])
        x = self._convolve("x_tail", inputs.x, channels, scan_pass, count)
        of_BC = slice(-inputs.BC.shape[-1], None)
        BC = self._convolve("BC_tail", inputs.BC, of_BC, scan_pass, count)
        y = self._recur(x, BC, delta, heads, scan_pass)
        # The gate learns through Delta alone: the norm behind this scales any share of an output
        # that no other scan adds to up to full size, so its gradient would explode.
        return y if gate is None else y * gate.detach().to(y.dtype)

    def _gate(self, scan_pass: ScanPass, sequence: JointSequence) -> Tensor | None:
        """Factor of Delta and the output, (b, k, m, 1): 0 where an order is not in use."""
        gate = scan_pass.gate
        if not sequence.all_active:
            active = torch.stack([sequence.scan_active[k] for k in self.scans[scan_pass.scans]])
            active = active.to(at_least_float32(self.delta_bias.dtype))  # (k, l)
            gate = active if gate is None else active * gate
        if gate is None:
            return None
        reading = scan_pass.reading
        return reading.read(gate.expand(reading.order.shape)[..., None])

    def _step_sizes(
        self,
        raw_delta: Tensor,
        heads: slice,
        gate: Tensor | None,
        scan_pass: ScanPass,
        count: Tensor,
    ) -> Tensor:
        """Delta of every step that is read, (b, k, m, h): 0 where the state passes it by."""
        reading = scan_pass.reading
        raw_delta = reading.read(raw_delta).to(at_least_float32(self.delta_bias.dtype))
        bias = self.delta_bias[scan_pass.scans, None, heads]
        delta = F.softplus(raw_delta + bias).clamp(*self.delta_limit)
        if gate is not None:
            delta = delta * gate
        if reading.real is not None:
            delta = delta * reading.real[..., None]
        elif scan_pass.is_recording:
            # The state that is kept is that of the last real position.
            places = torch.arange(delta.shape[2], device=delta.device)
            delta = delta * (places < count[:, None])[:, None, :, None]
        return delta

    def _convolve(
        self, name: str, x: Tensor, channels: slice, scan_pass: ScanPass, count: Tensor
    ) -> Tensor:
        """Read and convolve some channels, from the last inputs that the cache has under a name.

        x: (b, l, c) or (b, k, l, c) in storage order. Returns (b, k, m, c) in scan order.
        """
        weight = self.conv_weight[scan_pass.scans, channels]
        bias = self.conv_bias[scan_pass.scans, channels]
        reading, tail = scan_pass.reading, scan_pass.kept(name)
        if scan_pass.is_recording:
            last = last_inputs(x, reading.order, count, tail, weight.shape[-1] - 1)
            scan_pass.cache.store(**{name: last})
        return convolve(x, reading, weight, bias, tail, self._backend(x))

    def _recur(
        self, x: Tensor, BC: Tensor, delta: Tensor, heads: slice, scan_pass: ScanPass
    ) -> Tensor:
        """Discretise and run Eq. 10-11, with the skip term, in scan order: (b, k, m, h * p)."""
        batch, k, length, inner = x.shape
        A = -torch.exp(self.A_log[scan_pass.scans, heads].to(delta.dtype))[:, None]  # (k, 1, h)
        log_decay, input_scale = discretize(delta, A, self.discretization)
        x = x.reshape(batch * k, length, inner // self.sizes[1], self.sizes[1])
        B, C = BC.flatten(0, 1).chunk(2, dim=-1)
        discrete = (input_scale.flatten(0, 1), log_decay.flatten(0, 1))
        entering = scan_pass.kept("state")  # (b, k, h, n, p)
        y, state = ssd(
            x,
            *discrete,
            B,
            C,
            None if entering is None else entering.flatten(0, 1),
            self.chunk_size,
            self._backend(x, length),
            needs_state=scan_pass.is_recording,
        )
        if scan_pass.is_recording:
            scan_pass.cache.store(state=state.unflatten(0, (batch, k)))
        D = self.D[scan_pass.scans, heads].to(x.dtype)
        D = D.repeat(batch, 1)[:, None, :, None]  # (b k, 1, h, 1)
        y = y + D * x if torch.is_grad_enabled() else y.addcmul_(D, x)
        return y.reshape(batch, k, length, inner)

    def _backend(self, x: Tensor, length: int | None = None) -> str:
        return resolve_backend(self.backend, x.device, length, x.dtype, self.sizes)

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
