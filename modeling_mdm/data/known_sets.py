# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The two labelled sets that are known by name: scikit-learn's digits and Fashion-MNIST.

Axis legend: item, height, width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modeling_mdm.data.idx import read_idx
from modeling_mdm.data.sources import Source

FASHION_MNIST_ID = "zalando-datasets/fashion_mnist"
FASHION_MNIST_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FASHION_MNIST_HELP = (
    "On Debian, `apt install dataset-fashion-mnist` puts the files into "
    "/usr/share/datasets/fashion-mnist; without data_dir they come from the Hub as "
    f"{FASHION_MNIST_ID!r}."
)
DIGITS_TEST_ITEMS = 360


def read_digits(split: str) -> Source:
    """Load scikit-learn's digits: 1437 for training, 360 for testing, always the same ones."""
    _check_split(split)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The data set 'digits' comes with scikit-learn: `pip install scikit-learn`."
        ) from error
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    chosen = order[:DIGITS_TEST_ITEMS] if split == "test" else order[DIGITS_TEST_ITEMS:]
    images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)  # (item, 8, 8)
    return Source(images, labels=digits.target[chosen], class_names=[str(n) for n in range(10)])


def read_fashion_mnist(folder: Path, split: str) -> Source:
    """Load Fashion-MNIST from a folder with its four IDX files.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if the split does not exist, or its files do not belong together.
    """
    _check_split(split)
    prefix = "t10k" if split == "test" else "train"
    images = read_idx(_idx_path(folder, f"{prefix}-images-idx3-ubyte"))  # (item, 28, 28)
    labels = read_idx(_idx_path(folder, f"{prefix}-labels-idx1-ubyte"))  # (item,)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"data_dir={str(folder)!r}: the {split} split has images of shape {images.shape} and "
            f"labels of shape {labels.shape}, which do not belong together. {FASHION_MNIST_HELP}"
        )
    return Source(images, labels=labels.astype(np.int64), class_names=FASHION_MNIST_NAMES)


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} does not exist in this data set: use 'train' or 'test'.")


def _idx_path(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data_dir={str(folder)!r} is missing: there is no such folder. {FASHION_MNIST_HELP}"
        )
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"data_dir={str(folder)!r} has no file {name}.gz (nor {name}). {FASHION_MNIST_HELP}"
    )
