# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Say what a training run needs before it runs: memory of each GPU, seconds, days, what to change.

    mdm plan --config configuration/mdm-7b --gpus 64 --gpu h100 --batch 512 --output plan.json
    mdm plan --config configuration/mdm-1b --gpus 8 --gpu h100 --parallel fsdp2 --checkpointing true
    mdm plan --config FOLDER --gpu mine --gpu_memory 64 --gpu_flops 400 --gpu_bandwidth 2

Nothing is downloaded and no GPU is needed. Memory is that of the real step, run on tensors without
numbers; time follows from its flops at a stated utilisation, which is an assumption.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mdm_cli.places import require_writable_file
from modeling_mdm import MDMConfig
from modeling_mdm.evaluation.writing import write_json
from modeling_mdm.planning.gpus import GPUS, OwnFigures, find_gpu
from modeling_mdm.planning.mesh import items_each, make_mesh
from modeling_mdm.planning.optimizers import OPTIMIZERS, check_optimizer
from modeling_mdm.planning.plan import BYTES, Memory, Plan, Request, make_plan
from modeling_mdm.training.command_line import pairs, read_command_line
from modeling_mdm.training.loading import load_pretrained

ITEMS_EACH = 8  # of a GPU, where no batch is named


@dataclass
class PlanArguments:
    """What is to be trained, on what, how."""

    config: str = field(metadata={"help": "folder or Hub id with config.json"})
    config_overrides: list[str] | None = field(
        default=None, metadata={"help": "fields of the config, as name=value; values are YAML"}
    )
    gpus: int = field(default=1, metadata={"help": "processes, one a GPU"})
    gpus_per_machine: int = field(default=8, metadata={"help": "GPUs of a machine"})
    gpu: str = field(
        default="h100",
        metadata={"help": f"one of {', '.join(GPUS)}; any name, if its figures are given"},
    )
    gpu_memory: float | None = field(default=None, metadata={"help": "of a GPU, in GB"})
    gpu_flops: float | None = field(
        default=None, metadata={"help": "dense products of a GPU, in Tflop/s"}
    )
    gpu_bandwidth: float | None = field(
        default=None, metadata={"help": "of a GPU's memory, in TB/s"}
    )
    gpu_link: float | None = field(
        default=None, metadata={"help": "from a GPU to those of its machine, in GB/s"}
    )
    gpu_network: float | None = field(
        default=None, metadata={"help": "from a GPU to other machines, in GB/s"}
    )
    parallel: list[str] = field(
        default_factory=list,
        metadata={
            "help": "how GPUs share the model: ddp, fsdp2 (of several GPUs the default) or hsdp "
            "(split within a machine, or hsdp=N), and tp=N, cp=N; tp is planned only"
        },
    )
    batch: int | None = field(
        default=None,
        metadata={"help": f"items of a step, of all GPUs; if not given, {ITEMS_EACH} for each"},
    )
    accumulation: int = field(default=1, metadata={"help": "batches of a GPU in a step"})
    words: int | None = field(
        default=None, metadata={"help": "words of an item; `max_text_length` of the config"}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "side of a picture in pixels, 0 for none; the config's"}
    )
    sequence: int | None = field(
        default=None, metadata={"help": "words and patches of an item, in place of `words`"}
    )
    dtype: str = field(default="bfloat16", metadata={"help": f"one of {', '.join(BYTES)}"})
    checkpointing: bool = field(
        default=False, metadata={"help": "compute blocks again for their gradients"}
    )
    checkpointed_blocks: float = field(
        default=1.0, metadata={"help": "share of the blocks that checkpointing computes again"}
    )
    optim: str = field(
        default="adamw_torch_fused", metadata={"help": f"one of {', '.join(OPTIMIZERS)}"}
    )
    ema_decay: float = field(default=0.9999, metadata={"help": "0 keeps no average of weights"})
    utilisation: float = field(
        default=0.35, metadata={"help": "share of the GPU's peak that is reached while computing"}
    )
    epochs: float = field(default=1.0, metadata={"help": "how often the paper's data is read"})
    output: str | None = field(default=None, metadata={"help": "file to write the plan to, JSON"})
    json: bool = field(default=False, metadata={"help": "print the plan as JSON"})


