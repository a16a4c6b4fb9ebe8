# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the processor share."""

import pytest
from tiny_processor import make_processor

from modeling_mdm.processor.image_processing_mdm import MDMImageProcessor
from modeling_mdm.processor.image_processing_pil_mdm import MDMImageProcessorPil


@pytest.fixture(params=[MDMImageProcessor, MDMImageProcessorPil], ids=["torchvision", "pil"])
def processor(request):
    return make_processor(request.param)
