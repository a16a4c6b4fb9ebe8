# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""MDM, Multi-Modal Diffusion Mamba: images and text through one diffusion process."""

from .configuration_mdm import MDMConfig
from .generation_mdm import MDMGenerateOutput, MDMGenerationConfig
from .modeling_mdm import MDMForJointGeneration, MDMOutput
from .processing_mdm import MDMProcessor
from .samples import MDMSample
from .version import __version__

__all__ = [
    "MDMConfig",
    "MDMForJointGeneration",
    "MDMGenerateOutput",
    "MDMGenerationConfig",
    "MDMOutput",
    "MDMProcessor",
    "MDMSample",
    "__version__",
]
