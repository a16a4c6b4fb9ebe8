# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""At which noise words tell a model what it draws: its error with the right word and a wrong one.

It rises long before drawings can be recognised, so that a training can be judged after minutes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from modeling_mdm.data.tasks import MDMDataCollator, TaskMixture
from modeling_mdm.score_entropy import denoising_weight

LOG_SNRS = (-6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 2.0)


def others_of(concepts: Sequence[str]) -> list[str]:
    """Give each another concept of the list, drawn by lot, but always the same.

    Raises:
        ValueError: there is one only.
    """
    if len({*concepts}) < 2:
        raise ValueError(f"concepts={[*{*concepts}]} are all the same: two at least are needed.")
    lot = random.Random(0)
    return [lot.choice([other for other in concepts if other != own]) for own in concepts]


def drawing_error(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image],
    prompts: Sequence[str],
    log_snr: float,
    batch_size: int,
    seed: int,
) -> float:
    """Squared error of a patch's latent, estimated from pictures noised to one log-SNR.

    Args:
        prompts: given, one for each picture. seed: of the noise, the same for the same pictures.
    """
    collate = MDMDataCollator(processor, TaskMixture({"text_to_image": 1.0}), seed=seed)
    level = torch.tensor(log_snr)
    time, total = model.schedules["image"].time_of(level), 0.0
    weight = denoising_weight(torch.sigmoid(level), model.config.denoising_weight_max)
    torch.manual_seed(seed)
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        items = [
            {"image": picture, "text": prompt, "label": None, "seed": place}
            for place, (picture, prompt) in enumerate(
                zip(pictures[part], prompts[part], strict=True)
            )
        ]
        batch = {name: value.to(model.device) for name, value in collate(items).items()}
        times = {"image": time.repeat(len(items)).to(model.device)}
        with torch.no_grad():
            out = model(**batch, times=times, keep=1.0, self_condition=False)
        total += float(out.loss_se_image) * len(items)
    return total / float(weight) / len(prompts)


def word_figures(
    model: Any,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    pictures: Sequence[Image.Image],
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Measure rows that show one thing, each under its name and under another's.

    Returns:
        by log-SNR the error with the right and the wrong name, and the share of the latter that the
        right name takes away.
    """
    names = [row["objects"][0]["concept"] for row in rows]
    found: dict[str, Any] = {}
    for log_snr in LOG_SNRS:
        right, wrong = (
            drawing_error(model, processor, pictures, said, log_snr, batch_size, seed)
            for said in (names, others_of(names))
        )
        found[f"log-SNR {log_snr:g}"] = {
            "right": right,
            "wrong": wrong,
            "gain": (wrong - right) / wrong,
        }
    return found
