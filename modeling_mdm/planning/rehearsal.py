# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a training step holds in memory at once: the real step, run on tensors without numbers.

Tensors are torch's fake ones: they have shapes and types, and nothing is computed. Every allocation
and release is written down, so forms of the code, back-ends, autocast and checkpointing count as
they are. A GPU is played on the CPU, because torch's backward pass asks for a real one: scans run
side by side, Triton's kernels have buffers but are not launched, autocast widens what it would
widen there. Of a deep model a few blocks are run, and the rest follows from them: what a phase of
the step holds grows by the same amount with every block.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_mdm import block, convolution_triton, ssd, ssd_triton
from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.planning.flops import Batch, grid_of, nulls
from modeling_mdm.planning.operations import scans_of
from modeling_mdm.planning.optimizers import make_optimizer
from modeling_mdm.planning.spread import evenly_spread

# Names of a phase: what is done, and of which block, from the first on or (below 0) the last.
Phase = tuple[str, int]


@dataclass(frozen=True)
class Setting:
    """How a step is run.

    device: `cuda` or `cpu`, which differ in back-ends and in how much runs at once. compute: type
    of products, as under autocast. weights: type that the weights have in the pass. checkpointing:
    whether blocks are computed again for their gradients; checkpointed_blocks: which share of them,
    evenly spread. self_conditioned, dropped: whether the step estimates twice, and holds null
    tokens. keep: share of items that each scan reads. optimizer: by transformers' name.
    """

    device: str = "cuda"
    compute: str = "bfloat16"
    weights: str = "float32"
    checkpointing: bool = False
    checkpointed_blocks: float = 1.0
    self_conditioned: bool = True
    dropped: bool = True
    keep: float = 0.5
    optimizer: str = "adamw_torch_fused"


class Allocations(TorchDispatchMode):
    """Writes down every allocation and release, and the phase that it happens in."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.phase: Phase = ("start", 0)
        self.events: list[tuple[Phase, int, int]] = []  # phase, number of the storage, bytes
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        for tensor in known:
            self._numbers[tensor.untyped_storage()] = -1
        self._count = 0

    def number_of(self, tensor: Tensor) -> int:
        """Number of a tensor's storage; -1 if it was there before."""
        return self._numbers.get(tensor.untyped_storage(), -1)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and look at the storages of what it gives."""
        try:
            output = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            return _answer(args[0])
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return output

    def _see(self, storage: Any) -> None:
        if storage in self._numbers:
            return
        number, size = self._count, storage.nbytes()
        self._count += 1
        self._numbers[storage] = number
        self.events.append((self.phase, number, size))
        weakref.finalize(storage, self._release, number, size)

    def _release(self, number: int, size: int) -> None:
        self.events.append((self.phase, number, -size))


def _answer(asked: Tensor) -> bool | int | float:
    """Say what a step reads from its data: there are null tokens, numbers are in range."""
    if asked.dtype == torch.bool:
        return True
    return 1.0 if asked.is_floating_point() else 0


@dataclass(frozen=True)
class Timeline:
    """What a step holds beside weights, optimizer and average, after each allocation and release.

    activations, gradients: bytes (events,) by phase.
    """

    phases: Mapping[Phase, tuple[np.ndarray, np.ndarray]]

    def peaks(self, gradients: float = 1.0) -> dict[Phase, float]:
        """Most bytes of every phase, where a process holds this share of the gradients.

        An optimizer's own new memory is shared out like them.
        """
        found = {}
        for phase, (own, other) in self.phases.items():
            share = gradients if phase[0] == "optimizer" else 1.0
            found[phase] = float((share * own + gradients * other).max())
        return found


class _Asleep:
    """A kernel of Triton that is not launched."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


