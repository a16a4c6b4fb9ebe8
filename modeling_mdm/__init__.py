# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""MDM, Multi-Modal Diffusion Mamba: images and text through one diffusion process."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_mdm import MDMConfig
from .display.animation import save_trajectory
from .display.streamer import MDMStreamer
from .generation_outputs import MDMGenerateOutput
from .generation_settings import MDMGenerationConfig
from .hub import JOINT_TASK
from .modeling_mdm import MDMForJointGeneration, MDMOutput
from .pipeline_mdm import MDMJointGenerationPipeline
from .processor.image_processing_mdm import MDMImageProcessor
from .processor.image_processing_pil_mdm import MDMImageProcessorPil
from .processor.processing_mdm import MDMProcessor
from .processor.samples import MDMSample
from .scoring import MDMScoreOutput
from .version import __version__

# With the package imported, local folders load through the Auto classes without trust_remote_code.
AutoConfig.register("mdm", MDMConfig)
for auto_model in (AutoModel, AutoModelForMultimodalLM, AutoModelForImageTextToText):
    auto_model.register(MDMConfig, MDMForJointGeneration)
AutoImageProcessor.register(
    MDMConfig,
    image_processor_classes={"torchvision": MDMImageProcessor, "pil": MDMImageProcessorPil},
)
AutoProcessor.register(MDMConfig, MDMProcessor)
PIPELINE_REGISTRY.register_pipeline(
    JOINT_TASK, MDMJointGenerationPipeline, pt_model=AutoModel, type="multimodal"
)

__all__ = [
    "MDMConfig",
    "MDMForJointGeneration",
    "MDMGenerateOutput",
    "MDMGenerationConfig",
    "MDMImageProcessor",
    "MDMImageProcessorPil",
    "MDMJointGenerationPipeline",
    "MDMOutput",
    "MDMProcessor",
    "MDMSample",
    "MDMScoreOutput",
    "MDMStreamer",
    "__version__",
    "save_trajectory",
]
