# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What GPUs hold, compute and move at best, by their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """Peaks of one GPU.

    memory: bytes. products: dense flop/s of matrix products, by dtype. bandwidth: bytes/s of its
    memory. link: bytes/s, in one direction, to the others of its machine. network: its share, in
    bytes/s, of what leads to other machines.
    """

    name: str
    memory: float
    products: dict[str, float]
    bandwidth: float
    link: float
    network: float


def _gpu(
    name: str, memory: float, bfloat16: float, float32: float, bandwidth: float, link: float,
    network: float,
) -> GPU:  # fmt: skip
    """GB, Tflop/s, Tflop/s, TB/s, GB/s, GB/s."""
    products = {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}
    return GPU(name, memory * 1e9, products, bandwidth * 1e12, link * 1e9, network * 1e9)


# NVIDIA's data sheets, SXM where nothing else is said, without sparsity; a network of 400 Gbit/s a
# GPU for Hopper and later, 200 for Ampere, 100 for cards without NVLink.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100", 80, 312, 19.5, 2.04, 300, 25),
        _gpu("a100-40gb", 40, 312, 19.5, 1.56, 300, 25),
        _gpu("a800", 80, 312, 19.5, 2.04, 200, 25),
        _gpu("b200", 180, 2250, 75, 7.7, 900, 50),
        _gpu("h100", 80, 989, 67, 3.35, 450, 50),
        _gpu("h100-nvl", 94, 835, 60, 3.9, 300, 50),
        _gpu("h100-pcie", 80, 756, 51, 2.0, 64, 50),
        _gpu("h200", 141, 989, 67, 4.8, 450, 50),
        _gpu("h800", 80, 989, 67, 3.35, 200, 50),
        _gpu("l40s", 48, 362, 91.6, 0.864, 32, 12.5),
        _gpu("rtx-4090", 24, 165, 82.6, 1.01, 32, 12.5),
    )
}


@dataclass(frozen=True)
class OwnFigures:
    """Figures of a GPU in the place of a table's: GB, Tflop/s, TB/s, GB/s and GB/s."""

    memory: float | None = None
    flops: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    network: float | None = None


def find_gpu(name: str, own: OwnFigures | None = None) -> GPU:
    """Find a GPU by its name, or make one of its figures.

    Args:
        name: of the table; any, where `own` says its memory, flop/s and bandwidth.
        own: figures that count in the place of the table's.

    Raises:
        ValueError: the GPU is unknown and its figures are incomplete, or one is not positive.
    """
    own = own or OwnFigures()
    for field, value in vars(own).items():
        if value is not None and not value > 0:
            raise ValueError(f"gpu_{field}={value} must be more than 0.")
    known = GPUS.get(name.lower())
    if known is None:
        missing = [f"gpu_{f}" for f in ("memory", "flops", "bandwidth") if not getattr(own, f)]
        if missing:
            raise ValueError(
                f"gpu={name!r} is unknown: name one of {', '.join(GPUS)}, or give its own "
                f"{', '.join(missing)} as numbers (GB, Tflop/s, TB/s)."
            )
        known = _gpu(name, 1, 1, 1, 1, own.link or 32, own.network or 12.5)
    products = (
        known.products if own.flops is None else dict.fromkeys(known.products, own.flops * 1e12)
    )
    return GPU(
        name.lower(),
        known.memory if own.memory is None else own.memory * 1e9,
        products,
        known.bandwidth if own.bandwidth is None else own.bandwidth * 1e12,
        known.link if own.link is None else own.link * 1e9,
        known.network if own.network is None else own.network * 1e9,
    )


def peak_of_device(device_name: str, dtype: str = "bfloat16") -> float | None:
    """Flop/s of a device by the name that its driver gives it, None where it is not known."""
    words = device_name.lower().replace("-", " ").split()
    found = [gpu for gpu in GPUS.values() if set(gpu.name.replace("-", " ").split()) <= set(words)]
    if not found:
        return None
    # The name that says most: `NVIDIA H100 PCIe` is not the SXM card.
    return max(found, key=lambda gpu: len(gpu.name)).products.get(dtype)
