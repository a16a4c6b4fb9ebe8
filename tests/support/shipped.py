# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that is shipped, with its processor, and the pictures beside it."""

from pathlib import Path

from modeling_mdm import MDMForJointGeneration, MDMProcessor

ROOT = Path(__file__).resolve().parents[2]


PICTURES = ROOT / "examples" / "pictures" / "fashion_mnist"


def load_shipped():
    path = ROOT / "examples" / "checkpoints" / "mdm-fashion"
    return MDMForJointGeneration.from_pretrained(path).eval(), MDMProcessor.from_pretrained(path)
