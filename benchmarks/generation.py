# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models against models: Fig. 5 and the speed column of Table 3, growth, prompt cache, selection.

All run `generate`; a latency is the setup and `sampler_steps` times the median of the steps that
were run, since every step does the same work.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from modeling_mdm.generation_settings import DEFAULTS
from modeling_mdm.planning.flops import grid_of

from .machine import Peaks
from .plans import Plan
from .results import Contender, NotAvailable, Row, available
from .roofline import BYTES, Step, bound, predict
from .steps import (
    Generation,
    TokenByToken,
    given_picture,
    given_words,
    image_inputs,
    make_config,
    make_model,
    scan_clock,
)
from .timing import sample_alternately

# Contenders of Fig. 5 that run the diffusion loop.
DIFFUSERS: dict[str, dict[str, Any]] = {
    "mdm": {},
    "transformer": {"mixer": "attention"},
    "one_scan_mamba": {"image_scans": (1,), "text_scans": (1,)},
}
GUIDANCE = 2.0


def _dtype(plan: Plan) -> torch.dtype:
    return getattr(torch, plan.dtype)


def _sizes(plan: Plan, **more: Any) -> dict[str, Any]:
    return {"width": plan.width, "blocks": plan.layers, "dtype": plan.dtype, **more}


def measure_latencies(
    row: Row,
    plan: Plan,
    generations: dict[str, Generation],
    writers: dict[str, TokenByToken],
    branches: int,
) -> Row:
    """Time whole runs of diffusion models and of autoregressive ones alternately."""
    samplers = {
        name: lambda one=one: one.run().latency(plan.sampler_steps)
        for name, one in generations.items()
    }
    samplers |= {name: writer.seconds for name, writer in writers.items()}
    expected = warm_up(generations)
    for writer in writers.values():
        writer.seconds()
    for name, seconds in sample_alternately(samplers, plan.effort.rounds(expected)).items():
        if name in generations:
            one = generations[name]
            details = one.details(plan.sampler_steps, branches=branches)
            backend = one.last.backend
            row.contenders[name] = Contender(seconds, one.peak_bytes(), backend, details)
        else:
            writer = writers[name]
            row.contenders[name] = Contender(seconds, writer.peak_bytes(), None, writer.details())
    return row


def warm_up(generations: dict[str, Generation]) -> float:
    """Run two steps of each; returns the seconds that a round of all will take."""
    return sum(
        one.num_steps * run.step + run.setup
        for one in generations.values()
        for run in (replace(one, num_steps=2).run(),)
    )


