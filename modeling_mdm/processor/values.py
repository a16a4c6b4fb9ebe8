# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Single values that a caller may pass: whole numbers, pictures, and lists of anything."""

import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def whole_number(value: Any) -> int | None:
    """Read an integer of Python, NumPy or torch, or None where a value is none; a bool is none."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor) and value.ndim == 0:
        value = value.item()
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def integer(name: str, value: Any, fix: str, least: int = 1) -> int:
    """Read an integer of at least `least`; `fix` is what the message tells the caller to do.

    Raises:
        ValueError: another type, or a smaller number.
    """
    number = whole_number(value)
    if number is None or number < least:
        raise ValueError(f"`{name}` is {value!r:.80}: {fix}")
    return number


def check_length(max_new_tokens: Any) -> int | None:
    """Read the length of a text region; None stays."""
    length = None if max_new_tokens is None else whole_number(max_new_tokens)
    if max_new_tokens is not None and (length is None or length < 1):
        raise ValueError(
            f"Nothing to generate: max_new_tokens={max_new_tokens!r:.80}; give an integer of at "
            "least 1."
        )
    return length


def is_picture(value: Any) -> bool:
    """Whether a value is one picture, or names one; a string may be a text as well."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "UO":  # of names
        return False
    return isinstance(value, Image.Image | str | Path | bytes) or (
        isinstance(value, np.ndarray | torch.Tensor) and value.ndim < 4
    )


def is_list(value: Any) -> bool:
    """Whether a value holds items: a list, a column of a data set, but no string or dictionary."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | set)
