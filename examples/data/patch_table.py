# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Say what a width of latents leaves of pictures, before a model of it is trained.

The best linear code of a patch in so many numbers (PCA, fitted to patches of the training split)
is measured on pictures of the test split: the mean squared error in [-1, 1]. A VAE may do better,
but not by much, and no sample is better than its VAE. Beside it stand the positions of a picture,
which a step takes time for. The table of the emoji world was made by::

    python examples/data/patch_table.py --dataset runs/emoji-64 --image_size 32

Axis legend: picture, patch, channel, height, width, number (of a patch's pixels and channels).
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="train")

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from modeling_mdm.data.pictures import PictureDataset, load_training_data
from modeling_mdm.processor.image_processing_mdm import MDMImageProcessor
from modeling_mdm.training.command_line import pairs, read_command_line

AT_ONCE = 250


@dataclass
class TableArguments:
    """Which pictures, and which patches and widths."""

    dataset: str = field(metadata={"help": "As `mdm train --dataset` takes it."})
    data_dir: str | None = field(
        default=None, metadata={"help": "For fashion_mnist: the folder with its four IDX files."}
    )
    columns: list[str] | None = field(
        default=None, metadata={"help": "Columns by role, as role=column."}
    )
    test_split: str = field(default="test", metadata={"help": "The split that is measured."})
    image_size: int = field(default=32, metadata={"help": "Side of the pictures, in pixels."})
    num_channels: int = field(default=3, metadata={"help": "1 for grey pictures, 3 for RGB."})
    patch_sizes: list[int] = field(
        default_factory=lambda: [4, 8], metadata={"help": "Sides of patches, in pixels."}
    )
    widths: list[int] = field(
        default_factory=lambda: [16, 24, 32, 48, 64, 96],
        metadata={"help": "Numbers that a patch is kept in."},
    )
    limit: int = field(default=4000, metadata={"help": "Pictures of each split, spread over it."})

    def __post_init__(self) -> None:
        for size in self.patch_sizes:
            if size < 1 or self.image_size % size:
                raise ValueError(
                    f"patch_sizes holds {size}, which does not divide image_size={self.image_size}."
                )
        if min(self.limit, *self.widths) < 1:
            raise ValueError(f"limit={self.limit} and widths={self.widths} must be >= 1.")


@dataclass(frozen=True)
class Error:
    """What is lost of a picture; `positions` are those of its patches."""

    patch_size: int
    positions: int
    width: int
    squared: float  # mean over all pixels and channels, in [-1, 1]


def patches_of(pixels: Tensor, size: int) -> Tensor:
    """Cut pictures (picture, channel, height, width) into rows of numbers (patch, number)."""
    cut = pixels.unfold(2, size, size).unfold(3, size, size)  # (p, c, rows, columns, size, size)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)


class Moments:
    """Sums from which the mean and the covariance of patches are made."""

    def __init__(self) -> None:
        self.count, self.sum, self.products = 0, torch.zeros(()), torch.zeros(())

    def add(self, patches: Tensor) -> None:
        """Note patches (patch, number)."""
        self.count += len(patches)
        self.sum = self.sum + patches.sum(0)
        self.products = self.products + patches.T @ patches

    def principal_axes(self) -> tuple[Tensor, Tensor]:
        """Return the mean (number,) and the axes (number, axis), that of most variance first."""
        mean = self.sum / self.count
        _, axes = torch.linalg.eigh(self.products / self.count - mean.outer(mean))
        return mean, axes.flip(1)


def errors(train: Iterator[Tensor], test: Iterator[Tensor], size: int) -> tuple[Tensor, int]:
    """Fit PCA to patches of some pictures and measure it on those of others.

    Returns:
        the mean squared error that is left by each number of axes, 0 to all; and the number of
        patches of a picture.
    """
    moments = Moments()
    for pixels in train:
        moments.add(patches_of(pixels, size))
    mean, axes = moments.principal_axes()
    kept, whole, count, positions = torch.zeros(()), torch.zeros(()), 0, 0
    for pixels in test:
        patches = patches_of(pixels, size) - mean
        squares = (patches @ axes).square()  # what each axis keeps
        kept, whole, count = kept + squares.sum(0), whole + squares.sum(), count + len(patches)
        positions = len(patches) // len(pixels)
    left = whole - torch.cat([torch.zeros(1, dtype=kept.dtype), kept.cumsum(0)])
    return left.clamp(min=0) / (count * len(mean)), positions


def pictures(data: PictureDataset, processor: MDMImageProcessor, limit: int) -> Tensor:
    """Read pictures (picture, channel, height, width) in [-1, 1], as the model sees them."""
    count = min(limit, len(data))
    chosen = [number * len(data) // count for number in range(count)]
    found = []
    for start in tqdm(range(0, count, AT_ONCE), desc="pictures", disable=None):
        images = [data[number]["image"] for number in chosen[start : start + AT_ONCE]]
        shown = [image for image in images if image is not None]
        found.append(processor(shown, return_tensors="pt")["pixel_values"])
    return torch.cat(found)


def table(chosen: TableArguments) -> list[Error]:
    """Measure every patch size with every width that is not wider than the patch."""
    side = {"height": chosen.image_size, "width": chosen.image_size}
    processor = MDMImageProcessor(size=side, num_channels=chosen.num_channels)
    train, test = (
        pictures(
            load_training_data(
                chosen.dataset, split, chosen.data_dir, columns=pairs("columns", chosen.columns)
            ),
            processor,
            chosen.limit,
        )
        for split in ("train", chosen.test_split)
    )
    found = []
    for size in chosen.patch_sizes:
        as_doubles = ((part.double() for part in own.split(AT_ONCE)) for own in (train, test))
        left, positions = errors(*as_doubles, size)
        found += [
            Error(size, positions, width, float(left[width]))
            for width in chosen.widths
            if width < len(left)
        ]
    return found


def parse(argv: Sequence[str]) -> tuple[TableArguments]:
    """Read the command line."""
    return read_command_line(
        [TableArguments], argv, __doc__, prog="python examples/data/patch_table.py"
    )


def run(chosen: TableArguments) -> list[Error]:
    """Print the table, and return it."""
    found = table(chosen)
    print("| patch | positions | width | mean squared error |\n|---:|---:|---:|---:|")
    for row in found:
        print(f"| {row.patch_size} | {row.positions} | {row.width} | {row.squared:.5f} |")
    return found


def main(argv: Sequence[str] | None = None) -> list[Error]:
    """Do what the command line says."""
    return run(*parse(sys.argv[1:] if argv is None else argv))