def _lengths(chosen: PlanArguments, config: MDMConfig) -> tuple[int, int]:
    """Words and patches of an item.

    Raises:
        ValueError: a picture that is not cut into patches, or a sequence too short for it.
    """
    side = config.image_size if chosen.image_size is None else chosen.image_size
    if side < 0 or side % config.patch_size:
        raise ValueError(
            f"image_size={side} is no multiple of `patch_size` = {config.patch_size}: use one, "
            "or 0 for no picture."
        )
    patches = (side // config.patch_size) ** 2
    if chosen.sequence is None:
        return config.max_text_length if chosen.words is None else chosen.words, patches
    if chosen.words is not None:
        raise ValueError(
            f"sequence={chosen.sequence} and words={chosen.words} both say how many words there "
            "are: give one of them."
        )
    if chosen.sequence < patches:
        raise ValueError(
            f"sequence={chosen.sequence} is less than the {patches} patches of image_size={side}: "
            "use a longer one, or a smaller picture."
        )
    return chosen.sequence - patches, patches


def make_request(chosen: PlanArguments) -> Request:
    """Read what is to be planned.

    Raises:
        ValueError: an unknown GPU, optimizer or field of the config, or numbers out of range.
        OSError: there is no such config.
    """
    check_optimizer(chosen.optim)
    figures = ("memory", "flops", "bandwidth", "link", "network")
    own = OwnFigures(**{name: getattr(chosen, f"gpu_{name}") for name in figures})
    gpu = find_gpu(chosen.gpu, own)
    config = load_pretrained(MDMConfig, "config", chosen.config)
    overrides = pairs("config_overrides", chosen.config_overrides)
    if unknown := sorted(name for name in overrides if not hasattr(config, name)):
        raise ValueError(f"config_overrides names {unknown}, which MDMConfig does not have.")
    config = MDMConfig(**{**config.to_dict(), **overrides})
    words, patches = _lengths(chosen, config)
    mesh = make_mesh(chosen.gpus, chosen.gpus_per_machine, chosen.parallel, config)
    batch = chosen.batch
    if batch is None:
        batch = ITEMS_EACH * mesh.data * chosen.accumulation
    items_each(batch, chosen.accumulation, mesh)  # refuses what cannot be divided
    return Request(
        config=config,
        gpu=gpu,
        gpus=chosen.gpus,
        gpus_per_machine=chosen.gpus_per_machine,
        parallel=tuple(chosen.parallel),
        batch=batch,
        accumulation=chosen.accumulation,
        words=words,
        patches=patches,
        dtype=chosen.dtype,
        checkpointing=chosen.checkpointing,
        checkpointed_blocks=chosen.checkpointed_blocks,
        optimizer=chosen.optim,
        average=chosen.ema_decay > 0,
        utilisation=chosen.utilisation,
        epochs=chosen.epochs,
    )


def _row(name: str, *values: str) -> str:
    return f"  {name:<34}" + "".join(f"{value:>16}" for value in values)


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"


def _memory_rows(plan: Plan) -> Iterator[str]:
    pair = [plan.memory, plan.with_other_checkpointing]
    if plan.request.checkpointing:
        pair.reverse()
    share = plan.request.checkpointed_blocks
    again = "checkpointing" if share == 1 else f"{share:.0%} of blocks"
    yield _row("memory of a GPU", "plain", again)

    def row(name: str, of: str) -> str:
        return _row(name, *(_gb(getattr(memory.states, of)) for memory in pair))

    yield row("weights", "weights")
    yield row("optimizer", "optimizer")
    yield row("average", "average")
    yield row("weights that are gathered", "gathered")
    yield row("gradients on their way", "reducing")
    yield row("gradients", "gradients")
    yield _row("activations, at most", *(_gb(memory.activations) for memory in pair))
    yield _row("most at once", *(_gb(memory.total) for memory in pair))
    yield _row("usable", *(_gb(memory.usable) for memory in pair))
    yield _row("fits", *(_yes(memory) for memory in pair))
    names = ("plain", "checkpointing")
    yield _row("items of a GPU that fit, about", *(f"{plan.largest[n]:,}" for n in names))


def _yes(memory: Memory) -> str:
    return "yes" if memory.fits else "no"


def report(plan: Plan) -> str:
    """Lay a plan out as a table."""
    request, mesh, flops = plan.request, plan.mesh, plan.flops
    learning = plan.parameters["learning"]
    each = request.batch_each.items
    lines = [
        f"{learning / 1e9:,.3f} billion weights that learn, {plan.parameters['all'] / 1e9:,.3f} in "
        f"all, on {request.gpus} x {request.gpu.name} ({' '.join(mesh.words())}), {request.dtype}",
        f"{request.batch:,} items a step, {each} at once on each of {mesh.data} x "
        f"{request.accumulation}; {request.words} words and {request.patches} patches an item",
        "",
        *_memory_rows(plan),
        "",
        _row("Tflop of a pass of a GPU", "Tflop"),
        *(
            _row(name.replace("_", " "), f"{value / 1e12:,.3f}")
            for name, value in flops.to_dict().items()
        ),
        *(
            _row(f"an item's evaluation, {name}", f"{value / 1e12:,.3f}")
            for name, value in plan.sampling.items()
        ),
        "",
        _row("traffic of a step", "GB sent", "seconds"),
        *(_row(one.name, f"{one.bytes / 1e9:,.2f}", f"{one.seconds:,.3f}") for one in plan.traffic),
        "",
        _row(f"at {request.utilisation:.0%} of the peak", "seconds"),
        *(_row(name.replace("_", " "), f"{value:,.3f}") for name, value in plan.seconds.items()),
        *(
            _row(name.replace("_", " "), f"{value:,.3f}" if name == "mfu" else f"{value:,.0f}")
            for name, value in plan.speed.items()
        ),
        "",
        _row(f"the paper's data, {request.epochs:g} x", "items", "days", "GPU-hours"),
        *(
            _row(one.name, f"{one.items:,.0f}", f"{one.days:,.2f}", f"{one.gpu_hours:,.0f}")
            for one in plan.hours
        ),
        "",
    ]
    if plan.change is not None:
        over = plan.memory.total - plan.memory.usable
        fix = f"the smallest change that fits: {plan.change[0]}" if plan.change else "nothing tried"
        fix += "" if plan.change else " makes it fit: use fewer weights or shorter items"
        lines.append(f"It does not fit, by {_gb(over)} a GPU; {fix}")
    return "\n".join([*lines, *plan.notes])


def parse(
    argv: Sequence[str], description: str | None = __doc__, prog: str | None = None
) -> tuple[Request, PlanArguments]:
    """Read the command line; `description` and `prog` are what `--help` shows.

    Raises:
        ValueError: what cannot be planned; names the argument, its value and the fix.
    """
    (chosen,) = read_command_line((PlanArguments,), argv, description, prog)
    return make_request(chosen), chosen


def run(request: Request, chosen: PlanArguments) -> None:
    """Plan; print the table or the JSON, and write the JSON where asked."""
    if chosen.output is not None:
        require_writable_file("output", chosen.output)
    plan = make_plan(request)
    content = plan.to_dict()
    if chosen.output is not None:
        write_json(chosen.output, content)
    print(json.dumps(content, indent=2) if chosen.json else report(plan))


def main(argv: Sequence[str] | None = None, description: str | None = __doc__) -> None:
    """Plan as the command line says."""
    run(*parse(sys.argv[1:] if argv is None else argv, description))