class _LikeAGpu(TorchFunctionMode):
    """Gives float32 to what autocast on a GPU gives it and a CPU's does not; fuses RMS norms."""

    widened = frozenset(("softmax", "exp", "expm1", "sum", "cumsum", "softplus", "rsqrt", "square"))

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "rms_norm" and not kwargs:
            return torch.ops.aten._fused_rms_norm(*args)[0]
        if name in self.widened and torch.is_autocast_enabled("cpu"):
            args = tuple(
                one.float() if isinstance(one, Tensor) and one.dtype == torch.bfloat16 else one
                for one in args
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def _like_a_gpu() -> Iterator[None]:
    """Take the ways through the code that a GPU takes, with Triton's back-end."""
    with ExitStack() as stack:
        for module in (ssd_triton, convolution_triton):
            stack.enter_context(patch.object(module, "require_triton", lambda x: None))
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                stack.enter_context(patch.object(module, name, _Asleep()))
        stack.enter_context(patch.object(ssd, "find_spec", lambda name: name))
        stack.enter_context(patch.object(ssd, "INTERPRETED", True))
        stack.enter_context(patch.object(block, "scans_at_once", lambda scans, numbers: scans))
        stack.enter_context(_LikeAGpu())
        yield


def _backend_on_gpu(config: MDMConfig) -> str:
    """Name the back-end that `auto` takes on a GPU."""
    fits = config.state_size <= ssd_triton.MAX_STATE and config.head_dim <= ssd_triton.MAX_WIDTH
    if config.kernel_backend != "auto":
        return config.kernel_backend
    return "triton" if fits else "torch"


def _inputs(config: MDMConfig, batch: Batch, setting: Setting) -> dict[str, Any]:
    inputs: dict[str, Any] = {"keep": setting.keep if config.use_selection else 1.0}
    if batch.words:
        inputs["input_ids"] = torch.zeros(batch.items, batch.words, dtype=torch.long)
    if batch.patches:
        sides = grid_of(batch.patches, config.patch_size)
        inputs["pixel_values"] = torch.zeros(batch.items, config.num_channels, *sides)
    is_dropped = bool(setting.dropped and nulls(config))
    inputs["drop_prompt"] = torch.full((batch.items,), is_dropped)
    inputs["self_condition"] = setting.self_conditioned
    return inputs


def _mark_blocks(layers: nn.ModuleList, record: Allocations) -> None:
    """Name the phase whenever a block begins, forward or backward."""
    last = len(layers) - 1

    def is_backward() -> bool:  # what is checkpointed runs once more there
        return record.phase[0] in ("loss", "backward")

    def begin(index: int) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            if not is_backward():
                record.phase = ("forward" if torch.is_grad_enabled() else "first estimate", index)

        return hook

    def end(index: int) -> Any:
        def mark(gradient: Tensor) -> None:
            record.phase = ("backward", index)

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if is_backward():
                return
            if output.requires_grad:
                output.register_hook(mark)
            if index == last:
                record.phase = (f"heads, {record.phase[0]}", 0)

        return hook

    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(begin(index))
        layer.register_forward_hook(end(index))


def enable_checkpointing(model: MDMForJointGeneration, on_gpu: bool = False) -> None:
    """Have blocks computed again for their gradients, as training does; nothing there is random.

    Args:
        on_gpu: it is imitated, which within a call of `backward` has to begin anew.
    """
    # Renamed in transformers 5.2x.
    enable = getattr(model, "activation_checkpointing_enable", None)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if on_gpu:
        options["context_fn"] = lambda: (nullcontext(), _LikeAGpu())
    (enable or model.gradient_checkpointing_enable)(options)


def run_step(
    config: MDMConfig, batch: Batch, setting: Setting, again: Sequence[bool] | None = None
) -> Timeline:
    """Run one training step, not the first, of all blocks of a model on fake tensors.

    Args:
        again: which blocks are checkpointed, where they are; None: as the setting says.

    Raises:
        ValueError: the optimizer is unknown.
    """
    compute, weights = getattr(torch, setting.compute), getattr(torch, setting.weights)
    on_gpu = setting.device == "cuda"
    if on_gpu:
        config = MDMConfig(**{**config.to_dict(), "kernel_backend": _backend_on_gpu(config)})
    autocast = torch.autocast("cpu", compute, enabled=compute != torch.float32)
    with ExitStack() as stack:
        if on_gpu:
            stack.enter_context(_like_a_gpu())
        stack.enter_context(FakeTensorMode())
        model = MDMForJointGeneration._from_config(config, dtype=weights).train()
        inputs = _inputs(config, batch, setting)
        if model.vq is not None:
            model.vq._was_loaded = True
        if setting.checkpointing:
            enable_checkpointing(model, on_gpu)
            layers = model.decoder.layers
            again = again or evenly_spread(len(layers), setting.checkpointed_blocks)
            for layer, is_again in zip(layers, again, strict=True):
                layer.gradient_checkpointing = is_again
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = make_optimizer(setting.optimizer, learning, on_gpu)
        for parameter in learning:
            parameter.grad = torch.zeros_like(parameter)
        with Allocations([]):  # answers what the step asks
            optimizer.step()
        optimizer.zero_grad()
        states = [leaf for state in optimizer.state.values() for leaf in state.values()]
        known = [*model.parameters(), *model.buffers(), *states, *inputs.values()]
        record = Allocations([tensor for tensor in known if isinstance(tensor, Tensor)])
        _mark_blocks(model.decoder.layers, record)
        with record:
            with autocast:
                loss = model(**inputs).loss
            record.phase = ("loss", 0)
            loss.backward()
            del loss
            record.phase = ("optimizer", 0)
            optimizer.step()
        gradients = {record.number_of(p.grad) for p in learning if p.grad is not None}
        return _timeline(record.events, gradients)


def _timeline(events: list[tuple[Phase, int, int]], gradients: set[int]) -> Timeline:
    own = np.cumsum([0 if number in gradients else size for _, number, size in events])
    other = np.cumsum([size if number in gradients else 0 for _, number, size in events])
    places: dict[Phase, list[int]] = {}
    for place, (phase, _, _) in enumerate(events):
        places.setdefault(phase, []).append(place)
    return Timeline({phase: (own[at], other[at]) for phase, at in places.items()})


@dataclass(frozen=True)
class Growth:
    """A step of a few more blocks of one kind, and how often these are to be added.

    blocks: in all. times: how often what this step holds more than that of the fewest blocks.
    """

    blocks: int
    timeline: Timeline
    times: float


@dataclass(frozen=True)
class Rehearsal:
    """What a step of a model holds beside weights, optimizer and average.

    few: a step of the fewest blocks with how many these are; of all blocks, where nothing grows.
    more: by blocks that are checkpointed and blocks that are not, where there are both. period:
    blocks after which the scans begin anew.
    """

    few: tuple[int, Timeline]
    more: tuple[Growth, ...]
    period: int

    def peak(self, gradients: float = 1.0) -> float:
        """Most bytes at once, where a process holds this share of the gradients."""
        few, first = self.few
        peaks = first.peaks(gradients)
        if not self.more:
            return max(peaks.values())
        of_few = _named(peaks, few, self.period)
        found = dict(of_few)
        for one in self.more:
            of_more = _named(one.timeline.peaks(gradients), one.blocks, self.period)
            found = {
                phase: held + (of_more[phase] - of_few[phase]) * one.times
                for phase, held in found.items()
                if phase in of_more
            }
        return max(found.values())


def _named(peaks: dict[Phase, float], blocks: int, period: int) -> dict[Phase, float]:
    """Name the blocks of the first period from the first on, and of the last one from the end."""
    named = {}
    for (kind, index), held in peaks.items():
        is_of_block = kind in ("forward", "backward", "first estimate")
        if not is_of_block or index < period:
            named[kind, index] = held
        if is_of_block and index >= blocks - period:
            named[kind, index - blocks] = held
    return named


def rehearse(config: MDMConfig, batch: Batch, setting: Setting) -> Rehearsal:
    """Run a training step on fake tensors: of all blocks, or of a few numbers of fewer ones.

    Of blocks of two kinds the first is never checkpointed and the last always is, as in the model;
    what those between hold adds up in any order.

    Raises:
        ValueError: the optimizer is unknown.
    """
    period = len(config.joint_scans) if scans_of(config) == 1 else 1
    blocks = config.num_hidden_layers
    share = setting.checkpointed_blocks if setting.checkpointing else 0.0
    again = sum(evenly_spread(blocks, share))
    setting = replace(setting, checkpointing=again > 0)
    rest = blocks % period  # so that the last block runs the scan that it runs in the whole model

    plain = blocks - again
    if blocks <= 3 * period + rest:
        return Rehearsal((blocks, run_step(config, batch, setting)), (), period)

    def run(plain: int, again: int) -> tuple[int, Timeline]:
        fewer = MDMConfig(**{**config.to_dict(), "num_hidden_layers": plain + again})
        return plain + again, run_step(fewer, batch, setting, [False] * plain + [True] * again)

    if plain and again:
        few = period + rest, period
    else:
        few = (2 * period + rest, 0) if plain else (0, 2 * period + rest)
    more = []
    if plain:
        more.append(Growth(*run(few[0] + period, few[1]), (plain - few[0]) / period))
    if again:
        more.append(Growth(*run(few[0], few[1] + period), (again - few[1]) / period))
    return Rehearsal(run(*few), tuple(more), period)
