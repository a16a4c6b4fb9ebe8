# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Flops of a training step: forward, self-conditioning, backward, what checkpointing repeats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.planning.operations import (
    Operation,
    Step,
    block_operations,
    embedding_operations,
    estimate_operations,
    head_operations,
    small_heads,
    vae_operations,
    vq_config,
    with_special_tokens,
)
from modeling_mdm.vae import VQFrontEnd

# How often training estimates first and is shown its estimate, as `training_step.py` draws it.
SELF_CONDITIONED = 0.5


@dataclass(frozen=True)
class Batch:
    """What a process reads in one forward and backward pass.

    items: of the batch. words, patches: places of each item, padding among them. given_words,
    given_patches: how many of these are known, which a mode head reads once more.
    """

    items: int
    words: int
    patches: int
    given_words: int = 0
    given_patches: int = 0

    @property
    def positions(self) -> int:
        """Words and patches of all items."""
        return self.items * (self.words + self.patches)


@dataclass(frozen=True)
class StepFlops:
    """Flops of one forward and backward pass.

    forward, backward: of the whole model. self_conditioning: the first estimate, by how often there
    is one. mode: what the mode head reads. vq: the VQ-VAE's codes. recomputed: the blocks once
    more, where they are checkpointed. dropped_prompts: how much of all this is of null tokens.
    """

    forward: float
    backward: float
    self_conditioning: float = 0.0
    mode: float = 0.0
    vq: float = 0.0
    recomputed: float = 0.0
    dropped_prompts: float = 0.0

    @property
    def model(self) -> float:
        """What the step needs, which MFU counts: all but what is computed again."""
        return self.forward + self.backward + self.self_conditioning + self.mode + self.vq

    @property
    def total(self) -> float:
        """What the device computes."""
        return self.model + self.recomputed

    def to_dict(self) -> dict[str, float]:
        """Give every part, the sum that MFU counts and that of all."""
        return {**asdict(self), "model": self.model, "total": self.total}


def _sum(operations: Iterable[Operation]) -> float:
    return sum(one.matmul_flops for one in operations)


def evaluation_operations(config: MDMConfig, step: Step) -> list[Operation]:
    """One evaluation by `MDMNetwork.denoise`: embeddings, blocks, heads, expected latents."""
    return [
        *embedding_operations(config, step),
        *block_operations(config, step),
        *head_operations(config, step),
        *estimate_operations(config, step),
    ]


def step_flops(
    config: MDMConfig,
    batch: Batch,
    num_null: int | None = None,
    self_conditioned: float | None = None,
    checkpointing: float = 0.0,
    frozen: float | None = None,
) -> StepFlops:
    """Count a training step.

    Args:
        batch: what it reads.
        num_null: null tokens of each item; None: all where prompts are dropped, for in a batch of
            some items one nearly always is.
        self_conditioned: share of the steps that estimate twice; None: as training draws it.
        checkpointing: share of the blocks that are computed again for their gradients.
        frozen: flops of the VQ-VAE for one item; None counts them, 0 leaves them out.
    """
    if num_null is None:
        num_null = nulls(config)
    if self_conditioned is None:
        self_conditioned = SELF_CONDITIONED
    counted = _step_flops(config, batch, num_null, self_conditioned, checkpointing, frozen)
    if not num_null:
        return counted
    without = _step_flops(config, batch, 0, self_conditioned, checkpointing, 0.0)
    return replace(counted, dropped_prompts=counted.total - counted.vq - without.total)


def _step_flops(
    config: MDMConfig,
    batch: Batch,
    num_null: int,
    self_conditioned: float,
    checkpointing: float,
    frozen: float | None,
) -> StepFlops:
    step = with_special_tokens(Step(batch.items, batch.words, batch.patches), num_null)
    given = Step(batch.items, batch.given_words, batch.given_patches)
    evaluation = evaluation_operations(config, step)
    own = [
        *evaluation,
        *vae_operations(config, step, patch_values(config)),
        *small_heads(config, step, given),
    ]
    mode = 0.0
    if config.use_mode_head:
        modalities = (batch.words > 0) + (batch.patches > 0)
        read = replace(given, special=1 + num_null + modalities)
        mode = _sum([*embedding_operations(config, read), *block_operations(config, read)])
    is_fed_back = config.self_conditioning * self_conditioned
    if frozen is None:
        frozen = vq_flops(config, batch.patches)
    return StepFlops(
        _sum(own),
        sum(one.backward_flops for one in own),
        is_fed_back * _sum(evaluation),
        mode,
        batch.items * frozen,
        checkpointing * _sum(block_operations(config, step)),
    )


def nulls(config: MDMConfig) -> int:
    """Null tokens of an item in training."""
    return config.num_null_tokens if config.null_prompt_probability else 0


def sampling_flops(config: MDMConfig, batch: Batch, branches: int = 2) -> float:
    """Flops of one evaluation in sampling; with guidance every item is evaluated twice."""
    step = Step(batch.items * branches, batch.words, batch.patches)
    num_null = config.num_null_tokens if branches > 1 else 0
    return _sum(evaluation_operations(config, with_special_tokens(step, num_null)))


def patch_values(config: MDMConfig) -> int:
    """Numbers of a patch, or of a code's vector."""
    if config.vq_config is None:
        return config.patch_size**2 * config.num_channels
    return int(vq_config(config).embed_dim)


def grid_of(patches: int, patch_size: int) -> tuple[int, int]:
    """Height and width in pixels of the squarest picture with so many patches."""
    rows = next(side for side in range(int(patches**0.5), 0, -1) if patches % side == 0)
    return rows * patch_size, patches // rows * patch_size


def vq_flops(config: MDMConfig, patches: int) -> float:
    """Flops of the VQ-VAE for the codes of one item, counted by torch without any numbers."""
    if config.vq_config is None or not patches:
        return 0.0
    with torch.device("meta"):
        front_end = VQFrontEnd(config.vq_config, config.patch_size)
        pixels = torch.zeros(1, 3, *grid_of(patches, config.patch_size))
        with FlopCounterMode(display=False) as counter:
            front_end(pixels)
    return float(counter.get_total_flops())
