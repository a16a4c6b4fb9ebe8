# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""MDM, Multi-Modal Diffusion Mamba: images and text through one diffusion process."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

from .configuration_mdm import MDMConfig
from .generation_mdm import MDMGenerateOutput, MDMGenerationConfig
from .image_processing_mdm import MDMImageProcessor
from .image_processing_pil_mdm import MDMImageProcessorPil
from .modeling_mdm import MDMForJointGeneration, MDMOutput
from .processing_mdm import MDMProcessor
from .samples import MDMSample
from .version import __version__

# With the package imported, local folders load through the Auto classes without trust_remote_code.
AutoConfig.register("mdm", MDMConfig)
AutoModel.register(MDMConfig, MDMForJointGeneration)
AutoImageProcessor.register(
    MDMConfig,
    image_processor_classes={"torchvision": MDMImageProcessor, "pil": MDMImageProcessorPil},
)
AutoProcessor.register(MDMConfig, MDMProcessor)

__all__ = [
    "MDMConfig",
    "MDMForJointGeneration",
    "MDMGenerateOutput",
    "MDMGenerationConfig",
    "MDMImageProcessor",
    "MDMImageProcessorPil",
    "MDMOutput",
    "MDMProcessor",
    "MDMSample",
    "__version__",
]
