# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How much is measured: sizes and effort of a full run, a quick one, a GPU's and a dry run."""

from dataclasses import dataclass, field, replace

import torch

from .timing import Effort


@dataclass(frozen=True)
class Plan:
    """Sizes of all rows.

    width, state_size, head_dim, layers: of every model and layer. kernel_lengths, block_lengths,
    attention_lengths, growth_lengths, text_lengths, past_lengths: positions. resolutions: sides of
    a picture in pixels, at patches of `patch`. joint: words and patches of the row of Table 3.
    given, noisy: of the prompt cache's rows; turns, samples: of those that have several.
    selection_length: patches of the row of hard selection. sampler_steps: the run that a latency is
    stated for; measured_steps: those of them that are run. compiled_lengths: where compiled
    contenders are timed too, which takes minutes. minutes: no row is begun after so long.
    """

    name: str
    width: int = 256
    state_size: int = 128
    head_dim: int = 64
    layers: int = 1
    batch: int = 2
    dtype: str = "float32"
    kernel_lengths: tuple[int, ...] = (256, 1024, 4096)
    block_lengths: tuple[int, ...] = (1024, 4096)
    attention_lengths: tuple[int, ...] = (256, 1024, 4096, 16384)
    growth_lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    text_lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    resolutions: tuple[int, ...] = (64, 128, 256, 512, 1024)
    patch: int = 16
    joint: tuple[int, int] = (64, 256)
    given: int = 1024
    noisy: int = 64
    turns: int = 4
    samples: int = 8
    past_lengths: tuple[int, ...] = (1024, 4096)
    selection_length: int = 4096
    sampler_steps: int = 30
    measured_steps: int = 3
    chunks: tuple[int, ...] = (16, 32, 64, 128, 256)
    compiled_lengths: tuple[int, ...] = (1024,)
    effort: Effort = field(default_factory=Effort)
    minutes: float = 600.0

    @property
    def is_dry(self) -> bool:
        """Whether this only tries that everything runs."""
        return self.name.startswith("dry")


FULL = Plan("full")
PLANS = {
    "full": FULL,
    "quick": replace(
        FULL,
        name="quick",
        kernel_lengths=(1024,),
        block_lengths=(1024,),
        attention_lengths=(1024, 4096),
        growth_lengths=(1024, 2048, 4096),
        text_lengths=(128, 512, 2048),
        resolutions=(128, 256, 512),
        selection_length=1024,
        past_lengths=(1024,),
        chunks=(32, 64, 128),
        compiled_lengths=(),
        effort=Effort(1.0, 3, 10),
        minutes=2.8,
    ),
    "gpu": replace(
        FULL,
        name="gpu",
        width=2048,
        layers=8,
        dtype="bfloat16",
        kernel_lengths=(256, 1024, 4096, 16384),
        block_lengths=(1024, 4096),
        attention_lengths=(1024, 4096, 16384),
        chunks=(64, 256),
        compiled_lengths=(),
        effort=Effort(1.0, 5, 50),
    ),
    # Every row once, on sizes that take no time: what a test runs, and a machine without a GPU.
    "dry": replace(
        FULL,
        name="dry",
        width=32,
        state_size=8,
        head_dim=16,
        batch=1,
        kernel_lengths=(24,),
        block_lengths=(24,),
        attention_lengths=(16, 32),
        growth_lengths=(16, 32, 64),
        text_lengths=(8, 16),
        resolutions=(32, 64),
        joint=(4, 4),
        given=12,
        noisy=4,
        past_lengths=(12,),
        selection_length=16,
        sampler_steps=4,
        measured_steps=2,
        chunks=(8, 16),
        compiled_lengths=(),
        effort=Effort(0.0, 2, 2),
    ),
}
# What `quick` is on a CPU without AVX-512, which takes several times as long for the same products.
PLANS["short"] = replace(
    PLANS["quick"],
    name="short",
    attention_lengths=(1024,),
    growth_lengths=(512, 1024, 2048),
    text_lengths=(128, 512),
    resolutions=(128, 256),
    chunks=(32, 64),
    effort=Effort(0.5, 2, 5),
)
PLANS["dry-bfloat16"] = replace(PLANS["dry"], name="dry-bfloat16", dtype="bfloat16")


def plan_for(name: str, device: torch.device) -> Plan:
    """Find a plan by its name, in sizes for this processor: three minutes are three minutes."""
    vectors = torch.backends.cpu.get_cpu_capability()
    is_slow = device.type == "cpu" and not vectors.startswith("AVX512")
    return PLANS["short" if name == "quick" and is_slow else name]
