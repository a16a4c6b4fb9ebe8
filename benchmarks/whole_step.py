# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""One step of the large preset on a GPU: eager, in a CUDA graph, and against the roofline."""

from collections.abc import Callable, Iterator

import torch

from modeling_mdm.configuration_mdm import MDMConfig

from .machine import Peaks
from .plans import Plan
from .results import Contender, NotAvailable, Row, available
from .roofline import BYTES, Step, bound, load_config, predict
from .steps import evaluation_call, make_config, make_model
from .timing import peak_memory, time_alternately

# (rows of the batch, patches): one without guidance, then pairs with it.
SIZES = ((1, 256), (2, 256), (2, 1024), (2, 4096))
DRY_SIZES = ((1, 4), (2, 16))


def graphed(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Capture a call's kernels, to be replayed without the launches of each.

    Raises:
        NotAvailable: no CUDA device, or a call that reads from the device and cannot be captured.
    """
    if device.type != "cuda":
        raise NotAvailable("CUDA graphs need a CUDA device")
    try:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        raise NotAvailable(f"the step cannot be captured: {str(error).splitlines()[0]}") from error
    return graph.replay


def step_rows(plan: Plan, device: torch.device, peaks: Peaks) -> Iterator[Row]:
    """One evaluation of `mdm-1b` without its VQ-VAE, in bfloat16; of a tiny model in a dry run."""
    if plan.is_dry:
        preset, config, sizes = "dry", make_config(plan), DRY_SIZES
    else:
        preset, sizes = "mdm-1b", SIZES
        config = MDMConfig(**{**load_config(preset).to_dict(), "vq_config": None})
    model = make_model(config, device, getattr(torch, plan.dtype))
    for rows, patches in sizes:
        parameters = {"preset": preset, "rows": rows, "patches": patches, "dtype": plan.dtype}
        row = Row("step", f"{rows} x {patches}", parameters)
        eager = evaluation_call(model, rows, patches)
        calls = {
            "eager": eager,
            "cuda_graph": available(row, "cuda_graph", lambda c=eager: graphed(c, device)),
        }
        calls = {name: call for name, call in calls.items() if call}
        step = Step(rows, 0, patches, BYTES[plan.dtype])
        least = {
            "predicted_seconds": predict(config, step, peaks, plan.dtype),
            "bound_seconds": bound(config, step, peaks, plan.dtype),
        }
        for name, seconds in time_alternately(calls, device, plan.effort).items():
            memory = peak_memory(calls[name], device)
            backend = model._kernel_backend(patches)
            row.contenders[name] = Contender(seconds, memory, backend, dict(least))
        yield row
