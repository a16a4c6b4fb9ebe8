# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How many questions a model answers word for word as expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from modeling_mdm.data.conversations import words_and_pictures


@torch.no_grad()
def answer_accuracy(
    model: Any,
    processor: Any,
    items: Sequence[dict[str, Any]],
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
    if not items:
        raise ValueError("items is empty: pass at least one conversation.")
    right, asked = Counter[str](), Counter[str]()
    length = max_new_tokens or processor.max_text_length
    was_training = model.training
    model.eval()
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        noise = torch.Generator().manual_seed(seed + start)
        for item, answer in zip(
            batch, _answers(model, processor, batch, length, noise, generation), strict=True
        ):
            expected, _ = words_and_pictures(item["messages"][-1])
            is_right = answer.strip() == expected.strip()
            for kind in {"all", item.get("kind", "all")}:
                asked[kind] += 1
                right[kind] += is_right
    model.train(was_training)
    return {kind: right[kind] / count for kind, count in sorted(asked.items())}


def _answers(
    model: Any,
    processor: Any,
    items: Sequence[dict[str, Any]],
    length: int,
    noise: torch.Generator,
    generation: dict[str, Any],
) -> list[str]:
    """What the model answers in the place of the last message of each conversation."""
    inputs = processor.apply_chat_template(
        [item["messages"][:-1] for item in items],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        max_new_tokens=length,
    ).to(model.device)
    out = model.generate(**inputs, generator=noise, show_progress=False, **generation)
    return [sample.text for sample in processor.post_process(out, inputs)]
