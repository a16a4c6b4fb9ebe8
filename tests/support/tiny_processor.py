# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A processor of nine words and 8 x 8 pictures, and checks of what it returns."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_mdm.processor.image_processing_mdm import MDMImageProcessor
from modeling_mdm.processor.processing_mdm import MDMProcessor

ROOT = Path(__file__).resolve().parents[2]
PAD, MASK, END = 0, 1, 3
SIDE = 8
LENGTH = 10
WORDS = ["a", " photo", " of", " dress", " gown", " what", " is", " it", " a"]


def make_tokenizer():
    path = ROOT / "processing" / "train_tokenizer.py"
    spec = importlib.util.spec_from_file_location("train_tokenizer", path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    return script.train_tokenizer(["".join(WORDS)] * 3, vocab_size=400)


TOKENIZER = make_tokenizer()


def make_processor(image_processor=MDMImageProcessor, **kwargs):
    images = image_processor(size={"height": SIDE, "width": SIDE}, num_channels=1)
    kwargs = {"patch_size": 4, "max_text_length": LENGTH, "num_classes": 3} | kwargs
    return MDMProcessor(images, TOKENIZER, **kwargs)


def picture(seed=0, shape=(SIDE, SIDE)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def pixels(image):
    return torch.from_numpy(np.asarray(image) / 127.5 - 1).float()


def word(text):
    (token,) = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return token


A, PHOTO, OF, DRESS, GOWN, WHAT, IS, IT, AN = map(word, WORDS)


def check_text(inputs, rows, given, attention=None, turns=None):
    """Compare the text inputs with lists that show every position."""
    assert inputs["input_ids"].tolist() == rows
    assert inputs["text_given"].tolist() == [[bool(g) for g in row] for row in given]
    if attention is None:
        attention = [[1] * len(row) for row in rows]
    assert inputs["attention_mask"].tolist() == attention
    assert inputs["input_ids"].dtype == inputs["attention_mask"].dtype == torch.long
    assert inputs["text_given"].dtype == torch.bool
    if turns is None:
        assert "turn_ids" not in inputs
    else:
        assert inputs["turn_ids"].tolist() == turns
        assert inputs["turn_ids"].dtype == torch.long


def check_images(inputs, shown, given, turns=None, absent=None):
    """Compare the image inputs; `shown` and `given` hold one entry per item, or per item and image.

    None shows zeros; True or False stands for a whole image.
    """
    values = inputs["pixel_values"]
    leading = (len(shown), len(shown[0])) if isinstance(shown[0], list) else (len(shown),)
    assert values.shape == (*leading, 1, SIDE, SIDE)
    assert values.dtype == torch.float32

    def flat(entries):
        return [e for row in entries for e in (row if isinstance(row, list) else [row])]

    for value, image in zip(values.flatten(0, -4), flat(shown), strict=True):
        expected = torch.zeros(SIDE, SIDE) if image is None else pixels(image)
        torch.testing.assert_close(value[0], expected, rtol=0, atol=1e-6)
    assert inputs["image_given"].shape == (*leading, SIDE, SIDE)
    assert inputs["image_given"].dtype == torch.bool
    for value, known in zip(inputs["image_given"].flatten(0, -3), flat(given), strict=True):
        assert (value == known).all()
    if turns is None:
        assert "image_turn_ids" not in inputs
    else:
        assert inputs["image_turn_ids"].tolist() == turns
    if absent is None:
        assert "pixel_attention_mask" not in inputs
    else:
        assert inputs["pixel_attention_mask"].shape == inputs["image_given"].shape
        assert inputs["pixel_attention_mask"].dtype == torch.long
        real = inputs["pixel_attention_mask"].flatten(0, -3)
        for value, is_absent in zip(real, flat(absent), strict=True):
            assert (value == (not is_absent)).all()
