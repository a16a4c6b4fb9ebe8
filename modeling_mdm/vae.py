# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The unified VAE (Sec. 4.1, 4.2.2): one encoder and one decoder for patches and words.

No position sees another here: a mixing encoder would leak noisy content into given latents.
Axes: b batch, n positions, d latent_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_mdm import MDMConfig
from .norms import RMSNorm
from .precision import KeepsPrecision, at_least_float32
from .processes import num_processes, sum_over_processes

Moments = tuple[Tensor, Tensor, Tensor]  # how many latents, their mean and variance (d,)


def patchify(pixel_values: Tensor, patch_size: int) -> Tensor:
    """Cut pictures (b, channels, height, width): (b, rows * columns, patch_size^2 * channels)."""
    batch, channels, height, width = pixel_values.shape
    rows, columns = height // patch_size, width // patch_size
    patches = pixel_values.reshape(batch, channels, rows, patch_size, columns, patch_size)
    values = patch_size**2 * channels
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, values)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Put patches together again, the inverse of `patchify`, for a grid of (rows, columns)."""
    batch, (rows, columns) = patches.shape[0], grid
    channels = patches.shape[-1] // patch_size**2
    pixels = patches.reshape(batch, rows, columns, patch_size, patch_size, channels)
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(
        batch, channels, rows * patch_size, columns * patch_size
    )


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL of N(mean, exp(logvar)) from N(0, I), summed over the last axis: Eq. 17."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(-1)


class ResidualMLP(nn.Module):
    """x + MLP(norm(x)) at each position alone."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.norm = RMSNorm(size, eps=epsilon)
        self.up_proj = nn.Linear(size, 2 * size)
        self.down_proj = nn.Linear(2 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        return x + self.down_proj(F.silu(self.up_proj(self.norm(x))))


class LatentStatistics(KeepsPrecision, nn.Module):
    """Running mean and variance of one modality's latents, by dimension, to standardise them.

    A schedule then means the same throughout training. The first updates are plain averages, later
    ones exponential.
    """

    precise = ("mean", "variance")

    def __init__(self, latent_dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        dtype = at_least_float32(torch.get_default_dtype())
        self.register_buffer("mean", torch.zeros(latent_dim, dtype=dtype))
        self.register_buffer("variance", torch.ones(latent_dim, dtype=dtype))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._waiting: Moments | None = None  # of a step's earlier parts

    @torch.no_grad()
    def update(
        self, latents: Tensor | None, valid: Tensor | None, total: Tensor | None = None
    ) -> None:
        """Take in the latents (b, n, d) of all processes, padding excluded by valid (b, n).

        None where this process has none; where there are several, each must call this.

        Args:
            total: how many latents the whole step has, if these may be part of them: the update
                waits for the last.
        """
        if latents is None:
            count, mean = torch.zeros_like(self.updates), torch.zeros_like(self.mean)
            variance = torch.zeros_like(self.mean)
        else:
            weight, count = valid[..., None].to(self.mean.dtype), valid.sum()
            latents = latents.to(self.mean.dtype)
            mean = (latents * weight).sum((0, 1)) / count.clamp(min=1)
            variance = ((latents - mean).square() * weight).sum((0, 1)) / count.clamp(min=1)
        if num_processes() > 1:
            count, mean, variance = _pooled_moments(count, mean, variance)
        if total is not None:
            count, mean, variance = self._wait_for_all((count, mean, variance), total)
        rate = torch.clamp(1 / (self.updates + 1), min=self.momentum) * (count > 1)
        # New tensors: what a compiled step keeps for its gradients may be the old ones themselves.
        self.mean = self.mean.lerp(mean, rate.to(mean.dtype))
        self.variance = self.variance.lerp(variance, rate.to(mean.dtype))
        self.updates = self.updates + (count > 1).long()

    def _wait_for_all(self, moments: Moments, total: Tensor) -> Moments:
        """Keep moments until they are those of `total` latents: then of all of them, else of 0."""
        if self._waiting is not None:
            count, mean, variance = (value.to(self.mean.device) for value in self._waiting)
            moments = _joined_moments((count, mean, variance), moments)
        count, mean, variance = moments
        whole = count >= total
        self._waiting = (count * ~whole, mean * ~whole, variance * ~whole)
        return count * whole, mean, variance

    @property
    def scale(self) -> Tensor:
        """What standardising multiplies by, (d,)."""
        return torch.rsqrt(self.variance + 1e-6)

    def standardize(self, latents: Tensor) -> Tensor:
        """Shift and scale latents (..., d) to mean 0, variance 1."""
        return (latents - self.mean) * self.scale

    def forward(self, latents: Tensor) -> Tensor:
        """Standardise latents, by a call, so that offloading can bring the statistics back."""
        return self.standardize(latents)


def _joined_moments(some: Moments, others: Moments) -> Moments:
    """Count, mean and variance of two sets of latents together."""
    (count, mean, variance), (added, other, spread) = some, others
    total, shift = (count + added).clamp(min=1), other - mean
    squares = variance * count + spread * added + shift.square() * count * added / total
    return count + added, mean + shift * added / total, squares / total


def _pooled_moments(count: Tensor, mean: Tensor, variance: Tensor) -> Moments:
    """Count, mean and variance of all processes' latents from those of each."""
    squares = variance.double() + mean.double().square()
    moments = torch.stack([torch.ones_like(squares), mean.double(), squares]) * count
    total, first, second = sum_over_processes(moments)  # (d,)
    pooled = first / total.clamp(min=1)
    spread = (second / total.clamp(min=1) - pooled.square()).clamp(min=0)
    return total[0], pooled.to(mean.dtype), spread.to(mean.dtype)


class MDMVAE(nn.Module):
    """Encodes words and patches into latents of one width and decodes them, with shared trunks."""

    no_weight_decay = ("embed_tokens",)  # a rare word's would go to 0 between its appearances

    def __init__(self, config: MDMConfig, patch_values: int | None = None) -> None:
        super().__init__()
        self.config = config
        size, epsilon = config.vae_hidden_size, config.layer_norm_epsilon
        if patch_values is None:
            patch_values = config.patch_size**2 * config.num_channels
        self.embed_tokens = nn.Embedding(config.vocab_size, size)
        self.patch_embedding = nn.Linear(patch_values, size)
        self.encoder = nn.Sequential(
            *(ResidualMLP(size, epsilon) for _ in range(config.vae_num_layers))
        )
        self.posterior = nn.Linear(size, 2 * config.latent_dim)
        self.latent_embedding = nn.Linear(config.latent_dim, size)
        self.decoder = nn.Sequential(
            *(ResidualMLP(size, epsilon) for _ in range(config.vae_num_layers))
        )
        self.patch_head = nn.Linear(size, patch_values)
        self.word_head = nn.Linear(size, config.vocab_size)
        self.statistics = nn.ModuleDict(
            {
                g: LatentStatistics(config.latent_dim, config.latent_momentum)
                for g in ("image", "text")
            }
        )

    def learns(self, modality: str) -> bool:
        """Whether anything is trained that gives a modality its latents."""
        embedding = self.embed_tokens if modality == "text" else self.patch_embedding
        parts = (embedding, self.encoder, self.posterior)
        return any(weight.requires_grad for part in parts for weight in part.parameters())

    def encode(self, content: Tensor, modality: str) -> tuple[Tensor, Tensor]:
        """Give the posterior of every position.

        Args:
            content: word ids (..., n) for `"text"`, patches (..., n, values) for `"image"`.

        Returns:
            posterior_mean and posterior_logvar, (..., n, d), not standardised, in float32 at least.
        """
        embedded = (
            self.embed_tokens(content) if modality == "text" else self.patch_embedding(content)
        )
        posterior = self.posterior(self.encoder(embedded))
        mean, logvar = posterior.to(at_least_float32(posterior.dtype)).chunk(2, dim=-1)
        return mean, logvar.clamp(-20, 10)

    def decode(self, latents: Tensor, modality: str) -> Tensor:
        """Decode standardised latents (..., n, d) to word logits or patches (..., n, values)."""
        features = self.decoder(self.latent_embedding(latents))
        return self.word_head(features) if modality == "text" else self.patch_head(features)

    def code_latents(self, codebook: Tensor) -> Tensor:
        """y_v of every code of a VQ-VAE (v, e): standardised posterior means, (v, d)."""
        mean, _ = self.encode(codebook, "image")
        return self.statistics["image"](mean)

    def word_latents(self) -> Tensor:
        """y_v of every word v: standardised posterior means, (vocab, d)."""
        # Not the device of a weight, which may be offloaded.
        device = self.statistics["text"].mean.device
        mean, _ = self.encode(torch.arange(self.config.vocab_size, device=device), "text")
        return self.statistics["text"](mean)

    def forward(self, content: Tensor, modality: str) -> Tensor:
        """Encode to standardised posterior means: (..., n, d)."""
        mean, _ = self.encode(content, modality)
        return self.statistics[modality](mean)
