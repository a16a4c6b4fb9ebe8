# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is compared: our scan and block, transformers' Mamba-2, mamba-ssm's kernels, attention.

Axes: b batch, k scans, l positions, h heads, p head width, n state width.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Mamba2Config
from transformers.models.mamba2 import modeling_mamba2

from modeling_mdm.block import MDMMamba2Mixer
from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.content import ModalityContent
from modeling_mdm.matmul import project
from modeling_mdm.planning.flops import grid_of
from modeling_mdm.scan_orders import image_rank, merge, spread
from modeling_mdm.sequence import JointSequence, build_sequence
from modeling_mdm.ssd import resolve_backend, ssd

from .plans import Plan
from .results import NotAvailable


@dataclass(frozen=True)
class Task:
    """Sizes of one comparison of layers."""

    batch: int
    length: int
    width: int
    state_size: int
    head_dim: int
    scans: int
    dtype: torch.dtype
    device: torch.device
    expand: int = 2

    @classmethod
    def of(cls, plan: Plan, device: torch.device, length: int, scans: int) -> "Task":
        """Take the sizes of a plan."""
        return cls(
            plan.batch,
            length,
            plan.width,
            plan.state_size,
            plan.head_dim,
            scans,
            getattr(torch, plan.dtype),
            device,
        )

    @property
    def inner(self) -> int:
        """Width inside a mixer."""
        return self.width * self.expand

    @property
    def heads(self) -> int:
        """Heads of a mixer."""
        return self.inner // self.head_dim

    def parameters(self) -> dict[str, int | str]:
        """Sizes as a row's parameters."""
        return {
            "batch": self.batch,
            "length": self.length,
            "width": self.width,
            "state_size": self.state_size,
            "head_dim": self.head_dim,
            "scans": self.scans,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def backend(self, requested: str = "auto") -> str:
        """Name the scan back-end that runs here.

        Raises:
            NotAvailable: it cannot run here.
        """
        try:
            return resolve_backend(requested, self.device, length=self.length, dtype=self.dtype)
        except ValueError as error:
            raise NotAvailable(str(error)) from error


# --- the scan alone ---


def scan_inputs(task: Task) -> dict[str, Tensor]:
    """Draw x (b, l, h, p), delta (b, l, h), A (h), B and C (b, l, n), sized as in training."""
    draw = torch.Generator(device=task.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=task.device)

    b, length, h = task.batch, task.length, task.heads
    return {
        "x": normal(b, length, h, task.head_dim).to(task.dtype),
        "delta": F.softplus(normal(b, length, h) - 3),  # median 0.05
        "A": -torch.arange(1, h + 1, device=task.device, dtype=torch.float32),
        "B": (normal(b, length, task.state_size) / task.state_size**0.5).to(task.dtype),
        "C": normal(b, length, task.state_size).to(task.dtype),
    }


Scan = Callable[[dict[str, Tensor]], Tensor]


def our_scan(task: Task, requested: str = "auto") -> Scan:
    """Our recurrence, Euler's step as in stock Mamba-2: outputs (b, l, h, p)."""
    backend = task.backend(requested)

    def scan(given: dict[str, Tensor]) -> Tensor:
        delta = given["delta"]
        return ssd(given["x"], delta, delta * given["A"], given["B"], given["C"], backend=backend)[
            0
        ]

    return scan


def transformers_scan(chunk_size: int) -> Scan:
    """The scan of transformers' Mamba-2, as its mixer calls it."""
    function = getattr(modeling_mamba2, "mamba2_chunk_scan", None)
    if function is None:
        raise NotAvailable(
            "this transformers has no scan apart from its mixer: install a newer one"
        )

    def scan(given: dict[str, Tensor]) -> Tensor:
        B, C = given["B"][:, :, None], given["C"][:, :, None]
        return function(given["x"], given["delta"], given["A"], B, C, chunk_size=chunk_size)

    return scan


def mamba_ssm_scan(task: Task) -> Scan:
    """The official kernel of Mamba-2."""
    function = _mamba_ssm(task).mamba_chunk_scan_combined

    def scan(given: dict[str, Tensor]) -> Tensor:
        B, C = given["B"][:, :, None], given["C"][:, :, None]
        return function(given["x"], given["delta"], given["A"], B, C, chunk_size=256)

    return scan


def _mamba_ssm(task: Task):
    """Import the official Triton kernels.

    Raises:
        NotAvailable: no GPU, or mamba-ssm cannot be imported.
    """
    if task.device.type != "cuda":
        raise NotAvailable("mamba-ssm's kernels need a CUDA device")
    try:
        return importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    except ImportError as error:
        raise NotAvailable(
            f"mamba-ssm cannot be imported ({error}): install `.[kernels]`"
        ) from error


# --- two directions of one sequence: what a pair of scans costs beyond the recurrence ---


def our_pair(task: Task, requested: str = "auto") -> Scan:
    """Both directions by our scan: spread into two orders, scan as one batch, merge."""
    scan = our_scan(task, requested)
    forward = torch.arange(task.length, device=task.device)
    order = torch.stack([forward, forward.flip(0)]).expand(task.batch, -1, -1).contiguous()

    def pair(given: dict[str, Tensor]) -> Tensor:
        both = {
            name: spread(given[name].flatten(2), order, order).flatten(0, 1)
            for name in ("x", "delta", "B", "C")
        }
        both |= {"A": given["A"], "x": both["x"].unflatten(-1, (task.heads, -1))}
        y = scan(both).flatten(2).unflatten(0, (task.batch, 2))
        return merge(y, order, order).unflatten(-1, (task.heads, -1))

    return pair


def flipped_pair(scan: Scan) -> Scan:
    """Both directions by two calls of a causal scan, with flips before and after the second."""

    def pair(given: dict[str, Tensor]) -> Tensor:
        back = {name: value.flip(1) if value.dim() > 1 else value for name, value in given.items()}
        return scan(given) + scan(back).flip(1)

    return pair


# --- whole layers ---


def image_sequence(task: Task, pairs: tuple[tuple[int, int], ...]) -> JointSequence:
    """The joint sequence of a batch of noisy pictures and nothing else, `length` positions long.

    Two of them are the picture's start and time tokens, one the absent class token.
    """
    patches = task.length - 3
    place = torch.zeros(task.batch, patches, 2, dtype=torch.long, device=task.device)
    noisy = torch.ones(task.batch, patches, dtype=torch.bool, device=task.device)
    content = ModalityContent(
        torch.zeros(task.batch, patches, 1, device=task.device), ~noisy, noisy, place[..., 0], place
    )
    absent = torch.zeros(task.batch, dtype=torch.bool, device=task.device)
    used = {"text": (1, 2), "image": (1, 2, 3, 4)}
    grid = (1, 1, patches)
    return build_sequence({"image": content}, absent, absent, 0, grid, pairs, used)


def our_config(task: Task, **changes) -> MDMConfig:
    """The configuration of our block for a task."""
    return MDMConfig(
        hidden_size=task.width,
        state_size=task.state_size,
        head_dim=task.head_dim,
        expand=task.expand,
        discretization="euler",
        image_scans=tuple(range(1, task.scans + 1)),
        text_scans=(1,) if task.scans == 1 else (1, 2),
        **changes,
    )


class OurLayer(nn.Module):
    """Our mixer with its sequence laid out: (b, l, width) -> (b, l, width)."""

    def __init__(self, task: Task, **changes) -> None:
        super().__init__()
        config = our_config(task, **changes)
        pairs = config.joint_scans
        self.sequence = image_sequence(task, pairs)
        self.mixer = MDMMamba2Mixer(config, tuple(range(len(pairs))))
        with torch.no_grad():
            for name, value in self.mixer.scan.initialize(config).items():
                getattr(self.mixer.scan, name).copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions."""
        return self.mixer(x, self.sequence, None, None)


def transformers_config(task: Task, chunk_size: int) -> Mamba2Config:
    """The configuration of transformers' mixer for a task."""
    return Mamba2Config(
        hidden_size=task.width,
        num_heads=task.heads,
        head_dim=task.head_dim,
        state_size=task.state_size,
        expand=task.expand,
        n_groups=1,
        chunk_size=chunk_size,
        num_hidden_layers=1,
    )


class StackedMixers(nn.Module):
    """One causal Mamba-2 mixer for each scan, on a sequence reordered for it, and their sum.

    Args:
        mixers: one for each scan. order: (k, l), which position a scan reads at each step; the
            first scan reads in storage order.
    """

    def __init__(self, mixers: list[nn.Module], order: Tensor) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(-1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions: (b, l, width) -> (b, l, width)."""
        total = self.mixers[0](x)
        for scan, mixer in enumerate(self.mixers[1:], start=1):
            total = total + mixer(x[:, self.order[scan]])[:, self.inverse[scan]]
        return total


def scan_orders(task: Task) -> Tensor:
    """Rows and columns, forward and reverse, of a grid with `length` cells: (k, l)."""
    height, width = grid_of(task.length, 1)
    ranks = [image_rank(height, width, scan + 1) for scan in range(task.scans)]
    return torch.stack(ranks).argsort(-1)


def transformers_layer(task: Task, chunk_size: int = 256) -> StackedMixers:
    """transformers' Mamba-2, one mixer for each scan; 256 is its default chunk."""
    config = transformers_config(task, chunk_size)
    mixers = [modeling_mamba2.Mamba2Mixer(config, layer_idx=0) for _ in range(task.scans)]
    return StackedMixers(mixers, scan_orders(task))


def mamba_ssm_layer(task: Task) -> StackedMixers:
    """The official Mamba-2, one mixer for each scan, by its fused kernel where that is built."""
    kernels = _mamba_ssm(task)
    try:
        mamba2 = importlib.import_module("mamba_ssm.modules.mamba2").Mamba2
    except ImportError as error:
        raise NotAvailable(f"mamba-ssm's Mamba2 cannot be imported ({error})") from error
    sizes = {"d_state": task.state_size, "headdim": task.head_dim, "expand": task.expand}
    # The fused kernel calls causal-conv1d's; without it the mixer takes torch's convolution.
    fused = kernels.causal_conv1d_fwd_function is not None
    mixers = [mamba2(task.width, use_mem_eff_path=fused, **sizes) for _ in range(task.scans)]
    return StackedMixers(mixers, scan_orders(task))


class AttentionLayer(nn.Module):
    """Attention of the same width at its best: fused projections, no mask, heads of 64."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.head_width = min(64, task.width)
        self.in_proj = nn.Linear(task.width, 3 * task.width, bias=False)
        self.out_proj = nn.Linear(task.width, task.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions: (b, l, width) -> (b, l, width)."""
        heads = project(self.in_proj, x).unflatten(-1, (3, -1, self.head_width))  # (b, l, 3, h, p)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return project(self.out_proj, mixed.transpose(1, 2).flatten(2))


def place(layer: nn.Module, task: Task) -> nn.Module:
    """Move a layer to a task's device and dtype; what our scan keeps in float32 stays so."""
    layer = layer.to(task.device, task.dtype).eval()
    for name, parameter in layer.named_parameters():
        if name.endswith(("A_log", "delta_bias", "dt_bias")):
            parameter.data = parameter.data.float()
    return layer


def one_scan(task: Task) -> Task:
    """The same task with a single scan."""
    return replace(task, scans=1)
