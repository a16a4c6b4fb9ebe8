# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What lmms-eval finds by its entry point `lmms_eval.models`: that there is a model `mdm`.

Nothing of lmms-eval is imported before lmms-eval itself asks.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Say where the model is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    folder = "modeling_mdm.evaluation.tables.multimodal_model"
    return ModelManifest("mdm", simple_class_path=f"{folder}.MDMMultimodalModel")
