# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reader of IDX files, the format in which MNIST-like data sets are distributed."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzip-compressed or not.

    Returns:
        A uint8 array of the shape that the file's header states.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, truncated, longer than its header says, or not IDX.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such IDX file: {path}")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path} is a truncated or damaged gzip file ({error}): fetch it again."
            ) from error
    if len(content) < 4 or content[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it begins with {content[:4].hex()!r}, "
            "expected 000008 and the number of dimensions."
        )
    num_dimensions = content[3]
    offset = 4 + 4 * num_dimensions
    if num_dimensions == 0 or len(content) < offset:
        raise ValueError(f"{path} is truncated within its header: fetch it again.")
    shape = struct.unpack(f">{num_dimensions}I", content[4:offset])
    if len(content) - offset != math.prod(shape):
        raise ValueError(
            f"{path} is truncated or damaged: its header states the shape {shape}, which is "
            f"{math.prod(shape)} bytes, and {len(content) - offset} follow. Fetch it again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=offset).reshape(shape)
