# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training run before it runs: what each GPU holds, how long a step takes, what to change.

Memory: weights, gradients, optimizer and average are counted exactly (`states.py`), the rest is
what a step on fake tensors holds (`rehearsal.py`). Time: all flops of a step at a stated
utilisation of the peak, the traffic that computing does not hide, and the optimizer's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.planning.flops import (
    Batch,
    StepFlops,
    evaluation_operations,
    sampling_flops,
    step_flops,
    vq_flops,
)
from modeling_mdm.planning.gpus import GPU
from modeling_mdm.planning.mesh import Mesh, items_each, make_mesh
from modeling_mdm.planning.operations import Step, block_operations, scans_of, with_special_tokens
from modeling_mdm.planning.rehearsal import Rehearsal, Setting, rehearse
from modeling_mdm.planning.spread import evenly_spread, require_share_of_blocks
from modeling_mdm.planning.states import ModelSizes, States, count_states, model_sizes
from modeling_mdm.planning.traffic import Traffic, step_traffic

BYTES = {"bfloat16": 2, "float32": 4}
# Of a GPU's memory; the rest is the driver's, the collectives', and lost between blocks.
USABLE = 0.92
LINES = 3  # through what two numbers of items hold, on the way to the most that fit
MOST_GPUS = 4096  # that a change is looked for among


@dataclass(frozen=True)
class DataSet:
    """One of the paper's sets (Sec. 5.1); the paper does not say how often it is read.

    items: how many. has_words, has_picture: what each holds. source: of the number.
    """

    name: str
    items: int
    has_words: bool
    has_picture: bool
    source: str


PAPER_DATA = (
    DataSet("ImageNet", 1_281_167, False, True, "ILSVRC 2012, train"),
    DataSet("JourneyDB", 4_189_737, True, True, "JourneyDB, train"),
    DataSet("UltraChat", 207_865, True, False, "ultrachat_200k, train_sft, cut to `words`"),
)


@dataclass(frozen=True)
class Request:
    """What is to be trained, on what, how.

    batch: items of a step, of all processes. words, patches: of an item. dtype: of products.
    checkpointed_blocks: share of the blocks that checkpointing computes again.
    utilisation: share of the peak that is reached while computing, what is computed again included.
    """

    config: MDMConfig
    gpu: GPU
    gpus: int = 1
    gpus_per_machine: int = 8
    parallel: tuple[str, ...] = ()
    batch: int = 8
    accumulation: int = 1
    words: int = 0
    patches: int = 0
    dtype: str = "bfloat16"
    checkpointing: bool = False
    checkpointed_blocks: float = 1.0
    optimizer: str = "adamw_torch_fused"
    average: bool = True
    utilisation: float = 0.35
    epochs: float = 1.0

    def __post_init__(self) -> None:
        if self.dtype not in BYTES:
            raise ValueError(f"dtype={self.dtype!r}: choose one of {', '.join(BYTES)}.")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation={self.utilisation} must be in (0, 1], such as 0.35.")
        require_share_of_blocks(self.checkpointed_blocks, self.checkpointing, "checkpointing")
        if not self.epochs > 0:
            raise ValueError(f"epochs={self.epochs} must be more than 0.")
        if self.words < 0 or self.patches < 0 or not self.words + self.patches:
            raise ValueError(
                f"words={self.words} and patches={self.patches} leave nothing to read: use more."
            )

    @property
    def mesh(self) -> Mesh:
        """How the processes share the model."""
        return make_mesh(self.gpus, self.gpus_per_machine, self.parallel, self.config)

    @property
    def again(self) -> int:
        """Blocks that are computed again for their gradients."""
        share = self.checkpointed_blocks if self.checkpointing else 0.0
        return sum(evenly_spread(self.config.num_hidden_layers, share))

    @property
    def share_again(self) -> float:
        """What part of all blocks these are."""
        return self.again / self.config.num_hidden_layers

    @property
    def batch_each(self) -> Batch:
        """What a process reads at once, of whole items."""
        items = items_each(self.batch, self.accumulation, self.mesh)
        return Batch(items, self.words, self.patches)


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU.

    step: most that is held at once beside `states` within a step, gradients among it.
    activations: of that, without gradients. usable: what there is.
    """

    states: States
    step: float
    activations: float
    usable: float

    @property
    def total(self) -> float:
        """Most bytes at once."""
        return self.states.total + self.step

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.total <= self.usable


@dataclass(frozen=True)
class Hours:
    """What one of the paper's sets, or all of them, take."""

    name: str
    items: float
    days: float
    gpu_hours: float


