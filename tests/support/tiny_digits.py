# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A processor and a model configuration for the 8 x 8 digits, small enough to train in a test."""

from pathlib import Path

from mdm_cli.endings import load_file as load_script
from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.processor.image_processing_mdm import MDMImageProcessor
from modeling_mdm.processor.processing_mdm import MDMProcessor

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = ROOT / "examples" / "captions" / "digits.json"
MAX_TEXT_LENGTH = 10


def make_processor() -> MDMProcessor:
    """Train a tokenizer on the captions of the digits."""
    script = load_script(ROOT / "processing" / "train_tokenizer.py")
    texts = CaptionTable.from_json(CAPTIONS).all_captions()
    return MDMProcessor(
        MDMImageProcessor(size={"height": 8, "width": 8}, num_channels=1),
        script.train_tokenizer(texts, vocab_size=400),
        patch_size=4,
        max_text_length=MAX_TEXT_LENGTH,
        num_classes=10,
    )


def make_config(vocab_size: int) -> MDMConfig:
    """Configure a model of a few thousand weights."""
    return MDMConfig(
        vocab_size=vocab_size,
        max_text_length=MAX_TEXT_LENGTH,
        image_size=8,
        patch_size=4,
        num_classes=10,
        latent_dim=4,
        vae_hidden_size=16,
        vae_num_layers=1,
        hidden_size=16,
        num_hidden_layers=1,
        state_size=8,
        head_dim=16,
    )


def save_config_folder(folder: Path) -> None:
    """Write what `--config` of the training script names: a configuration and a processor."""
    processor = make_processor()
    processor.save_pretrained(folder)
    make_config(len(processor.tokenizer)).save_pretrained(folder)
