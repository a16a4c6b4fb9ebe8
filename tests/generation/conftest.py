# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the tests of generation share."""

import pytest
import torch
from tiny_digits import make_processor
from tiny_generation import MAX_TEXT_LENGTH
from tiny_model import make_model


@pytest.fixture(scope="module")
def processor():
    processor = make_processor()
    processor.max_text_length = MAX_TEXT_LENGTH
    return processor


@pytest.fixture(scope="module")
def model(processor):
    return make_model(
        torch.float32,
        vocab_size=len(processor.tokenizer),
        num_classes=10,
        max_text_length=MAX_TEXT_LENGTH,
        pad_token_id=processor.tokenizer.pad_token_id,
        mask_token_id=processor.tokenizer.mask_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )


@pytest.fixture(scope="module")
def exact():
    """A tiny model in float64, which needs no processor."""
    return make_model()
