# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The unified VAE (Sec. 4.1, 4.2.2): one encoder and one decoder for patches and words.

The encoder sees each position alone: what is noisy would leak into given latents. So does the
decoder, but that it may look at the patches around one, in the same picture, to assemble them.
Axes: b batch, n positions, d latent_dim, m pictures an item.
"""

import importlib
import json
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .configuration_mdm import MDMConfig
from .decoder import ZeroLinear
from .distributed import num_processes, sum_over_processes
from .precision import KeepsPrecision, RMSNorm, at_least_float32

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


class PatchAssembly(nn.Module):
    """x + what the patches around it say, a 3 x 3 convolution over the grid of one picture.

    It starts as x alone. Beyond the picture, and where there is no patch, it sees zeros.
    """

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.norm = RMSNorm(size, eps=epsilon)
        self.convolution = nn.Conv2d(size, size, 3, padding=1)
        self.out_proj = ZeroLinear(size, size)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Of x (pictures, rows, columns, size); valid (pictures, rows, columns, 1): it is there."""
        shown = torch.where(valid, self.norm(x), 0).permute(0, 3, 1, 2)  # (pictures, size, ...)
        around = self.convolution(shown).permute(0, 2, 3, 1)
        added: Tensor = self.out_proj(F.silu(around))
        return x + added


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
        # CODEPATH: old checkpoints and small presets decode every patch alone.
        self.assembly = nn.ModuleList(
            PatchAssembly(size, epsilon) for _ in range(config.image_decoder_layers)
        )
        self.patch_head = nn.Linear(size, patch_values)
        self.word_head = nn.Linear(size, config.vocab_size)
        self.statistics = nn.ModuleDict(
            {
                modality: LatentStatistics(config.latent_dim, config.latent_momentum)
                for modality in ("image", "text")
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

    def decode(
        self,
        latents: Tensor,
        modality: str,
        grid: tuple[int, int, int] | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Decode standardised latents (..., n, d) to word logits or patches (..., n, values).

        Args:
            latents: of `"text"` or `"image"`.
            grid: pictures an item, rows and columns of the patches, for latents (b, m * rows *
                columns, d). Patches are assembled only where it is known.
            valid: which patches there are, (b, n) bool; None = all.

        Raises:
            ValueError: patches without their grid, where the decoder assembles them.
        """
        features = self.decoder(self.latent_embedding(latents))
        if modality == "text":
            return self.word_head(features)
        if self.assembly:
            features = self._assemble(features, grid, valid)
        return self.patch_head(features)

    def _assemble(
        self, features: Tensor, grid: tuple[int, int, int] | None, valid: Tensor | None
    ) -> Tensor:
        if grid is None:
            raise ValueError(
                "`grid` is None, but this decoder assembles patches: pass (pictures, rows, "
                "columns)."
            )
        if valid is None:
            valid = torch.ones(features.shape[:-1], dtype=torch.bool, device=features.device)
        rows, columns = grid[1:]
        pictures = features.reshape(-1, rows, columns, features.shape[-1])
        shown = valid.reshape(-1, rows, columns, 1)
        for layer in self.assembly:
            pictures = layer(pictures, shown)
        return pictures.view_as(features)

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


# Comes with transformers. A plain import would make it a requirement of every saved model.
safe_open = importlib.import_module("safetensors").safe_open

# model_type of `vq_config`: where transformers keeps the class.
VQ_MODELS = {
    "janus_vqgan": ("transformers.models.janus.modeling_janus", "JanusVQVAE"),
    "emu3_vqgan": ("transformers.models.emu3.modeling_emu3", "Emu3VQVAE"),
}


class VQFrontEnd(nn.Module):
    """One of transformers' VQ-VAEs: every patch of a picture becomes a code of its codebook.

    It never learns, so it must have been trained before: `load_pretrained` takes its weights from
    elsewhere, and a checkpoint of the whole model brings them along. Until then the model refuses
    to compute, unless `allow_untrained` is called.

    Args:
        vq_config: its configuration as a dictionary with `model_type`.
        patch_size: side in pixels of what one code stands for; must be the VQ-VAE's own.

    Raises:
        ValueError: a VQ-VAE that is unknown or has no decoder, or another patch size than
            `patch_size`.
    """

    def __init__(self, vq_config: dict[str, Any], patch_size: int) -> None:
        super().__init__()
        model_type = vq_config.get("model_type")
        if model_type not in VQ_MODELS:
            raise ValueError(
                f"`vq_config['model_type']` is {model_type!r}: choose one of "
                f"{', '.join(VQ_MODELS)}. (transformers' Chameleon VQ-VAE has no decoder, so it "
                "cannot write pictures.)"
            )
        config = AutoConfig.for_model(**vq_config)
        factor = 2 ** (len(config.channel_multiplier) - 1)
        if factor != patch_size:
            raise ValueError(
                f"`patch_size` is {patch_size}, but this VQ-VAE has patches of {factor}: use that."
            )
        module, name = VQ_MODELS[model_type]
        self.model_type = model_type
        self.model = getattr(importlib.import_module(module), name)._from_config(config)
        self.requires_grad_(False)
        # Saved with the weights, so that it is known of them wherever they go.
        self.register_buffer("loaded", torch.zeros((), dtype=torch.long))
        self._was_loaded = False  # so that the device is not asked at every step

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are trained ones, or may be random; on the meta device, True."""
        if not self._was_loaded and not self.loaded.is_meta:
            self._was_loaded = bool(self.loaded)
        return self._was_loaded or self.loaded.is_meta

    def require_loaded(self) -> None:
        """Refuse to go on with random codes.

        Raises:
            ValueError: the weights were never loaded.
        """
        if not self.is_loaded:
            raise ValueError(
                f"the VQ-VAE of `vq_config` ({self.model_type}) was never loaded: its codes are "
                "random, and it does not learn. Call model.vq.load_pretrained(NAME) with a folder "
                "or Hub id of a trained one, or of a whole model that has it (in training: "
                "--vq_model NAME); or model.vq.allow_untrained(), if random codes are meant."
            )

    def allow_untrained(self) -> None:
        """Accept the weights as they are, random ones too: for tests."""
        self.loaded = torch.ones((), dtype=torch.long, device=self.codebook.device)

    @property
    def codebook(self) -> Tensor:
        """All code vectors, (codes, e)."""
        return self.model.quantize.embedding.weight

    def load_pretrained(self, name_or_path: str, **kwargs: Any) -> None:
        """Take the weights of a trained VQ-VAE of this class, by itself or in a whole model.

        Args:
            name_or_path: a folder or an id on the Hub with safetensors, in one file or several: of
                the VQ-VAE, or of a model that has it, such as Janus or Emu3.
            **kwargs: where and how to look on the Hub: `revision`, `token`, `cache_dir`,
                `subfolder`, `local_files_only`.

        Raises:
            ValueError: there are no safetensors, or weights are missing or of another shape; names
                them.
        """
        own, files = self.model.state_dict(), _list_weights(name_or_path, **kwargs)
        prefix = _shared_prefix(own, files)
        shapes = {prefix + name: value.shape for name, value in own.items()}
        if missing := [name for name in shapes if name not in files]:
            raise ValueError(
                f"{name_or_path!r} lacks {len(missing)} of the {len(shapes)} weights of the VQ-VAE "
                f"of `vq_config` ({self.model_type}), such as {', '.join(missing[:3])}: name a "
                "folder or Hub id of this kind and size, in transformers' format."
            )
        found, misshapen = {}, []
        for file in sorted({files[name] for name in shapes}):
            with safe_open(cached_file(name_or_path, file, **kwargs), framework="pt") as tensors:
                for name in (name for name in shapes if files[name] == file):
                    value = found[name.removeprefix(prefix)] = tensors.get_tensor(name)
                    if value.shape != shapes[name]:
                        sizes = f"{tuple(value.shape)} instead of {tuple(shapes[name])}"
                        misshapen.append(f"{name} ({sizes})")
        if misshapen:
            raise ValueError(
                f"{name_or_path!r} holds another VQ-VAE than `vq_config` describes: "
                f"{', '.join(misshapen[:3])}. Take its `vq_config`, or name another."
            )
        self.model.load_state_dict(found, assign=self.codebook.is_meta)
        self.requires_grad_(False)
        self.allow_untrained()

    def train(self, mode: bool = True) -> "VQFrontEnd":
        """Stay in evaluation mode: the VQ-VAE is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode pictures (b, 3, height, width) in [-1, 1] to codes (b, rows * columns)."""
        pixel_values = pixel_values.to(self.codebook.dtype)
        if self.model_type == "emu3_vqgan":
            sizes = torch.tensor([pixel_values.shape[-2:]] * len(pixel_values))
            codes = torch.stack(
                self.model.encode(pixel_values, sizes, return_dict=True).image_tokens
            )
        else:
            codes = self.model.encode(pixel_values, return_dict=True).image_tokens
        return codes.reshape(pixel_values.shape[0], -1)

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode codes (b, rows * columns) of a grid to pictures (b, 3, height, width)."""
        if self.model_type == "emu3_vqgan":
            return self.model.decode(codes.view(-1, *grid))
        self.model.quantize.quant_state_dims = list(
            grid
        )  # so that any grid decodes, not only the trained one
        return self.model.decode(codes)


def _list_weights(name_or_path: str, **kwargs: Any) -> dict[str, str]:
    """Name every weight of a folder or a repository of the Hub, and the file that holds it."""
    found = {"_raise_exceptions_for_missing_entries": False, **kwargs}
    if (single := cached_file(name_or_path, SAFE_WEIGHTS_NAME, **found)) is not None:
        with safe_open(single, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), SAFE_WEIGHTS_NAME)
    if (index := cached_file(name_or_path, SAFE_WEIGHTS_INDEX_NAME, **found)) is None:
        raise ValueError(
            f"{name_or_path!r} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}: name "
            "a folder or Hub id with weights in safetensors."
        )
    with open(index, encoding="utf-8") as file:
        weight_map: dict[str, str] = json.load(file)["weight_map"]
    return weight_map


def _shared_prefix(own: Collection[str], names: Collection[str]) -> str:
    """Say what stands before most of our own names among those of a file, as `model.vqmodel.`."""
    prefixes = Counter(
        name.removesuffix(key)
        for key in own
        for name in names
        if name == key or name.endswith(f".{key}")
    )
    return max(prefixes, key=lambda prefix: (prefixes[prefix], -len(prefix)), default="")
