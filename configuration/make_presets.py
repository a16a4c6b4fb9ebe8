# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Write the ready configurations beside this file, for `MDMConfig.from_pretrained`.

python configuration/make_presets.py
"""

from pathlib import Path
from typing import Any

from modeling_mdm import MDMConfig

PAPER: dict[str, Any] = {
    "vocab_size": 32000,
    "max_text_length": 256,
    "image_size": 256,
    "patch_size": 16,
    "num_channels": 3,
    "num_classes": 1000,
    "vq_config": {"model_type": "janus_vqgan", "num_patches": 16},
    "latent_dim": 64,
    "vae_hidden_size": 1024,
    "hidden_size": 2048,
    "num_hidden_layers": 49,
    "state_size": 128,
    "num_null_tokens": 8,
}

PRESETS: dict[str, dict[str, Any]] = {
    "mdm-digits": {
        "vocab_size": 298,
        "max_text_length": 12,
        "image_size": 8,
        "patch_size": 2,
        "num_classes": 10,
        "latent_dim": 8,
        "vae_hidden_size": 64,
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "state_size": 16,
        "head_dim": 32,
    },
    "mdm-fashion": {
        "vocab_size": 305,
        "max_text_length": 12,
        "image_size": 28,
        "patch_size": 7,
        "num_classes": 10,
        "latent_dim": 24,
        "vae_hidden_size": 192,
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "state_size": 32,
        "scan_mode": "cyclic",
        "selection_keep": (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25),
        "se_weight_text": 4.0,
    },
    # Patch and width: docs/log/2026-11-26-colour-and-open-words.md.
    "mdm-emoji": {
        "vocab_size": 2000,
        "max_text_length": 24,
        "image_size": 32,
        "patch_size": 8,
        "num_channels": 3,
        "latent_dim": 64,
        "vae_hidden_size": 192,
        "image_decoder_layers": 2,
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "state_size": 32,
        "scan_mode": "cyclic",
        "selection_keep": (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25),
        "use_mode_head": True,
        # Both have words told sooner and more: docs/log, 2026-11-27.
        "image_schedule": "tan",
        "pooled_conditioning": True,
        "place_conditioning": True,  # for edits
        "se_weight_text": 4.0,
    },
    # The same for a GPU: larger pictures, a wider and deeper decoder.
    "mdm-emoji-64": {
        "vocab_size": 2000,
        "max_text_length": 24,
        "image_size": 64,
        "patch_size": 8,
        "num_channels": 3,
        "latent_dim": 64,
        "vae_hidden_size": 384,
        "image_decoder_layers": 2,
        "hidden_size": 384,
        "num_hidden_layers": 16,
        "state_size": 64,
        "scan_mode": "cyclic",
        "selection_keep": (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25),
        "use_mode_head": True,
        # Both have words told sooner and more: docs/log, 2026-11-27.
        "image_schedule": "tan",
        "pooled_conditioning": True,
        "place_conditioning": True,  # for edits
        "se_weight_text": 4.0,
    },
    # A size for one GPU, in front of the same VQ-VAE; the paper has none so small.
    "mdm-300m": {
        **PAPER,
        "scan_projections": "shared",
        "vae_hidden_size": 768,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
    },
    # The paper's decoder (Sec. 5.1): 49 blocks of width 2048 on VQ-coded pictures of 256 x 256. One
    # set of projections for all scans gives 1.3 billion parameters, six sets the paper's 7.
    "mdm-1b": {**PAPER, "scan_projections": "shared"},
    "mdm-7b": {**PAPER, "scan_projections": "separate"},
}


def main() -> None:
    """Write every preset."""
    for name, fields in PRESETS.items():
        folder = Path(__file__).parent / name
        folder.mkdir(exist_ok=True)
        # Not `save_pretrained`, which would put the code beside it.
        MDMConfig(**fields).to_json_file(folder / "config.json")
        print(f"{folder / 'config.json'} written")


if __name__ == "__main__":
    main()
