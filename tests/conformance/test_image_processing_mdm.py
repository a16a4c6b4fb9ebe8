# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' common tests of image processors, on both back-ends of MDM's."""

import unittest
from unittest import mock

from upstream import load

from modeling_mdm import MDMImageProcessor, MDMImageProcessorPil

common = load("test_image_processing_common")


class MDMImageProcessingTester(common.ImageProcessingTester):
    """Makes pictures of many sizes."""

    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"height": 28, "width": 28})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        return {"torchvision": MDMImageProcessor, "pil": MDMImageProcessorPil}

    def prepare_image_processor_dict(self):
        # Theirs is the number of channels of the pictures that it makes, ours that of the output.
        settings = super().prepare_image_processor_dict()
        return {name: value for name, value in settings.items() if name != "num_channels"}


class MDMImageProcessingTest(common.ImageProcessingTestMixin, unittest.TestCase):
    """What every image processor of transformers must do."""

    image_processor_tester_class = MDMImageProcessingTester

    def test_pil_can_run_without_torchvision(self):
        """Theirs starts a process in which transformers knows the classes that it tests."""
        run = common.subprocess.run

        def with_the_package(command, **kwargs):
            python, option, script, *rest = command
            script = script.replace("\nfrom", "\nimport modeling_mdm\nfrom", 1)
            return run([python, option, script, *rest], **kwargs)

        with mock.patch.object(common.subprocess, "run", with_the_package):
            super().test_pil_can_run_without_torchvision()
