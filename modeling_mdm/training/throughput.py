# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How fast training is, in words, patches and pictures, and how much of the device it uses."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.inputs import MODEL_INPUTS, lay_out_content
from modeling_mdm.planning.flops import Batch, step_flops, vq_flops
from modeling_mdm.planning.gpus import peak_of_device
from modeling_mdm.training.running_means import RunningSum


def device_peak(device: torch.device, dtype: str) -> float | None:
    """Flop/s of products on a device; None where its data sheet is not known here."""
    if device.type != "cuda":
        return None
    return peak_of_device(torch.cuda.get_device_name(device), dtype)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Most bytes since the start: those of a GPU's allocator; on a CPU, of the whole process."""
    if device.type == "cuda":
        return {"memory_peak_bytes": float(torch.cuda.max_memory_allocated(device))}
    if device.type != "cpu" or sys.platform == "win32":
        return {}
    resource = importlib.import_module("resource")  # not on Windows
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"resident_peak_bytes": float(held * (1 if sys.platform == "darwin" else 1024))}


class Throughput:
    """Counts what training reads, without waiting for the device.

    Args:
        model: that is trained; of another kind than MDM, only memory is told.
        device: of this process. dtype: that it computes in, `bfloat16` or `float32`.

    `tokens` are real words and patches, without padding. `mfu` is the share of the device's peak
    that the model's own flops take up, by `planning.flops`: what checkpointing computes again does
    not count, padding does. It is told where the peak is known and all of the model learns.
    """

    def __init__(self, model: nn.Module | None, device: torch.device, dtype: str) -> None:
        config = getattr(model, "config", None)
        self._config = config if isinstance(config, MDMConfig) else None
        self._device = device
        self._peak = None
        if self._config is not None and _learns(model):
            self._peak = device_peak(device, dtype)
        self._sums, self._flops = RunningSum(), 0.0
        self._flops_of = lru_cache(maxsize=256)(self._count_flops)

    def add(self, inputs: Mapping[str, Any]) -> None:
        """Take in a batch of [`MDMForJointGeneration.forward`] that is trained on."""
        if self._config is None:
            return
        names = (*MODEL_INPUTS, "image_codes")
        read = {name: inputs[name] for name in names if inputs.get(name) is not None}
        content = lay_out_content(self._config.patch_size, read)
        tokens = sum(positions.valid.sum() for positions in content.values())
        pictures, lengths = torch.zeros_like(tokens), {"text": 0, "image": 0}
        if (image := content.get("image")) is not None:
            codes = read.get("image_codes")
            shown = read["pixel_values"][..., 0, :, :] if codes is None else codes
            count = shown.shape[1] if shown.dim() == 4 else 1
            pictures = image.valid.unflatten(1, (count, -1)).any(-1).sum()
        for modality, positions in content.items():
            lengths[modality] = positions.valid.shape[1]
        flops = 0.0
        if self._peak is not None:
            items = len(next(iter(content.values())).valid)
            flops = self._flops_of(
                Batch(items, lengths["text"], lengths["image"]), "image_codes" in read
            )
        self._flops += flops
        self._sums.add(torch.stack([tokens, pictures])[None])

    def _count_flops(self, batch: Batch, is_coded: bool) -> float:
        assert self._config is not None
        vq = 0.0 if is_coded else vq_flops(self._config, batch.patches)
        return step_flops(self._config, batch, frozen=vq).model

    def pop(self, gather: Callable[[Tensor], Tensor], seconds: float) -> dict[str, float]:
        """Give rates since the last call, which was so many seconds ago.

        Tokens and pictures are those of all processes; memory and `mfu` are this one's, whose
        batches are as large as the others'.
        """
        told = peak_memory(self._device)
        sums, flops = self._sums.pop(gather), self._flops
        self._flops = 0.0
        if sums is None:
            return told
        seconds = max(seconds, 1e-9)
        tokens, pictures = (float(value) / seconds for value in sums)
        told |= {"tokens_per_second": tokens, "pictures_per_second": pictures}
        if self._peak is not None:
            told["mfu"] = flops / seconds / self._peak
        return told


def _learns(model: nn.Module | None) -> bool:
    """Whether all of a model learns but its VQ-VAE; under an adapter, gradients cost less."""
    assert model is not None
    return all(p.requires_grad for name, p in model.named_parameters() if "vq." not in name)