def image_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Fig. 5, pictures: seconds of one picture by resolution, a class with guidance."""
    models = {
        name: make_model(make_config(plan, **changes), device, _dtype(plan))
        for name, changes in DIFFUSERS.items()
    }
    for side in plan.resolutions:
        patches = (side // plan.patch) ** 2
        sizes = _sizes(plan, resolution=side, patches=patches, guidance=GUIDANCE)
        row = Row("figure_5", f"image {side}", sizes)
        options = {"generation_mode": "image", "image_size": side, "guidance_scale": GUIDANCE}
        generations = {
            name: Generation(model, image_inputs(device), options, plan.measured_steps)
            for name, model in models.items()
        }
        writers = {"autoregressive": TokenByToken(models["transformer"], patches, 1, 2)}
        yield measure_latencies(row, plan, generations, writers, branches=2)


def text_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Fig. 5, words: latency by the number of words, after a prompt of as many as a quarter."""
    models = {
        name: make_model(make_config(plan, **changes), device, _dtype(plan))
        for name, changes in DIFFUSERS.items()
    }
    for length in plan.text_lengths:
        prompt = max(1, length // 4)
        sizes = _sizes(plan, words=length, prompt=prompt, guidance=1.0)
        row = Row("figure_5", f"text {length}", sizes)
        options = {"generation_mode": "text", "max_new_tokens": length, "guidance_scale": 1.0}
        generations = {
            name: Generation(model, given_words(prompt, device), options, plan.measured_steps)
            for name, model in models.items()
        }
        writers = {"autoregressive": TokenByToken(models["transformer"], length, prompt, 1)}
        yield measure_latencies(row, plan, generations, writers, branches=1)


TABLE_3: dict[str, dict[str, Any]] = {
    "scans 1234/12": {},
    "scans 12/1": {"image_scans": (1, 2), "text_scans": (1,)},
    "scans 1234/12, cyclic": {"scan_mode": "cyclic"},
    "scans 1234/12, separate": {"scan_projections": "separate"},
    "scans 1234/12, cyclic, separate": {"scan_mode": "cyclic", "scan_projections": "separate"},
    "Transformer": {"mixer": "attention"},
}


def table_3_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Table 3's speed: one step of joint generation, by scans, scan mode and projections."""
    words, patches = plan.joint
    row = Row("table_3", "joint step", _sizes(plan, words=words, patches=patches, branches=1))
    side = grid_of(patches, plan.patch)
    options = {"generation_mode": "joint", "max_new_tokens": words, "image_size": side}
    options |= {"guidance_scale": 1.0}
    generations = {
        name: Generation(
            make_model(make_config(plan, **changes), device, _dtype(plan)),
            {},
            options,
            plan.measured_steps,
        )
        for name, changes in TABLE_3.items()
    }
    yield measure_steps(row, plan, generations)


def measure_steps(row: Row, plan: Plan, generations: dict[str, Generation]) -> Row:
    """Time the steps of several runs of `generate` alternately."""
    samplers = {name: one.step_seconds for name, one in generations.items()}
    rounds = plan.effort.rounds(warm_up(generations))
    for name, seconds in sample_alternately(samplers, rounds).items():
        one = generations[name]
        backend = one.last.backend
        row.contenders[name] = Contender(seconds, one.peak_bytes(), backend, one.details())
    return row


def growth_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """One step by the number of patches, of a picture without guidance."""
    models = {
        "mdm": make_model(make_config(plan), device, _dtype(plan)),
        "transformer": make_model(make_config(plan, mixer="attention"), device, _dtype(plan)),
    }
    for length in plan.growth_lengths:
        row = Row("growth", f"step {length}", _sizes(plan, patches=length, branches=1))
        options = {"generation_mode": "image", "image_size": grid_of(length, plan.patch)}
        options |= {"guidance_scale": 1.0}
        generations = {
            name: Generation(model, image_inputs(device), options, plan.measured_steps)
            for name, model in models.items()
        }
        yield measure_steps(row, plan, generations)


def predict_growth(row: Row, plan: Plan, peaks: Peaks) -> None:
    """Add what the roofline says to a row of `growth_rows`."""
    size = BYTES[plan.dtype]
    step = Step(1, 0, row.parameters["patches"], size)
    for name, changes in (("mdm", {}), ("transformer", {"mixer": "attention"})):
        config = make_config(plan, **changes)
        row.contenders[name].details |= {
            "predicted_seconds": predict(config, step, peaks, plan.dtype),
            "bound_seconds": bound(config, step, peaks, plan.dtype),
        }


def cache_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """One step with a long given part and few noisy positions, cached and uncached."""
    words = {"generation_mode": "text", "max_new_tokens": plan.noisy}
    picture = {"generation_mode": "image", "image_size": grid_of(plan.noisy, plan.patch)}
    seen = given_picture(grid_of(plan.given, plan.patch), device)
    read = given_words(plan.given, device)
    # What is given, what is written, samples of each, turns of what is given.
    tasks = {
        "text to image": (read, picture, 1, 1),
        "captioning": (seen, words, 1, 1),
        "words after words": (read, words, 1, 1),
        "conversation": (given_words(plan.given, device, plan.turns), words, 1, plan.turns),
        "many samples of a prompt": (read, picture, plan.samples, 1),
    }
    for task, (given, written, samples, turns) in tasks.items():
        sizes = _sizes(plan, given=plan.given, noisy=plan.noisy, samples=samples, turns=turns)
        row = Row("prompt_cache", task, sizes | {"guidance": 1.0})
        options = {"guidance_scale": 1.0, "num_return_sequences": samples, **written}
        generations = {}
        for mixer, changes in (("mdm", {}), ("transformer", {"mixer": "attention"})):
            model = make_model(make_config(plan, **changes), device, _dtype(plan))
            for name, use_cache in (("cached", True), ("uncached", False)):
                setting = available(row, f"{mixer} {name}", partial(cache_option, use_cache))
                if setting is not None:
                    generations[f"{mixer} {name}"] = Generation(
                        model, given, options | setting, plan.measured_steps
                    )
        yield measure_steps(row, plan, generations)


def past_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """A reply in a conversation: the past read anew, or gone on from (`cache`)."""
    model = make_model(make_config(plan), device, _dtype(plan))
    options = {"generation_mode": "text", "max_new_tokens": plan.noisy, "guidance_scale": 1.0}
    for length in plan.past_lengths:
        row = Row("past_turns", f"{length} words", _sizes(plan, past=length, noisy=plan.noisy))
        first = Generation(model, given_words(length, device), options, num_steps=2)
        first.run()
        more = given_words(length + plan.noisy, device)
        more["turn_ids"] = (torch.arange(length + plan.noisy, device=device) >= length).long()[None]
        generations = {
            name: Generation(model, more, options | past, plan.measured_steps)
            for name, past in (("anew", {}), ("going on", {"cache": first.past}))
        }
        measure_latencies(row, plan, generations, {}, branches=1)
        for name, one in generations.items():
            before = int(first.past.positions_read[0]) if name == "going on" else 0
            row.contenders[name].details["positions_read"] = (
                int(one.past.positions_read[0]) - before
            )
        yield row


def cache_option(use_cache: bool) -> dict[str, bool]:
    """The keywords of `generate` that turn the prompt cache on or off.

    Raises:
        NotAvailable: `generate` has no prompt cache.
    """
    if "use_cache" not in DEFAULTS:
        raise NotAvailable("this version of `generate` has no prompt cache")
    # Both step by step: a graph of a step would hide what launching kernels costs the uncached one.
    return {"use_cache": use_cache, "cuda_graph": False}


KEEPS = (1.0, 0.75, 0.5, 0.25)


def selection_rows(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Hard selection: what the scans of a step take, and the whole step, by the share kept."""
    model = make_model(make_config(plan), device, _dtype(plan))
    options = {
        "generation_mode": "image",
        "image_size": grid_of(plan.selection_length, plan.patch),
        "guidance_scale": 1.0,
    }
    generations = {
        f"keep {keep:.0%}": Generation(
            model, image_inputs(device), options | {"keep": keep}, plan.measured_steps
        )
        for keep in KEEPS
    }
    sizes = _sizes(plan, patches=plan.selection_length, branches=1)
    yield measure_steps(Row("selection", "step", sizes), plan, generations)

    def scans(one: Generation) -> float:
        with scan_clock(model, device) as taken:
            one.run()
        return sum(taken) / plan.measured_steps

    row = Row("selection", "scan", sizes)
    rounds = plan.effort.rounds(
        sum(one.last.setup + sum(one.last.steps) for one in generations.values())
    )
    samplers = {name: partial(scans, one) for name, one in generations.items()}
    for name, seconds in sample_alternately(samplers, rounds).items():
        row.contenders[name] = Contender(seconds, None, generations[name].last.backend)
    yield row
