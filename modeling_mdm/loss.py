# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts of the training loss: Eq. 14-18.

Means over positions of sums over latent_dim, pixels or words. Where several processes train, or a
step takes several batches, the positions are those of all of them.
Axes: b batch, n positions of one modality, d latent_dim, v vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .configuration_mdm import MDMConfig
from .content import MODALITIES, ModalityContent
from .diffusion import NoiseSchedule
from .distributed import num_processes, sum_counts
from .inputs import EncodedInputs, lay_out_content
from .precision import at_least_float32
from .score_entropy import (
    denoising_weight,
    gaussian_score_entropy,
    trajectory_score_entropy,
    vocabulary_score_entropy,
)
from .vae import MDMVAE, kl_divergence

# The means that the loss is made of; `Tallies` keeps what each is over.
MEANS = (
    *("loss_se_text", "loss_se_image", "loss_se_prediction_text", "loss_se_prediction_image"),
    *("loss_rec_text", "loss_rec_image", "loss_kl_text", "loss_kl_image", "loss_mode"),
)


class Tallies:
    """Sum and count of every item for each of `MEANS`, from which any mean of items follows.

    A mean over many batches is not the mean of theirs: some have fewer positions than others.
    """

    def __init__(self, items: Tensor) -> None:
        self.values = torch.zeros(len(items), len(MEANS), 2, device=items.device)  # items: (b,)

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Take in values (b, n) or (b,) where the mask is true, and how many these are."""
        if mask.dim() == 1:
            values, mask = values[:, None], mask[:, None]
        own = torch.stack([torch.where(mask, values.detach(), 0), mask], dim=-1)  # (b, n, 2)
        self.values[:, MEANS.index(name)] += own.float().sum(1)


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


def combine_tallies(config: MDMConfig, tallies: Tensor) -> dict[str, Tensor]:
    """Losses by name, as of one batch that holds all items, from their summed tallies.

    Args:
        tallies: (means, 2), of [`MDMOutput.tallies`] summed over items.
    """
    total, count = tallies.unbind(-1)
    means = dict(zip(MEANS, total / count.clamp(min=1), strict=True))  # of none, 0 / 1
    losses = {name: means[name] for name in MEANS if "_kl_" not in name and "_pred" not in name}
    for name in ("loss_kl", "loss_se_prediction"):
        losses[name] = means[f"{name}_text"] + means[f"{name}_image"]
    losses["loss_se"] = _weighted(config, losses)
    if not config.use_mode_head:
        del losses["loss_mode"]
    return {**losses, "loss": total_loss(config, losses)}


def _weighted(config: MDMConfig, losses: dict[str, Tensor]) -> Tensor:
    """L_se of both modalities."""
    return (
        config.se_weight_image * losses["loss_se_image"]
        + config.se_weight_text * losses["loss_se_text"]
    )


def count_items(config: MDMConfig, content: dict[str, ModalityContent]) -> dict[str, Tensor]:
    """Count what the means of the loss are over: positions by kind and modality, asking items."""
    zero = next(iter(content.values())).valid.new_zeros((), dtype=torch.long)
    counts = {}
    for modality in MODALITIES:
        positions = content.get(modality)
        counts[f"noisy_{modality}"] = zero if positions is None else positions.noisy.sum()
        counts[f"real_{modality}"] = zero if positions is None else positions.valid.sum()
    counts["asking"] = asking(content).sum() if config.use_mode_head else zero
    return counts


def count_items_in_batches(
    config: MDMConfig, batches: list[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Count what the means of a step over several batches, of all processes, are over.

    With this as `num_items_in_batch` of each, their losses and gradients sum to those of one batch
    that holds all items. Every process must call this.

    Args:
        batches: of the inputs of [`MDMForJointGeneration.forward`], by name.
    """
    counts = [count_items(config, lay_out_content(config.patch_size, batch)) for batch in batches]
    return sum_counts({name: sum(each[name] for each in counts) for name in counts[0]})


def asking(content: dict[str, ModalityContent]) -> Tensor:
    """Items that teach the head, (b,) bool: they give something, but nothing of what they write."""
    written, given, in_region = [], [], []
    for positions in content.values():
        known = positions.valid & positions.given
        written.append(positions.noisy.any(-1))
        given.append(known.any(-1))
        in_region.append((known & ~positions.prompt()).any(-1))
    found = (torch.stack(each).any(0) for each in (written, given, in_region))
    is_written, is_given, is_in_region = found
    return is_written & is_given & ~is_in_region


