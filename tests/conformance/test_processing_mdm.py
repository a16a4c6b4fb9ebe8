# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' common tests of processors, on MDM's."""

import unittest
from unittest import mock

from tiny_digits import make_processor
from tokenizers.processors import TemplateProcessing
from upstream import load

from modeling_mdm import MDMImageProcessor, MDMProcessor

common = load("test_processing_common")


class MDMProcessorTest(common.ProcessorTesterMixin, unittest.TestCase):
    """What every processor of transformers must do."""

    processor_class = MDMProcessor

    @classmethod
    def _setup_image_processor(cls):
        return MDMImageProcessor(size={"height": 8, "width": 8})

    @classmethod
    def _setup_tokenizer(cls):
        # Theirs tokenises what a chat template shows, `<end>` and all, which this has it read as
        # one token. MDM's tokenizers read it as words, so that nobody can type it.
        tokenizer = make_processor().tokenizer
        tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = False
        return tokenizer

    @staticmethod
    def prepare_processor_dict():
        return {"patch_size": 4, "max_text_length": 200}

    def test_subprocessor_defaults_0_text(self):
        """Theirs expects that a tokenizer alone ends a text; at MDM's the processor does."""
        get_component = self.get_component

        def with_an_end(attribute, **kwargs):
            component = get_component(attribute, **kwargs)
            if attribute == "tokenizer":
                component.backend_tokenizer.post_processor = TemplateProcessing(
                    single="$A <end>", special_tokens=[("<end>", component.eos_token_id)]
                )
            return component

        with mock.patch.object(self, "get_component", with_an_end):
            super().test_subprocessor_defaults_0_text()
