# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How many questions a model answers word for word, and how many requests by what they ask for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modeling_mdm.data.conversations import kind_of_answer, words_and_pictures
from modeling_mdm.evaluation.figures import DEFAULT_SAMPLING, Figures, Row, Sampling

Items = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class AnswerFigures(Figures):
    """Held-out requests: how many are answered as they should be, in all and by kind."""

    task: str
    num_samples: int
    share_right: float
    share_right_by_kind: dict[str, float]
    seconds: float

    def rows(self, names: Sequence[str]) -> list[Row]:
        """One row: how many answers are right, and of which kind fewest are."""
        share, kind = min((share, kind) for kind, share in self.share_right_by_kind.items())
        right = f"{self.share_right:.1%}"
        return [(self.task, str(self.num_samples), "-", right, f"{kind} {share:.1%}")]


@torch.no_grad()
def answer_accuracy(
    model: Any,
    processor: Any,
    items: Items,
    max_new_tokens: int | None = None,
    batch_size: int = 50,
    seed: int = 0,
    **generation: Any,
) -> dict[str, float]:
    """Answer the last message of every conversation, and compare with what it says.

    Args:
        model: an `MDMForJointGeneration`, with or without adapters.
        processor: its processor.
        items: `messages` that end with an answer in words, and perhaps their `kind`.
        max_new_tokens: length of the region of an answer.
        batch_size: conversations at a time.
        seed: seed of the samples.
        **generation: more arguments of `generate`.

    Returns:
        The share of right answers in [0, 1]: under "all", and under each kind.

    Raises:
        ValueError: if there are no items.
    """
    length = max_new_tokens or processor.max_text_length

    def are_right(batch: Items, noise: torch.Generator) -> Iterator[bool]:
        inputs = before_answers(processor, batch, model.device, max_new_tokens=length)
        out = model.generate(**inputs, generator=noise, show_progress=False, **generation)
        for item, sample in zip(batch, processor.post_process(out, inputs), strict=True):
            expected, _ = words_and_pictures(item["messages"][-1])
            yield sample.text.strip() == expected.strip()

    return _shares(model, items, are_right, batch_size, seed)


@torch.no_grad()
def reply_accuracy(
    model: Any, processor: Any, items: Items, batch_size: int = 50, seed: int = 0
) -> dict[str, float]:
    """Let the model choose what the last message of every conversation is to hold.

    Args:
        model: an `MDMForJointGeneration` with a mode head.
        processor: its processor.
        items: `messages` that end with an answer in words, a picture or both, and perhaps their
            `kind`.
        batch_size: conversations at a time.
        seed: seed of the samples.

    Returns:
        The share in [0, 1] of those that get words, a picture or both as their answer has: under
        "all", and under each kind.

    Raises:
        ValueError: if there are no items, or the model has no mode head.
    """

    def are_right(batch: Items, noise: torch.Generator) -> Iterator[bool]:
        inputs = before_answers(processor, batch, model.device)
        # What is chosen does not hang on the steps that make it.
        out = model.generate(
            **inputs,
            generation_mode="auto",
            max_new_tokens=processor.max_text_length,
            num_inference_steps=1,
            generator=noise,
            show_progress=False,
        )
        for item, chosen in zip(batch, out.generation_modes, strict=True):
            yield chosen == kind_of_answer(item["messages"][-1])

    return _shares(model, items, are_right, batch_size, seed)


def question_figures(
    model: Any, processor: Any, items: Items, sampling: Sampling = DEFAULT_SAMPLING
) -> AnswerFigures:
    """Measure `answer_accuracy`."""
    options = {"num_inference_steps": sampling.num_inference_steps, **sampling.options}
    start = time.monotonic()
    shares = answer_accuracy(
        *(model, processor, items, None, sampling.batch_size, sampling.seed), **options
    )
    return _figures("questions", items, shares, start)


def reply_figures(
    model: Any, processor: Any, items: Items, sampling: Sampling = DEFAULT_SAMPLING
) -> AnswerFigures:
    """Measure `reply_accuracy`."""
    start = time.monotonic()
    shares = reply_accuracy(model, processor, items, sampling.batch_size, sampling.seed)
    return _figures("replies of the right kind", items, shares, start)


def _figures(task: str, items: Items, shares: dict[str, float], start: float) -> AnswerFigures:
    right = shares.pop("all")
    return AnswerFigures(task, len(items), right, shares, round(time.monotonic() - start, 1))


def _shares(
    model: Any,
    items: Items,
    are_right: Callable[[Items, torch.Generator], Iterator[bool]],
    batch_size: int,
    seed: int,
) -> dict[str, float]:
    """Judge items, some at a time; give the share of right ones under "all" and each kind."""
    if not items:
        raise ValueError("items is empty: pass at least one conversation.")
    right, asked = Counter[str](), Counter[str]()
    was_training = model.training
    model.eval()
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        noise = torch.Generator().manual_seed(seed + start)
        for item, is_right in zip(batch, are_right(batch, noise), strict=True):
            for kind in {"all", item.get("kind", "all")}:
                asked[kind] += 1
                right[kind] += is_right
    model.train(was_training)
    return {kind: right[kind] / count for kind, count in sorted(asked.items())}


def before_answers(processor: Any, items: Items, device: Any, **options: Any) -> Any:
    """What the model reads: of each conversation all but the last message."""
    return processor.apply_chat_template(
        [item["messages"][:-1] for item in items],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        **options,
    ).to(device)
