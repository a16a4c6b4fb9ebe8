# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST's files with pictures of a test's own."""

import gzip
import struct


def write_idx(folder, prefix, pixels, labels):
    """Write a split, "train" or "t10k": uint8 pixels (pictures, 28, 28), and their labels."""
    folder.mkdir(exist_ok=True)
    for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
        path = folder / f"{prefix}-{kind}-ubyte.gz"
        path.write_bytes(gzip.compress(head + array.astype("uint8").tobytes()))
