# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' common tests of models, on MDM."""

import unittest
from unittest import mock

import torch
from tiny_model import LATENT, PATCHES, SIDE, VOCABULARY, WORDS, tiny_config
from upstream import load

from modeling_mdm import MDMForJointGeneration

common = load("test_modeling_common")

FAST = {
    "test_save_load",
    "test_torch_save_load",
    "test_determinism",
    "test_batching_equivalence",
    "test_keep_in_fp32_modules",
    "test_can_init_all_missing_weights",
    "test_init_weights_can_init_buffers",
    "test_all_tensors_are_parameter_or_buffer",
    "test_can_be_initialized_on_meta",
    "test_can_load_with_device_context_manager",
    "test_model_outputs_equivalence",
    "test_load_with_mismatched_shapes",
    "test_can_load_ignoring_mismatched_shapes",
    "test_training_gradient_checkpointing",
    "test_hidden_states_output",
}


class MDMModelTester:
    """Makes a tiny configuration and a batch with every random source of `forward`."""

    def __init__(self, parent, batch_size=2):
        self.parent = parent
        self.batch_size = batch_size
        self.is_training = True
        self.num_hidden_layers = 2
        self.hidden_size = 32
        # class, start and time of text, words, start and time of image, patches
        self.seq_length = 1 + 2 + WORDS + 2 + PATCHES

    def get_config(self):
        return tiny_config()

    def prepare_config_and_inputs_for_common(self):
        batch = self.batch_size
        given = torch.zeros(batch, WORDS, dtype=torch.bool)
        given[:, :2] = True
        lengths = {"text": WORDS, "image": PATCHES}

        def normal():
            return {g: torch.randn(batch, n, LATENT) for g, n in lengths.items()}

        return self.get_config(), {
            "input_ids": torch.randint(4, VOCABULARY, (batch, WORDS)),
            "attention_mask": torch.ones(batch, WORDS, dtype=torch.long),
            "text_given": given,
            "pixel_values": torch.rand(batch, 1, SIDE, SIDE) * 2 - 1,
            "image_given": torch.zeros(batch, SIDE, SIDE, dtype=torch.bool),
            "drop_prompt": torch.zeros(batch, dtype=torch.bool),
            "times": {g: torch.rand(batch) for g in lengths},
            "noise": normal(),
            "posterior_noise": normal(),
            "decoder_noise": normal(),
            "keep": 0.5,  # so that selection has a gradient
            "self_condition": False,
        }


class MDMModelTest(common.ModelTesterMixin, unittest.TestCase):
    """What every model of transformers must do."""

    all_model_classes = (MDMForJointGeneration,)
    # Only the mixer of Table 3 has attention, in a kernel that gives no weights.
    has_attentions = False
    # `generate` is a diffusion loop: their tests of it are about words one after another.
    all_generative_model_classes = ()

    def setUp(self):
        self.model_tester = MDMModelTester(self)

    def test_batching_equivalence(self, *args, **kwargs):
        """Theirs cuts tensors to one row; random sources here are dictionaries of tensors."""
        forward = MDMForJointGeneration.forward

        def of_as_many_rows(model, **inputs):
            rows = len(inputs["input_ids"])
            for name, value in inputs.items():
                if isinstance(value, dict):
                    inputs[name] = {g: tensor[:rows] for g, tensor in value.items()}
            return forward(model, **inputs)

        with mock.patch.object(MDMForJointGeneration, "forward", of_as_many_rows):
            super().test_batching_equivalence(*args, **kwargs)
