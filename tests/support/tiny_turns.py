# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Inputs of several turns, all of them given, and a comparison of two outputs."""

import torch
from tiny_model import SIDE, VOCABULARY

# Of each item: (words, pictures) of every turn, the assistant's among them.
TALKS = [
    [(3, 1), (2, 0), (4, 0), (1, 1), (2, 0)],
    [(0, 1), (4, 0), (2, 1), (3, 0), (1, 0)],
]


def make_inputs(talks, seed=0):
    """All of it given, words and pixels of a turn the same whatever comes after it."""
    rows = []
    for item, talk in enumerate(talks):
        words, turns, pictures, shown = [], [], [], []
        for turn, (length, count) in enumerate(talk):
            draw = torch.Generator().manual_seed(1000 * seed + 100 * item + turn)
            words += torch.randint(4, VOCABULARY, (length,), generator=draw).tolist()
            turns += [turn] * length
            pictures += list(torch.rand(count, 1, SIDE, SIDE, generator=draw).double() * 2 - 1)
            shown += [turn] * count
        rows.append((words, turns, pictures, shown))
    size, most = len(rows), max(len(row[2]) for row in rows)
    longest = max(len(row[0]) for row in rows)
    inputs = {
        "input_ids": torch.zeros(size, longest, dtype=torch.long),
        "attention_mask": torch.zeros(size, longest, dtype=torch.long),
        "text_given": torch.ones(size, longest, dtype=torch.bool),
        "turn_ids": torch.zeros(size, longest, dtype=torch.long),
    }
    if most:
        inputs |= {
            "pixel_values": torch.zeros(size, most, 1, SIDE, SIDE, dtype=torch.float64),
            "pixel_attention_mask": torch.zeros(size, most, SIDE, SIDE, dtype=torch.long),
            "image_given": torch.ones(size, most, SIDE, SIDE, dtype=torch.bool),
            "image_turn_ids": torch.zeros(size, most, dtype=torch.long),
        }
    for item, (words, turns, pictures, shown) in enumerate(rows):
        inputs["input_ids"][item, : len(words)] = torch.tensor(words)
        inputs["attention_mask"][item, : len(words)] = 1
        inputs["turn_ids"][item, : len(words)] = torch.tensor(turns)
        if pictures:
            inputs["pixel_values"][item, : len(pictures)] = torch.stack(pictures)
            inputs["pixel_attention_mask"][item, : len(pictures)] = 1
            inputs["image_turn_ids"][item, : len(pictures)] = torch.tensor(shown)
    return inputs


def assert_same(first, second, tolerance=1e-10):
    assert (first.images is None) == (second.images is None)
    for name in ("sequences", "images"):
        if getattr(first, name) is not None:
            assert (getattr(first, name) - getattr(second, name)).abs().max() <= tolerance
    for g, value in first.confidence.items():
        assert (value - second.confidence[g]).abs().max() < max(tolerance, 1e-6)
    if "image" in first.trajectory:
        error = (first.trajectory["image"] - second.trajectory["image"]).abs().max()
        assert error <= tolerance
