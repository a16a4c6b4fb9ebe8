# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The optional VQ-VAE in front of the image encoder (Fig. 2): pixels to codes and back, frozen.

Axes: b pictures, e width of a code vector.
"""

import importlib
import json
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

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