@dataclass(frozen=True)
class Plan:
    """The answer to a [`Request`].

    flops: of a process, in one forward and backward pass. sampling: of one item's evaluation
    without guidance and with it. largest: items of a process that fit, without checkpointing and
    with it. change: the smallest one that makes it fit, None where it does; empty where none does.
    """

    request: Request
    mesh: Mesh
    parameters: dict[str, int]
    memory: Memory
    with_other_checkpointing: Memory
    largest: dict[str, int]
    flops: StepFlops
    sampling: dict[str, float]
    traffic: list[Traffic]
    seconds: dict[str, float]
    speed: dict[str, float]
    hours: list[Hours]
    change: list[str] | None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        request = {k: v for k, v in vars(self.request).items() if k not in ("config", "gpu")}
        return {
            "request": {**request, "parallel": self.mesh.words(), "gpu": asdict(self.request.gpu)},
            "mesh": {**asdict(self.mesh), "data": self.mesh.data},
            "parameters": self.parameters,
            "memory": _memory_dict(self.memory),
            "memory_with_other_checkpointing": _memory_dict(self.with_other_checkpointing),
            "largest_items_each": self.largest,
            "flops": self.flops.to_dict(),
            "sampling_flops": self.sampling,
            "traffic": [asdict(one) for one in self.traffic],
            "seconds": self.seconds,
            "speed": self.speed,
            "paper_data": [asdict(one) for one in self.hours],
            "fits": self.memory.fits,
            "smallest_change": self.change,
            "notes": self.notes,
        }


def _memory_dict(memory: Memory) -> dict[str, Any]:
    return {
        **asdict(memory.states),
        "activations": memory.activations,
        "step": memory.step,
        "total": memory.total,
        "usable": memory.usable,
        "fits": memory.fits,
    }


# A configuration is not hashable, its JSON is.
@lru_cache(maxsize=64)
def _rehearsed(config_json: str, batch: Batch, setting: Setting) -> Rehearsal:
    return rehearse(MDMConfig(**json.loads(config_json)), batch, setting)


@lru_cache(maxsize=8)
def _sizes(config_json: str) -> ModelSizes:
    return model_sizes(MDMConfig(**json.loads(config_json)))


def _json(config: MDMConfig, **changes: Any) -> str:
    return MDMConfig(**{**config.to_dict(), **changes}).to_json_string(use_diff=False)


def _setting(request: Request) -> Setting:
    return Setting(
        compute=request.dtype,
        checkpointing=request.checkpointing,
        checkpointed_blocks=request.checkpointed_blocks,
        optimizer=request.optimizer,
    )


