# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Samples of a column: pictures and words, each with its own noise, kept as soon as made.

Words are written, or chosen from a list by `score`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm

from modeling_mdm.evaluation.sampling import evaluating
from modeling_mdm.evaluation.tables.answers import Answers
from modeling_mdm.evaluation.tables.estimates import require_same_ids
from modeling_mdm.evaluation.tables.processes import item_noise, own_share, rank, wait_for_all

# Inputs of the processor for some items: (items) -> tensors.
Prepare = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Bench:
    """What every column measures with.

    Args:
        model, processor: what is measured.
        answers: where samples are kept.
        seed: of all noise.
        batch_size: samples at a time.
        options: of `model.generate`.
        disable_tqdm: no progress bars.
    """

    model: Any
    processor: Any
    answers: Answers
    seed: int = 0
    batch_size: int = 50
    options: Mapping[str, Any] = field(default_factory=dict)
    disable_tqdm: bool = False


@dataclass(frozen=True)
class Effort:
    """What the samples of a column cost, summed over processes.

    Args:
        num_samples: how many.
        evaluations: of the network, a mean over samples.
        seconds: spent on them.
    """

    num_samples: int
    evaluations: float
    seconds: float

    @property
    def log_samples_per_second(self) -> float:
        """How fast they were made, as Table 3 has it: the logarithm to base 10."""
        return math.log10(self.num_samples / self.seconds)


def write_samples(
    bench: Bench, column: str, items: Mapping[str, Any], prepare: Prepare
) -> dict[str, dict[str, Any]]:
    """Make a sample of every item that has none yet, each process its share.

    Args:
        bench: what makes them. column: whose they are.
        items: by name.
        prepare: turns some items into inputs of the model.

    Returns:
        of every item its `text`, if words were written, `evaluations` and `seconds`; its picture,
        if one was, lies where `bench.answers.picture` says.

    Raises:
        ValueError: the folder has an answer that is of none of the items, or two of one.
    """

    def write(names: Sequence[str]) -> None:
        _write(bench, column, names, prepare([items[name] for name in names]))

    return _answer_all(bench, column, items, write, bench.batch_size)


def choose_answers(
    bench: Bench,
    column: str,
    items: Mapping[str, Any],
    choices: Sequence[str],
    read: Callable[[Any, Sequence[str]], Any],
    num_evaluations: int,
) -> dict[str, dict[str, Any]]:
    """Choose for every item that has no answer yet the likeliest of some, each process its share.

    All choices of an item see the same noise. They are read `bench.batch_size` at a time.

    Args:
        bench: what scores them. column: whose they are. items: by name.
        choices: answers. read: turns an item and its choices into inputs of the model.
        num_evaluations: of the network, for each choice.

    Returns:
        of every item what `write_samples` returns, and `confidence`, the probability of its `text`
        among the choices.

    Raises:
        ValueError: see `write_samples`.
    """

    def choose(names: Sequence[str]) -> None:
        for name in names:
            start = time.perf_counter()
            inputs = read(items[name], choices).to(bench.model.device)
            scores = [
                bench.model.score(
                    **{key: value[at : at + bench.batch_size] for key, value in inputs.items()},
                    content="text",
                    num_evaluations=num_evaluations,
                    generator=item_noise(bench.seed, column, name),
                ).log_likelihood.double()
                for at in range(0, len(choices), bench.batch_size)
            ]
            confidence, best = torch.cat(scores).softmax(0).max(0)
            bench.answers.add(
                column,
                name,
                text=choices[int(best)],
                confidence=float(confidence),
                evaluations=num_evaluations * len(choices),
                seconds=time.perf_counter() - start,
            )

    return _answer_all(bench, column, items, choose, batch_size=1)


def _answer_all(
    bench: Bench,
    column: str,
    items: Mapping[str, Any],
    answer: Callable[[Sequence[str]], None],
    batch_size: int,
) -> dict[str, dict[str, Any]]:
    kept = bench.answers.of(column)
    due = [name for name in own_share(list(items)) if name not in kept]
    with (
        evaluating(bench.model),
        tqdm(total=len(due), desc=column, disable=bench.disable_tqdm) as bar,
    ):
        for start in range(0, len(due), batch_size):
            names = due[start : start + batch_size]
            answer(names)
            bar.update(len(names))
    wait_for_all()
    found = bench.answers.of(column)
    if rank() == 0:
        require_same_ids(found, items, f"{str(bench.answers.folder)!r}, {column},")
    return found


def _write(bench: Bench, column: str, names: Sequence[str], inputs: Any) -> None:
    start = time.perf_counter()
    inputs = inputs.to(bench.model.device)
    out = bench.model.generate(
        **inputs,
        generator=[item_noise(bench.seed, column, name) for name in names],
        show_progress=False,
        **bench.options,
    )
    samples = bench.processor.post_process(out, inputs)
    seconds = (time.perf_counter() - start) / len(names)
    for name, sample in zip(names, samples, strict=True):
        if sample.image is not None:
            bench.answers.keep(column, name, sample.image)
        bench.answers.add(
            column, name, text=sample.text, evaluations=out.num_evaluations, seconds=seconds
        )


def cut_at(text: str, stops: str | Sequence[str] | None) -> str:
    """Cut a text before the first of some stops."""
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.split(stop, 1)[0] if stop else text
    return text


def effort_of(samples: Mapping[str, Mapping[str, Any]]) -> Effort:
    """Add up what samples cost."""
    count = len(samples)
    evaluations = sum(one["evaluations"] for one in samples.values()) / max(1, count)
    return Effort(count, evaluations, sum(one["seconds"] for one in samples.values()))