def loss_counts(
    config: MDMConfig, encoded: EncodedInputs, num_items_in_batch: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    """What to divide sums by, so that losses, averaged over processes as gradients are, are means.

    Args:
        num_items_in_batch: of all batches and processes of a step; None counts this batch, and in
            training those of the other processes. Where gradients are off, which may be in one
            process alone, a process counts for itself.

    Returns:
        as `count_items`, by process; 1 instead of 0 where nobody has any.
    """
    counts, processes = num_items_in_batch, num_processes()
    if counts is None:
        counts = count_items(config, encoded.content)
        if torch.is_grad_enabled():
            counts = sum_counts(counts)
        else:
            processes = 1
    return {name: torch.where(n > 0, n / processes, 1) for name, n in counts.items()}


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
    dtype = at_least_float32(torch.promote_types(noise.dtype, prediction.times.dtype))
    shares = torch.arange(1, count + 1, device=noise.device, dtype=dtype) / (count + 1)
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
    counts: dict[str, Tensor],
    tallies: Tallies | None = None,
) -> dict[str, Tensor]:
    """L_se (Eq. 14) of both modalities, weighted, and the fit of the predicted score entropy.

    Args:
        content, predictions: by modality.
        predicted_score_entropy: log(1 + se) of every position (b, n), by modality.
        counts: from `loss_counts`. tallies: what to keep the sums in.

    Returns:
        `loss_se`, `loss_se_image`, `loss_se_text`, `loss_se_prediction`, 0-dim.
    """
    first = next(iter(predicted_score_entropy.values()))
    zero, tallies = first.sum() * 0, tallies or Tallies(first)
    losses = {"loss_se_image": zero, "loss_se_text": zero, "loss_se_prediction": zero}
    for modality, prediction in predictions.items():
        entropy = position_score_entropy(config, prediction).float()
        noisy, count = content[modality].noisy, counts[f"noisy_{modality}"]
        tallies.add(f"loss_se_{modality}", entropy, noisy)
        losses[f"loss_se_{modality}"] = masked_mean(entropy, noisy, count)
        error = (predicted_score_entropy[modality] - torch.log1p(entropy.detach())).square()
        tallies.add(f"loss_se_prediction_{modality}", error, noisy)
        fit = masked_mean(error, noisy, count)
        losses["loss_se_prediction"] = losses["loss_se_prediction"] + fit
    losses["loss_se"] = _weighted(config, losses)
    return losses


def reconstruction_losses(
    vae: MDMVAE,
    encoded: EncodedInputs,
    z_0: dict[str, Tensor],
    noise: dict[str, Tensor],
    latent_noise: float,
    counts: dict[str, Tensor],
    tallies: Tallies | None = None,
) -> dict[str, Tensor]:
    """Reconstruction (Eq. 15, 16) from noised latents and the posterior's KL (Eq. 17).

    Means over all real positions, given or noisy.

    Args:
        z_0: standardised posterior samples (b, n, d) by modality.
        noise: standard normal, the same shapes.
        latent_noise: standard deviation of the noise that the decoder sees.
        counts: from `loss_counts`. tallies: what to keep the sums in.

    Returns:
        `loss_rec_image`, `loss_rec_text`, `loss_kl`, 0-dim.
    """
    zero, tallies = vae.posterior.weight.sum() * 0, tallies or Tallies(encoded.class_labels)
    losses = {"loss_rec_image": zero, "loss_rec_text": zero, "loss_kl": zero}
    for modality, encoding in encoded.modalities.items():
        noised = z_0[modality] + latent_noise * noise[modality].to(z_0[modality].dtype)
        decoded = vae.decode(noised, modality, encoded.grid, encoding.content.valid)
        if modality == "text":
            error = vocabulary_score_entropy(decoded, encoding.target)
        else:
            error = (decoded - encoding.target).float().square().sum(-1)
        valid, count = encoding.content.valid, counts[f"real_{modality}"]
        tallies.add(f"loss_rec_{modality}", error, valid)
        losses[f"loss_rec_{modality}"] = masked_mean(error, valid, count)
        divergence = kl_divergence(
            encoding.posterior_mean.float(), encoding.posterior_logvar.float()
        )
        tallies.add(f"loss_kl_{modality}", divergence, valid)
        mean = masked_mean(divergence, valid, count)
        losses["loss_kl"] = losses["loss_kl"] + mean
    return losses
