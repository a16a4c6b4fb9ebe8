# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers against layers: the scan, its back-ends, the block of several scans, attention.

Contenders that compute the same thing are compared before they are timed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from modeling_mdm.planning.operations import scan_flops

from .plans import Plan
from .results import Contender, Row, available
from .subjects import (
    AttentionLayer,
    OurLayer,
    Scan,
    Task,
    flipped_pair,
    mamba_ssm_layer,
    mamba_ssm_scan,
    one_scan,
    our_pair,
    our_scan,
    place,
    scan_inputs,
    transformers_layer,
    transformers_scan,
)
from .timing import Effort, peak_memory, stopwatch, time_alternately

BACKENDS = ("torch", "torch_factored", "quadratic", "triton", "mamba_ssm")
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
PASSES = ("forward", "training")
OUT_OF_MEMORY = "out of memory"
Call = Callable[[], object]


def relative_difference(result: Tensor, truth: Tensor) -> float:
    """Root mean square of the difference over that of the truth."""
    result, truth = result.double(), truth.double()
    return float((result - truth).square().mean().sqrt() / truth.square().mean().sqrt())


def require_equal(results: dict[str, Tensor], dtype: torch.dtype) -> dict[str, float]:
    """Compare all results with the first.

    Raises:
        RuntimeError: one differs by more than the dtype explains: nothing is timed that is wrong.
    """
    first = next(iter(results.values()))
    differences = {name: relative_difference(one, first) for name, one in results.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE[dtype]:
            raise RuntimeError(
                f"`{name}` differs from `{next(iter(results))}` by {difference:.1e} of its size"
            )
    return differences


def compare(
    row: Row, calls: dict[str, Callable[[], Tensor]], dtype: torch.dtype
) -> dict[str, float]:
    """Compare what calls that should compute the same give; one without the memory is left out.

    Returns:
        how far each is from the first, as `require_equal`.
    """
    results = {}
    with torch.no_grad():
        for name, call in calls.items():
            try:
                results[name] = call()
            except torch.OutOfMemoryError:
                row.missing[name] = OUT_OF_MEMORY
    return require_equal(results, dtype)


def measure(row: Row, calls: dict[str, Call], device: torch.device, effort: Effort) -> Row:
    """Time a row's calls alternately, and take the peak memory of each."""
    calls = {name: call for name, call in calls.items() if fits(row, name, call)}
    for name, seconds in time_alternately(calls, device, effort).items():
        contender = row.contenders.setdefault(name, Contender([]))
        contender.seconds, contender.peak_bytes = seconds, peak_memory(calls[name], device)
    return row


def fits(row: Row, name: str, call: Call) -> bool:
    """Call once; if the memory is too small, note that in the row."""
    try:
        call()
    except torch.OutOfMemoryError:
        row.contenders.pop(name, None)
        row.missing[name] = OUT_OF_MEMORY
        return False
    return True


# --- the scan alone ---


def scan_call(scan: Scan, inputs: dict[str, Tensor], kind: str) -> Call:
    """A call that runs a scan, or a scan and its backward pass to all inputs."""
    if kind == "forward":
        return torch.no_grad()(partial(scan, inputs))
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    gradient = torch.ones_like(inputs["x"])

    def call() -> None:
        y = scan(leaves)
        torch.autograd.grad(y, list(leaves.values()), gradient.to(y.dtype))

    return call


def scan_matmul_flops(task: Task, kind: str) -> float:
    """Flop of a row of scans; each product has two more in the backward pass."""
    forward = scan_flops(task.batch * task.length, task.inner, task.state_size)
    return forward * (1 if kind == "forward" else 3)


def best_chunk(task: Task, chunks: tuple[int, ...], make: Callable[[int], Call]) -> int:
    """Find the chunk that runs fastest; one that does not fit the memory is the slowest."""

    def seconds(chunk: int) -> float:
        try:
            call = make(chunk)
            call()
            return min(stopwatch(call, task.device) for _ in range(2))
        except torch.OutOfMemoryError:
            return float("inf")

    return min((chunk for chunk in chunks if chunk <= max(task.length, min(chunks))), key=seconds)


def scan_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """The recurrence alone: ours, transformers' at two chunk sizes and compiled, mamba-ssm's."""
    for length in plan.kernel_lengths:
        task = Task.of(plan, device, length, 1)
        for kind in PASSES:
            row = Row("scan", f"{kind} {length}", task.parameters())
            inputs = scan_inputs(task)
            scans = {"mdm": our_scan(task)}
            scans["transformers"] = available(row, "transformers", lambda: transformers_scan(256))
            scans["mamba_ssm"] = available(row, "mamba_ssm", partial(mamba_ssm_scan, task))
            details: dict[str, dict] = {"mdm": {"matmul_flops": scan_matmul_flops(task, kind)}}
            if scans["transformers"]:
                chunk = best_chunk(
                    task,
                    plan.chunks,
                    lambda c, i=inputs, k=kind: scan_call(transformers_scan(c), i, k),
                )
                scans["transformers_best_chunk"] = transformers_scan(chunk)
                details["transformers_best_chunk"] = {"chunk_size": chunk}
                if length in plan.compiled_lengths:
                    scans["transformers_compiled"] = compiled(
                        row, "transformers_compiled", scans["transformers"], inputs
                    )
            found = {name: partial(scan, inputs) for name, scan in scans.items() if scan}
            differences = compare(row, found, task.dtype)
            for name in differences:
                row.contenders[name] = Contender([], details=details.get(name, {}))
                row.contenders[name].details["relative_difference"] = differences[name]
            row.contenders["mdm"].backend = task.backend()
            calls = {name: scan_call(scans[name], inputs, kind) for name in differences}
            yield measure(row, calls, device, plan.effort)


def compiled(row: Row, name: str, function: Callable, *arguments: object) -> Callable | None:
    """Compile and run once; None, with the reason in the row, where the compiler gives up."""
    torch.compiler.reset()
    result = torch.compile(function)
    try:
        with torch.no_grad():
            result(*arguments)
    except Exception as error:  # whatever the compiler raises is the reason
        row.missing[name] = f"torch.compile failed: {str(error).splitlines()[0][:200]}"
        return None
    return result


def backend_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Our back-ends against each other."""
    for length in plan.kernel_lengths:
        task = Task.of(plan, device, length, 1)
        for kind in PASSES:
            row = Row("backends", f"{kind} {length}", task.parameters())
            inputs, scans = scan_inputs(task), {}
            for name in BACKENDS:
                scan = available(row, name, partial(our_scan, task, name))
                if scan:
                    scans[name] = scan
            found = {name: partial(scan, inputs) for name, scan in scans.items()}
            fitting = compare(row, found, task.dtype)
            for name in fitting:
                row.contenders[name] = Contender([], backend=name)
            calls = {name: scan_call(scans[name], inputs, kind) for name in fitting}
            yield measure(row, calls, device, plan.effort)


def pair_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Both directions of one sequence: ours, and two calls of mamba-ssm's kernel with flips."""
    for length in plan.kernel_lengths:
        task = Task.of(plan, device, length, 2)
        row = Row("pair", f"forward {length}", task.parameters())
        inputs = scan_inputs(task)
        pairs = {
            "mdm": our_pair(task),
            "mamba_ssm": available(
                row, "mamba_ssm", lambda t=task: flipped_pair(mamba_ssm_scan(t))
            ),
            "transformers": available(
                row, "transformers", lambda: flipped_pair(transformers_scan(256))
            ),
        }
        found = {name: partial(pair, inputs) for name, pair in pairs.items() if pair}
        fitting = compare(row, found, task.dtype)
        row.contenders["mdm"] = Contender([], backend=task.backend())
        calls = {name: scan_call(pairs[name], inputs, "forward") for name in fitting}
        yield measure(row, calls, device, plan.effort)


# --- whole layers ---


def layer_call(layer: nn.Module, x: Tensor, kind: str) -> Call:
    """A call that runs a layer, or a layer and its backward pass to input and weights."""
    if kind == "forward":
        return torch.no_grad()(partial(layer, x))
    x = x.detach().clone().requires_grad_()
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    gradient = torch.ones_like(x)

    def call() -> None:
        torch.autograd.grad(layer(x), leaves, gradient, allow_unused=True)

    return call


def draw_input(task: Task) -> Tensor:
    """Features (b, l, width)."""
    return torch.randn(task.batch, task.length, task.width, device=task.device, dtype=task.dtype)


def parameters_of(layer: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in layer.parameters())


def block_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Our mixer of k scans against k mixers of transformers, and of mamba-ssm, stacked."""
    for length in plan.block_lengths:
        for scans in (1, 4):
            task = Task.of(plan, device, length, scans)
            for kind in PASSES:
                row = Row("block", f"{kind} {scans} scans {length}", task.parameters())
                x = draw_input(task)

                def call_of(chunk: int, task=task, x=x, kind=kind) -> Call:
                    return layer_call(
                        place(transformers_layer(one_scan(task), chunk), task), x, kind
                    )

                chunk = best_chunk(task, plan.chunks, call_of)
                layers = {
                    "mdm": place(OurLayer(task), task),
                    "transformers": place(transformers_layer(task), task),
                    "transformers_best_chunk": place(transformers_layer(task, chunk), task),
                }
                mamba = available(row, "mamba_ssm", lambda t=task: place(mamba_ssm_layer(t), t))
                if mamba is not None:
                    layers["mamba_ssm"] = mamba
                for name, layer in layers.items():
                    row.contenders[name] = Contender([], details={"weights": parameters_of(layer)})
                row.contenders["mdm"].backend = task.backend()
                row.contenders["transformers_best_chunk"].details["chunk_size"] = chunk
                if length in plan.compiled_lengths and scans == 1:  # of four it takes minutes
                    for name in ("mdm", "transformers_best_chunk"):
                        faster = compiled(row, f"{name}_compiled", layers[name], x)
                        if faster is not None:
                            layers[f"{name}_compiled"] = faster
                calls = {name: layer_call(layer, x, kind) for name, layer in layers.items()}
                yield measure(row, calls, device, plan.effort)


def attention_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Our mixer of one and of four scans against attention of the same width."""
    for length in plan.attention_lengths:
        task = Task.of(plan, device, length, 1)
        row = Row("attention", f"forward {length}", task.parameters())
        layers = {
            "mdm_1_scan": place(OurLayer(task), task),
            "mdm_4_scans": place(OurLayer(replace(task, scans=4)), task),
            "attention": place(AttentionLayer(task), task),
        }
        x = draw_input(task)
        for name, layer in layers.items():
            row.contenders[name] = Contender([], details={"weights": parameters_of(layer)})
        for name in ("mdm_1_scan", "mdm_4_scans"):
            row.contenders[name].backend = task.backend()
        calls = {name: layer_call(layer, x, "forward") for name, layer in layers.items()}
        yield measure(row, calls, device, plan.effort)