def _step_bytes(request: Request, gradients: float) -> float:
    """Most bytes that a step holds, with a share of the gradients that the rehearsal makes."""
    config, mesh, chosen = request.config, request.mesh, _setting(request)
    whole = request.batch_each
    own = Batch(whole.items, -(-whole.words // mesh.context), -(-whole.patches // mesh.context))

    def held(share: float = gradients, setting: Setting = chosen, **changes: int) -> float:
        return _rehearsed(_json(config, **changes), own, setting).peak(share)

    if mesh.tensor == 1:
        step = held()
    else:  # what is as wide as the heads shrinks, the rest stays: a line through two widths
        narrow, wide = held(expand=1), held(expand=2)
        step = narrow + (config.expand / mesh.tensor - 1) * (wide - narrow)
    if mesh.context > 1 and (more := config.num_hidden_layers - 1):
        # Outside of blocks each has the whole sequence: a line through two numbers of like blocks.
        alike = replace(chosen, checkpointed_blocks=1.0)
        one = held(0.0, alike, num_hidden_layers=1)
        outside = one - (held(0.0, alike) - one) / more
        step += (mesh.context - 1) * max(0.0, outside)
    if mesh.context > 1 and config.mixer == "mamba2":
        # B and C of all positions: projected, convolved, and their parts.
        beyond = whole.items * (whole.words + whole.patches) * (1 - 1 / mesh.context)
        layers = config.num_hidden_layers - request.again + (request.again > 0)
        numbers = 3 * 2 * config.state_size * scans_of(config)
        step += beyond * numbers * BYTES[request.dtype] * layers
    return step


def count_memory(request: Request) -> Memory:
    """Count what the fullest GPU holds.

    Raises:
        ValueError: processes, batch or optimizer that do not fit each other or the plan.
    """
    mesh = request.mesh
    sizes = _sizes(_json(request.config))
    states = count_states(sizes, request.config, mesh, request.optimizer, request.average)
    return Memory(
        states,
        _step_bytes(request, 1 / mesh.shards),
        _step_bytes(request, 0.0),
        USABLE * request.gpu.memory,
    )


def _largest(request: Request, memory: Memory) -> int:
    """Items of a process that fit: the last that was seen to, where lines through two numbers lead.

    What is held at the fullest moment is a line in the items, but which moment that is may change.
    """
    items = request.batch_each.items
    parts = request.mesh.data * request.accumulation
    seen = {items: memory}

    def look(count: int) -> None:
        if count not in seen:
            seen[count] = count_memory(replace(request, batch=count * parts))

    look(max(1, items // 2) if items > 1 else 2)
    first, last = [*seen]
    for _ in range(LINES):
        each = (seen[last].total - seen[first].total) / (last - first)
        guess = max(1, math.floor(last + (memory.usable - seen[last].total) / each))
        if guess in seen:
            break
        look(guess)
        first, last = last, guess
    return max((count for count, one in seen.items() if one.fits), default=0)


def _changes(request: Request) -> Iterator[tuple[str, Request]]:
    """Changes to a request, the smallest first: the same steps on the same GPUs, then on more."""
    in_turn = [request]
    mesh = request.mesh
    if not request.checkpointing:
        in_turn.append(replace(request, checkpointing=True))
    elif request.checkpointed_blocks < 1:
        in_turn.append(replace(request, checkpointed_blocks=1.0))
    if request.gpus > 1 and mesh.split == "ddp":
        others = [word for word in mesh.words() if "=" in word and "hsdp" not in word]
        in_turn += [replace(one, parallel=("fsdp2", *others)) for one in in_turn]
    yield from ((_said(request, one), one) for one in in_turn[1:])
    last = in_turn[-1]
    items = request.batch_each.items
    accumulation = request.accumulation
    while items % 2 == 0:
        items, accumulation = items // 2, accumulation * 2
        own = (request.checkpointing, request.checkpointed_blocks)
        for one, share in dict.fromkeys((own, (True, 1.0))):
            changed = replace(
                last, accumulation=accumulation, checkpointing=one, checkpointed_blocks=share
            )
            yield _said(request, changed), changed
    gpus = request.gpus
    while gpus < MOST_GPUS:
        gpus *= 2
        # As many items a step: those that a process read in turn are now read side by side.
        accumulation = max(1, accumulation // 2)
        batch = items * accumulation * gpus // (mesh.tensor * mesh.context)
        split = [w for w in mesh.words() if "=" in w and not w.startswith("hsdp")]
        changed = replace(
            last,
            gpus=gpus,
            parallel=("fsdp2", *split),
            batch=max(request.batch, batch),
            accumulation=accumulation,
            gpus_per_machine=min(8, gpus),
        )
        yield _said(request, changed), changed


def _said(request: Request, changed: Request) -> str:
    """Write a change as options of the command."""
    words = []
    names = ("gpus", "gpus_per_machine", "batch", "accumulation", "checkpointing")
    for name in (*names, "checkpointed_blocks"):
        if (value := getattr(changed, name)) != getattr(request, name):
            words.append(f"--{name} {str(value).lower()}")
    if changed.parallel != request.parallel:
        words.append(f"--parallel {' '.join(changed.parallel)}")
    return " ".join(words)


def smallest_change(request: Request) -> list[str]:
    """Find the first of some changes, the smallest first, that makes a request fit; [] if none."""
    for said, changed in _changes(request):
        try:
            states = count_states(
                _sizes(_json(changed.config)),
                changed.config,
                changed.mesh,
                changed.optimizer,
                changed.average,
            )
            if states.total > USABLE * changed.gpu.memory:
                continue  # no step is so small
            if count_memory(changed).fits:
                return [said]
        except ValueError:  # numbers that do not divide each other
            continue
    return []


def _share_of_blocks(request: Request) -> float:
    """Share of the blocks in the flops of an evaluation, which tensor parallelism splits."""
    step = with_special_tokens(Step(1, request.words, request.patches))
    blocks = sum(one.matmul_flops for one in block_operations(request.config, step))
    return blocks / sum(one.matmul_flops for one in evaluation_operations(request.config, step))


def _flops_each(request: Request, batch: Batch, vq: float) -> StepFlops:
    """Flops of one process."""
    mesh = request.mesh
    counted = step_flops(request.config, batch, checkpointing=request.share_again, frozen=vq)
    split = _share_of_blocks(request)
    share = (split / mesh.tensor + 1 - split) / mesh.context
    return StepFlops(**{name: share * flops for name, flops in asdict(counted).items()})


def _seconds(
    request: Request, flops: StepFlops, traffic: list[Traffic], memory: Memory
) -> dict[str, float]:
    peak = request.gpu.products[request.dtype]
    computing = request.accumulation * flops.total / (peak * request.utilisation)
    hidden = sum(one.seconds for one in traffic if one.is_hidden)
    waited = sum(one.seconds for one in traffic if not one.is_hidden)
    states = memory.states
    # Each is read, and written but for the gradients.
    moved = 2 * (states.weights + states.optimizer + states.average) + states.gradients
    updating = moved / request.gpu.bandwidth
    exposed = max(0.0, hidden - computing) + waited
    return {
        "computing": computing,
        "traffic": hidden + waited,
        "waiting_for_traffic": exposed,
        "updating": updating,
        "step": computing + exposed + updating,
    }


def _hours(request: Request, flops: StepFlops, vq: float, step: float) -> list[Hours]:
    """Time of the paper's data: a step takes as long as its flops, other things equal."""
    found, each = [], request.batch_each
    for data in PAPER_DATA:
        words = request.words if data.has_words else 0
        patches = request.patches if data.has_picture else 0
        if not words + patches:
            continue
        own = _flops_each(request, Batch(each.items, words, patches), vq if patches else 0.0)
        items = request.epochs * data.items
        seconds = items / request.batch * step * own.total / flops.total
        found.append(Hours(data.name, items, seconds / 86400, seconds * request.gpus / 3600))
    total = [sum(getattr(one, name) for one in found) for name in ("items", "days", "gpu_hours")]
    return [*found, Hours("all", *total)]


def _notes(request: Request) -> list[str]:
    mesh = request.mesh
    notes = [
        f"Nobody has measured a utilisation of {request.utilisation:.0%} for this model: it is an "
        "assumption, --utilisation.",
        "The paper names its data, not how often it is read: --epochs.",
    ]
    if mesh.not_run_here:
        names = ", ".join(mesh.not_run_here)
        notes.insert(0, f"Training in this package does not run {names} yet: planned only.")
    if mesh.context > 1:
        notes.append(
            f"--context_parallel_size {mesh.context}: a group works on the batches of all its "
            f"{mesh.context} processes in turn. Accumulation here counts them: a step of training "
            f"has {mesh.context} times gradient_accumulation_steps."
        )
    if mesh.tensor > 1 or mesh.context > 1:
        notes.append("Activations under tp and cp are estimates; the rest of memory is counted.")
    return notes


def make_plan(request: Request) -> Plan:
    """Plan a run.

    Raises:
        ValueError: processes, heads and batch that do not divide each other; an optimizer or a
            VQ-VAE that the plan does not know.
    """
    config, mesh, each = request.config, request.mesh, request.batch_each
    sizes = _sizes(_json(config))
    is_plain = not request.checkpointing
    other = replace(request, checkpointing=is_plain, checkpointed_blocks=1.0)
    memory, of_other = count_memory(request), count_memory(other)
    vq = vq_flops(config, request.patches)
    flops = _flops_each(request, each, vq)
    traffic = step_traffic(
        config, sizes, mesh, request.gpu, each, request.accumulation, BYTES[request.dtype],
        request.share_again,
    )  # fmt: skip
    seconds = _seconds(request, flops, traffic, memory)
    rate = request.batch / seconds["step"]
    pictures = 1 if request.patches else 0
    model_flops = request.accumulation * flops.model
    speed = {
        "items_per_second": rate,
        "tokens_per_second": rate * (request.words + request.patches),
        "pictures_per_second": rate * pictures,
        "mfu": model_flops / seconds["step"] / request.gpu.products[request.dtype],
    }
    largest = {
        name: _largest(one, held)
        for name, one, held in (
            ("checkpointing" if request.checkpointing else "plain", request, memory),
            ("plain" if request.checkpointing else "checkpointing", other, of_other),
        )
    }
    one_item = Batch(1, request.words, request.patches)
    return Plan(
        request,
        mesh,
        {"all": sizes.numel, "learning": sizes.learning},
        memory,
        of_other,
        largest,
        flops,
        {f"{n} branch{'es' * (n > 1)}": sampling_flops(config, one_item, n) for n in (1, 2)},
        traffic,
        seconds,
        speed,
        _hours(request, flops, vq, seconds["step"]),
        None if memory.fits else smallest_change(request),
        _notes(request),
    )
