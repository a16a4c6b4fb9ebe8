# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights that are split over processes, written and read again without one that holds them all.

A checkpoint is a folder of `torch.distributed.checkpoint`: each process writes what it holds, under
the names that everything has in one process, so any number of processes reads it, on any mesh,
split or whole. A finished model is an ordinary folder of `save_pretrained`, gathered file by file.
"""

from __future__ import annotations

import json
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate.optimizer import AcceleratedOptimizer
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

SHARDED_FOLDER = "sharded"  # in a checkpoint
SHARD_SIZE = "5GB"  # of a finished model; transformers' own 50 GB would hold all of mdm-7b


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a run goes on from, as this process holds it; every process must call this.

    Of a model with adapters, the weights below them are left out: they are those it was made of.
    """
    return {
        "model": get_model_state_dict(model, options=_parts_of(model)),
        "optimizer": get_optimizer_state_dict(model, _own(optimizer)),
    }


def _parts_of(model: nn.Module) -> StateDictOptions:
    """Which weights of a model a checkpoint has: with adapters, those that learn."""
    has_adapters = bool(getattr(model, "peft_config", None))
    return StateDictOptions(ignore_frozen_params=has_adapters, strict=not has_adapters)


def begin_saving(state: dict[str, Any], folder: Path, group: dist.ProcessGroup) -> Future[Any]:
    """Copy a state and write it while the run goes on; every process must call this.

    Args:
        group: of all processes, on the CPU, for this alone: what is training must not wait.

    Returns:
        done in the first process when all have written; its error is that of any.
    """
    writing = dcp.async_save(
        state,
        storage_writer=dcp.FileSystemWriter(folder),
        process_group=group,
    )
    return getattr(writing, "upload_completion", writing)


def is_sharded(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written in parts."""
    return (Path(checkpoint) / SHARDED_FOLDER).is_dir()


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Give a model, split or whole, the weights of a checkpoint; every process must call this."""
    options = _parts_of(model)
    state = {"model": get_model_state_dict(model, options=options)}
    _load(state, checkpoint)
    set_model_state_dict(model, state["model"], options=options)


def load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: str | Path
) -> None:
    """Give an optimizer its states of a checkpoint; every process must call this."""
    state = {"optimizer": get_optimizer_state_dict(model, _own(optimizer))}
    found = _names(checkpoint)
    states = state["optimizer"]["state"]
    for name in list(states):  # what had learned nothing yet has none there
        if not any(f"optimizer.state.{name}.{key}" in found for key in states[name]):
            del states[name]
    _load(state, checkpoint)
    options = StateDictOptions(strict=False)
    set_optimizer_state_dict(model, _own(optimizer), state["optimizer"], options=options)


def has_part(name: str, checkpoint: str | Path) -> bool:
    """Whether anything was saved under a name in a checkpoint of parts."""
    return any(found.startswith(f"{name}.") for found in _names(checkpoint))


def load_part(name: str, part: dict[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """Read what was saved under a name into tensors of its shapes; every process must call this."""
    state = {name: part}
    _load(state, checkpoint)
    return state[name]


def _own(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def _names(checkpoint: str | Path) -> set[str]:
    metadata = dcp.FileSystemReader(Path(checkpoint) / SHARDED_FOLDER).read_metadata()
    return set(metadata.state_dict_metadata)


def _load(state: dict[str, Any], checkpoint: str | Path) -> None:
    reader = dcp.FileSystemReader(Path(checkpoint) / SHARDED_FOLDER)
    with warnings.catch_warnings():
        # Of one process, which is meant.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(state, storage_reader=reader, no_dist=not dist.is_initialized())


def write_weights(
    model: nn.Module, folder: str | Path, writes: bool = True, shard_size: str | int = SHARD_SIZE
) -> None:
    """Write the weights of a model as `save_pretrained` does; every process must call this.

    Tensors are gathered one by one, and the process that writes keeps those of one file.

    Args:
        writes: whether this process is the one that writes. shard_size: of a file, at most, where
            no single tensor is larger.
    """
    tensors = get_model_state_dict(model)
    shapes = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in tensors.items()
    }
    plan = split_torch_state_dict_into_shards(
        shapes, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_size
    )
    for file, names in plan.filename_to_tensors.items():
        shard = {}
        for name in names:
            tensor = tensors[name]
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if writes:
                shard[name] = whole.detach().cpu().contiguous()
            del whole  # before the next is gathered
        if writes:
            save_file(shard, str(Path(folder) / file), metadata={"format": "pt"})
    if writes and plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (Path(folder) / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")
