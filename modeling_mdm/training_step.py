# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is random in a training step: each source is an argument, and drawn where it is None.

Axes: b batch, n positions of one modality, d latent_dim, K candidates.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .configuration_mdm import MDMConfig
from .distributed import first_process_says
from .inputs import EncodedInputs
from .precision import at_least_float32

Draws = dict[str, Tensor]


@dataclass
class Randomness:
    """Every random source of a training step; see [`MDMForJointGeneration.forward`].

    drop_prompt: (b,) bool. times: (b,) by modality. candidate_noise: (b, n, K, d) by modality.
    noise, posterior_noise, decoder_noise: (b, n, d) by modality. keep: share of items that a scan
    reads. self_condition: whether a first estimate is fed back.
    """

    drop_prompt: Tensor | None = None
    times: Draws | None = None
    noise: Draws | None = None
    posterior_noise: Draws | None = None
    decoder_noise: Draws | None = None
    candidate_noise: Draws | None = None
    keep: float | None = None
    self_condition: bool | None = None

    def drawn(self, encoded: EncodedInputs, config: MDMConfig, training: bool) -> "Randomness":
        """Draw what is None: in training as `config` says, else times alone, and noise."""
        drop_prompt, times = self.drop_prompt, self.times or {}
        if drop_prompt is None:
            learns_null = training and config.num_null_tokens
            rate = config.null_prompt_probability if learns_null else 0.0
            drop_prompt = uniform(encoded) < rate
        if encoded.content.keys() - times.keys():
            times = {**draw_times(encoded, config, training), **times}
        times = {g: time.to(at_least_float32(time.dtype)) for g, time in times.items()}
        candidates = dict(self.candidate_noise or {})
        if config.se_candidates == "trajectory":
            for g, part in encoded.content.items():
                if g not in candidates:
                    shape = (-1, -1, config.num_trajectory_candidates, -1)
                    candidates[g] = torch.randn_like(part.latents[:, :, None].expand(shape))
        drawn = replace(
            self,
            drop_prompt=drop_prompt,
            times=times,
            candidate_noise=candidates,
            noise=gaussians(encoded, self.noise),
            posterior_noise=gaussians(encoded, self.posterior_noise),
            decoder_noise=gaussians(encoded, self.decoder_noise),
        )
        if drawn.keep is None:
            drawn.keep = draw_keep(config, training)
        if not config.self_conditioning:
            drawn.self_condition = False
        elif drawn.self_condition is None:
            # A pass more in one process alone would break the order in which split weights gather.
            device = encoded.has_class.device
            drawn.self_condition = training and first_process_says(
                bool(torch.rand(()) < 0.5), device
            )
        return drawn


def uniform(encoded: EncodedInputs) -> Tensor:
    """One number (b,) in [0, 1) for each item."""
    return torch.rand(encoded.has_class.shape, device=encoded.has_class.device)


def gaussians(encoded: EncodedInputs, passed: Draws | None) -> Draws:
    """Standard normal noise (b, n, d) of each modality, where none was passed."""
    passed = passed or {}
    return {g: passed.get(g, torch.randn_like(part.latents)) for g, part in encoded.content.items()}


def draw_times(encoded: EncodedInputs, config: MDMConfig, training: bool) -> Draws:
    """Uniform times (b,); where both modalities are noisy, sometimes t = 1 for one of them.

    That is what joint guidance asks of the network.
    """
    content = encoded.content
    times = {g: uniform(encoded) for g in content}
    if len(times) == 2 and training:
        both = content["image"].noisy.any(-1) & content["text"].noisy.any(-1)
        hidden = both & (uniform(encoded) < config.null_modality_probability)
        image_side = uniform(encoded) < 0.5
        times["image"] = torch.where(hidden & image_side, 1.0, times["image"])
        times["text"] = torch.where(hidden & ~image_side, 1.0, times["text"])
    return times


def draw_keep(config: MDMConfig, training: bool) -> float:
    """One of `selection_keep` in training with selection, else everything."""
    if not (training and config.use_selection and config.mixer == "mamba2"):
        return 1.0
    return float(config.selection_keep[int(torch.randint(len(config.selection_keep), ()))])
