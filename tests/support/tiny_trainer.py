# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trainer of two weights that uses every random source there is."""

import random

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from modeling_mdm.training.trainer import (
    MDMTrainer,
    MDMTrainingArguments,
)

NUM_ITEMS, BATCH = 40, 4


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return NUM_ITEMS

    def __getitem__(self, index):
        return {"x": index / NUM_ITEMS}


def collate(items):
    draws = [np.random.default_rng(item["seed"]).normal() for item in items]
    return {"x": torch.tensor([i["x"] + d for i, d in zip(items, draws, strict=True)]).float()}


class NoisyLine(nn.Module):
    """Fits a line to noisy numbers; its noise comes from torch, numpy and Python."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5]))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x, return_loss=True):
        noise = torch.randn_like(x) + np.random.normal() + random.gauss(0, 1)
        image = (self.weight * x - noise).square().mean()
        text = (self.bias - noise).square().mean()
        return ModelOutput(
            loss=image + text,
            loss_se_image=image,
            loss_se_text=text,
            loss_rec_image=None,
            loss_kl=2 * text,
        )


def make_trainer(folder, max_steps=16, **arguments):
    values = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": max_steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 0.05,
        "ema_decay": 0.9,
        "logging_steps": 1,
        "save_steps": 4,
        "num_samples": 0,
        "disable_tqdm": True,
        "report_to": "none",
        "seed": 3,
    }
    args = MDMTrainingArguments(**{**values, **arguments})
    torch.manual_seed(0)
    return MDMTrainer(
        NoisyLine(), args, train_dataset=Items(), eval_dataset=Items(), data_collator=collate
    )


def losses(trainer):
    return {h["step"]: h["loss"] for h in trainer.state.log_history if "loss" in h}


def without_timings(history):
    """What a log says of the run, and not of the machine: without times and memory."""
    measured = ("runtime", "per_second", "flos", "peak_bytes")
    return [{k: v for k, v in h.items() if not any(t in k for t in measured)} for h in history]
