# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The optional VQ-VAE in front of the image encoder (Fig. 2): pixels to codes and back, frozen.

Axes: b pictures, e width of a code vector.
"""

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

# model_type of `vq_config`: where transformers keeps the class.
VQ_MODELS = {
    "janus_vqgan": ("transformers.models.janus.modeling_janus", "JanusVQVAE"),
    "emu3_vqgan": ("transformers.models.emu3.modeling_emu3", "Emu3VQVAE"),
}


class VQFrontEnd(nn.Module):
    """One of transformers' VQ-VAEs: every patch of a picture becomes a code of its codebook.

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

    @property
    def codebook(self) -> Tensor:
        """All code vectors, (codes, e)."""
        return self.model.quantize.embedding.weight

    def load_pretrained(self, name_or_path: str, **kwargs: Any) -> None:
        """Take the weights of a trained VQ-VAE of this class from a folder or the Hub."""
        trained = type(self.model).from_pretrained(name_or_path, **kwargs)
        self.model.load_state_dict(trained.state_dict())

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
