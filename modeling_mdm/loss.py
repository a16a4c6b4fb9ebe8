# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts of the training loss: Eq. 14-18.

Means over positions of sums over latent_dim, pixels or words. Where several processes train, the
positions are those of all of them.
Axes: b batch, n positions of one modality, d latent_dim, v vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration_mdm import MDMConfig
from .diffusion import NoiseSchedule
from .inputs import EncodedInputs
from .processes import counts_per_process
from .score_entropy import (
    denoising_weight,
    gaussian_score_entropy,
    trajectory_score_entropy,
    vocabulary_score_entropy,
)
from .sequence import ModalityContent
from .vae import MDMVAE, kl_divergence


@dataclass
class Prediction:
    """What a training step knows of one modality when the loss is taken.

    z_0, z_t, estimate: (b, n, d). times: (b,).
    candidate_noise: (b, n, K, d), for `"trajectory"` only.
    logits: (b, n, v) and target: (b, n), for words and codes only.
    """

    z_0: Tensor
    z_t: Tensor
    estimate: Tensor
    times: Tensor
    schedule: NoiseSchedule
    candidate_noise: Tensor | None = None
    logits: Tensor | None = None
    target: Tensor | None = None


def masked_mean(values: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """Sum of values (b, n) where mask (b, n) is true, by a count of such positions."""
    return torch.where(mask, values, 0).sum() / count


def _counts(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Count positions of each modality; see `counts_per_process`."""
    counted = counts_per_process([masks.get(g) for g in ("text", "image")])
    return dict(zip(("text", "image"), counted, strict=True))


def position_score_entropy(config: MDMConfig, prediction: Prediction) -> Tensor:
    """Score entropy of every position: Eq. 4 over the modality's candidates, (b, n).

    Exact: the vocabulary for words, the codebook for codes, former states in closed form for
        pixels.
    `"trajectory"`: K sampled former states.
    """
    if config.se_candidates == "trajectory":
        return _trajectory(prediction)
    if prediction.logits is not None:
        return vocabulary_score_entropy(prediction.logits, prediction.target)
    alpha_bar_t = prediction.schedule.alpha_bar(prediction.times)[:, None]
    weight = denoising_weight(alpha_bar_t, config.denoising_weight_max)
    return gaussian_score_entropy(prediction.estimate, prediction.z_0, weight)


def _trajectory(prediction: Prediction) -> Tensor:
    """The paper's literal candidate set, at former times evenly spaced below t."""
    noise, schedule = prediction.candidate_noise, prediction.schedule
    count = noise.shape[2]
    shares = torch.arange(1, count + 1, device=noise.device, dtype=noise.dtype) / (count + 1)
    alpha_bar_s = schedule.alpha_bar(prediction.times[:, None] * shares)[
        :, None, :, None
    ]  # (b, 1, K, 1)
    alpha_bar_t = schedule.alpha_bar(prediction.times)[:, None, None]
    return trajectory_score_entropy(
        prediction.estimate, prediction.z_0, prediction.z_t, alpha_bar_t, alpha_bar_s, noise
    )


def total_loss(config: MDMConfig, losses: dict[str, Tensor]) -> Tensor:
    """Eq. 18, and the fits of heads that train on detached features alone."""
    return (
        losses["loss_rec_image"]
        + losses["loss_rec_text"]
        + config.kl_weight * losses["loss_kl"]
        + config.se_weight * losses["loss_se"]
        + losses["loss_se_prediction"]
        + losses.get("loss_mode", 0)
    )


def diffusion_losses(
    config: MDMConfig,
    content: dict[str, ModalityContent],
    predictions: dict[str, Prediction],
    predicted_score_entropy: dict[str, Tensor],
) -> dict[str, Tensor]:
    """L_se (Eq. 14) of both modalities, weighted, and the fit of the predicted score entropy.

    Args:
        content, predictions: by modality.
        predicted_score_entropy: log(1 + se) of every position (b, n), by modality.

    Returns:
        `loss_se`, `loss_se_image`, `loss_se_text`, `loss_se_prediction`, 0-dim.
    """
    zero = next(iter(predicted_score_entropy.values())).sum() * 0
    losses = {"loss_se_image": zero, "loss_se_text": zero, "loss_se_prediction": zero}
    counts = _counts({g: content[g].noisy for g in predictions})
    for g, prediction in predictions.items():
        entropy = position_score_entropy(config, prediction).float()
        noisy = content[g].noisy
        losses[f"loss_se_{g}"] = masked_mean(entropy, noisy, counts[g])
        error = (predicted_score_entropy[g] - torch.log1p(entropy.detach())).square()
        losses["loss_se_prediction"] = losses["loss_se_prediction"] + masked_mean(
            error, noisy, counts[g]
        )
    losses["loss_se"] = (
        config.se_weight_image * losses["loss_se_image"]
        + config.se_weight_text * losses["loss_se_text"]
    )
    return losses


def reconstruction_losses(
    vae: MDMVAE,
    encoded: EncodedInputs,
    z_0: dict[str, Tensor],
    noise: dict[str, Tensor],
    latent_noise: float,
) -> dict[str, Tensor]:
    """Reconstruction (Eq. 15, 16) from noised latents and the posterior's KL (Eq. 17).

    Means over all real positions, given or noisy.

    Args:
        z_0: standardised posterior samples (b, n, d) by modality.
        noise: standard normal, the same shapes.
        latent_noise: standard deviation of the noise that the decoder sees.

    Returns:
        `loss_rec_image`, `loss_rec_text`, `loss_kl`, 0-dim.
    """
    zero = vae.posterior.weight.sum() * 0
    losses = {"loss_rec_image": zero, "loss_rec_text": zero, "loss_kl": zero}
    counts = _counts({g: part.content.valid for g, part in encoded.modalities.items()})
    for g, part in encoded.modalities.items():
        decoded = vae.decode(z_0[g] + latent_noise * noise[g].to(z_0[g].dtype), g)
        if g == "text":
            error = F.cross_entropy(decoded.transpose(1, 2).float(), part.target, reduction="none")
        else:
            error = (decoded - part.target).float().square().sum(-1)
        valid = part.content.valid
        losses[f"loss_rec_{g}"] = masked_mean(error, valid, counts[g])
        divergence = kl_divergence(part.posterior_mean.float(), part.posterior_logvar.float())
        losses["loss_kl"] = losses["loss_kl"] + masked_mean(divergence, valid, counts[g])
    return losses
