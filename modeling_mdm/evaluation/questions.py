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
    was_training = model.training
    model.eval()
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        inputs = processor.apply_chat_template(
            [item["messages"][:-1] for item in batch],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            max_new_tokens=max_new_tokens or processor.max_text_length,
        ).to(model.device)
        out = model.generate(
            **inputs,
            generator=torch.Generator().manual_seed(seed + start),
            show_progress=False,
            **generation,
        )
        for item, sample in zip(batch, processor.post_process(out, inputs), strict=True):
            expected, _ = words_and_pictures(item["messages"][-1])
            is_right = sample.text.strip() == expected.strip()
            for kind in {"all", item.get("kind", "all")}:
                asked[kind] += 1
                right[kind] += is_right
    model.train(was_training)
    return {kind: right[kind] / count for kind, count in sorted(asked.items())}
