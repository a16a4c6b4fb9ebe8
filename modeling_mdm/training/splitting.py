# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trainer whose weights, gradients, optimizer and average may be split over processes.

accelerate and torch do it: FSDP2, over all processes or, in a mesh of two dimensions (HSDP), within
each of several groups of processes. Here stands what MDM needs of them besides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.trainer import SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from modeling_mdm.training.saving import SavesWhole
from modeling_mdm.training.sharded import (
    SHARDED_FOLDER,
    begin_saving,
    is_sharded,
    load_optimizer,
    load_weights,
    training_state,
    write_weights,
)


@contextmanager
def whole_outside_of_blocks(model: nn.Module) -> Iterator[None]:
    """Have accelerate keep embedding and head of the words with all else that is in no block.

    It would split each by itself and gather it when it is called: a batch without text calls
    neither, so its process would wait for others in another order than they for it.
    """
    names = ("get_input_embeddings", "get_output_embeddings")
    for name in names:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


def require_unused_weights() -> None:
    """Let FSDP2 pass that knows of weights which one process uses and another does not.

    Raises:
        ImportError: this torch's does not.
    """
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ImportError(
            f"FSDP2 of torch {torch.__version__} would wait for ever where a batch lacks words or "
            "pictures: install torch 2.14 or newer, or start with "
            "configuration/accelerate/two_processes.yaml (DDP)."
        )


def require_one_type(model: nn.Module) -> None:
    """Let FSDP2 split a model whose weights that learn have one type.

    Raises:
        ValueError: they have several, such as adapters in float32 on weights in bfloat16.
    """
    types = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    if len(types) > 1:
        raise ValueError(
            f"bf16=False leaves what learns in {' and '.join(sorted(types))}, and FSDP2 adds up "
            "gradients of one type: set bf16=True, which trains all of it in float32, or load the "
            "model in float32."
        )


@contextmanager
def as_its_own_class(model: nn.Module) -> Iterator[None]:
    """Give a split model its class back: it is saved with the code of that, not with torch's."""
    split = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = split.__mro__[2]  # behind the class that torch made, and FSDPModule
    try:
        yield
    finally:
        model.__class__ = split


class UsedWeights:
    """Which weights of a split model the batches of a step have used, in any process.

    An optimizer passes by what has no gradient. But processes can only add up gradients that all of
    them have: so a weight that one does not use, for want of words, gets one of zeros.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._used: set[str] = set()
        self._watched: set[str] = set()
        for prefix, module in model.named_modules():
            if isinstance(module, FSDPModule):
                module.register_forward_pre_hook(partial(self._watch, prefix))

    def _watch(self, prefix: str, module: nn.Module, _: Any) -> None:
        """Watch the weights of a module when they are first gathered: they stay these objects."""
        for name, weight in module.named_parameters(prefix):
            gathered = weight.requires_grad and not isinstance(weight, DTensor)
            if gathered and name not in self._watched:
                self._watched.add(name)
                weight.register_post_accumulate_grad_hook(partial(self._mark, name))

    def _mark(self, name: str, _: torch.Tensor) -> None:
        self._used.add(name)

    def drop_others(self, device: torch.device) -> None:
        """Take the gradient of what nobody has used since the last time; all must call this."""
        used = torch.tensor([name in self._used for name in self._weights], device=device).float()
        dist.all_reduce(used)
        for weight, is_used in zip(self._weights.values(), used.tolist(), strict=True):
            if not is_used:
                weight.grad = None
        self._used.clear()


class SplitsWeights(SavesWhole):
    """A Trainer for FSDP2 and HSDP, and for checkpoints that were written under them.

    Weights are gathered in float32 and multiplied in bfloat16, by autocast, as in one process: so
    what must stay float32 (Mamba's A, the bias of Delta, norms, statistics) does.
    """

    _saving_group: dist.ProcessGroup | None = None
    _used_weights: UsedWeights | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._is_fsdp2:
            require_unused_weights()
            # Otherwise accelerate would round all weights, and what blocks are given, to bfloat16.
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = None

    @property
    def _is_fsdp2(self) -> bool:
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        return plugin is not None and plugin.fsdp_version == 2

    @property
    def _saves_shards(self) -> bool:
        plugin = self.accelerator.state.fsdp_plugin if self._is_fsdp2 else None
        return plugin is not None and "SHARDED" in str(plugin.state_dict_type)

    def parts_to_save(self) -> dict[str, Any]:
        """What a checkpoint that is written in parts holds besides weights and optimizer."""
        return {}

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Compute in bfloat16 where that was chosen: accelerate leaves it out under FSDP2."""
        contexts = super().compute_loss_context_manager()
        if self._is_fsdp2:
            contexts.enter_context(self.accelerator.autocast())
        return contexts

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_fsdp2:
            return super()._prepare_for_training(*args, **kwargs)
        if self.accelerator.mixed_precision == "no":  # else accelerate widens what learns
            require_one_type(self.model)
        with whole_outside_of_blocks(self.model):
            prepared = super()._prepare_for_training(*args, **kwargs)
        root = next(module for module in self.model.modules() if isinstance(module, FSDPModule))
        # A batch may lack what another process's batch has: all must add up gradients of the same.
        root.set_reduce_scatter_unused_params(True)
        self._used_weights = UsedWeights(self.model)
        return prepared

    def before_optimizer_step(self) -> None:
        """Have the optimizer do what it would do in one process; all processes call it."""
        if self._used_weights is not None:
            self._used_weights.drop_others(self.args.device)

    def _write_model(self, folder: str) -> None:
        """Write a folder of `save_pretrained`; in a checkpoint of parts, without the weights."""
        if not self._is_fsdp2:
            super()._write_model(folder)
            return
        if getattr(self.model, "peft_config", None):
            self._save(folder, state_dict=_gathered(self.model))
            return
        if self.args.should_save:
            with as_its_own_class(self.model):
                self._save(folder, state_dict={})
            (Path(folder) / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)  # of no weights
        if self._staging is None or not self._saves_shards:
            write_weights(self.model, folder, self.args.should_save)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._saves_shards:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self._saving_group is None:
            self._saving_group = dist.new_group(backend="gloo")
        state = training_state(self.model, self.optimizer) | self.parts_to_save()
        self._writing = begin_saving(state, Path(output_dir) / SHARDED_FOLDER, self._saving_group)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if is_sharded(resume_from_checkpoint):
            load_weights(self.model if model is None else model, resume_from_checkpoint)
            return
        if self._is_fsdp2 and not any(Path(resume_from_checkpoint).glob("pytorch_model_fsdp*")):
            raise ValueError(
                f"resume_from_checkpoint={resume_from_checkpoint!r} was written by processes that "
                "held the whole model each: go on without FSDP, or begin a new run from its "
                "weights, with what `mdm export` makes of it as --config, or as --model of "
                "examples/finetune.py."
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(self.model, self.optimizer, checkpoint)
        schedule = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)

    def _load_best_model(self) -> None:
        self.finish_saving()
        best = str(self.state.best_model_checkpoint)
        if is_sharded(best):
            load_weights(self.model, best)
        else:
            super()._load_best_model()


def _gathered(model: nn.Module) -> dict[str, torch.Tensor]:
    """What learns, whole: an adapter, which is small; every process must call this."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()
        for name, value in model.named_parameters()
        if value.requires_grad
    }
