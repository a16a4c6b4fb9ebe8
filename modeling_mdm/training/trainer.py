# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The trainer: transformers' own, with what diffusion training needs besides (Sec. 5.1).

It adds the terms of the loss, speed and memory to the logs, an average of the weights, pictures of
samples during evaluation, also for TensorBoard, checkpoints that are whole or absent, a time limit,
and draws by seed, step and item, which make a run that was resumed, or shared out among processes,
equal to one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import TrainerCallback
from transformers.utils import logging

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.data.blocks import BlockSampler, MixedItems
from modeling_mdm.data.tasks import with_seeds
from modeling_mdm.draws import ItemKeys
from modeling_mdm.loss import combine_tallies, count_items_in_batches
from modeling_mdm.matching import check_processor
from modeling_mdm.precision import cast_parameters_alike, describe_processor, warn_if_emulated
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.arguments import MDMTrainingArguments
from modeling_mdm.training.ema import (
    AVERAGE,
    EMA_FILE,
    ExponentialMovingAverage,
    is_split,
)
from modeling_mdm.training.going_on import GoesOn
from modeling_mdm.training.item_keys import ITEMS, WithItemSeeds, number_items
from modeling_mdm.training.passes import EndlessStream, without_end
from modeling_mdm.training.recomputing import checkpoint_share
from modeling_mdm.training.running_means import RunningMeans, RunningSum
from modeling_mdm.training.samples import (
    SampleSheet,
    fixed_random_state,
    joint_sample_sheet,
    write_sheet,
)
from modeling_mdm.training.throughput import Throughput

logger = logging.get_logger(__name__)

LOSS_TERMS = ("loss_se_image", "loss_se_text", "loss_rec_image", "loss_rec_text", "loss_kl")
LOSS_TERMS += ("loss_mode",)


class MDMTrainer(GoesOn):
    """transformers' Trainer for MDM.

    Args:
        model: an `MDMForJointGeneration`.
        args: how to train.
        sample_sheet: draws the picture of each evaluation; None draws joint samples.
        **kwargs: as in transformers' Trainer. `processing_class` is the processor; it is saved with
            the model and needed for samples. Items of the data sets that carry no `seed` get one.
            A `train_dataset` that is a stream of unknown length begins anew at its end.

    Raises:
        ValueError: if ema_decay > 0 under the first version of FSDP, something is to be done after
            each epoch of a stream, or the processor does not belong to the model.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: MDMTrainingArguments | None = None,
        sample_sheet: SampleSheet | None = None,
        **kwargs: Any,
    ) -> None:
        args = MDMTrainingArguments() if args is None else args
        processor, config = kwargs.get("processing_class"), getattr(model, "config", None)
        if isinstance(processor, MDMProcessor) and isinstance(config, MDMConfig):
            check_processor(processor, config, learns=True)
        for name in ("train_dataset", "eval_dataset"):
            kwargs[name] = with_seeds(kwargs.get(name), args.data_seed)
        kwargs["train_dataset"] = without_end(kwargs["train_dataset"], args)
        super().__init__(model=model, args=args, **kwargs)
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if args.ema_decay > 0 and getattr(plugin, "fsdp_version", 2) == 1:
            raise ValueError(
                f"ema_decay={args.ema_decay} cannot average the flat parameters of FSDP1: set "
                "fsdp_version: 2, as in configuration/accelerate/fsdp2.yaml, or ema_decay=0."
            )
        warn_if_emulated(getattr(model, "dtype", torch.float32), args.device)
        if self.is_deepspeed_enabled:
            cast_parameters_alike(self.model)
        self.sample_sheet = joint_sample_sheet if sample_sheet is None else sample_sheet
        self.average: ExponentialMovingAverage | None = None
        self._average_is_in = False
        self.current_gradient_accumulation_steps = 1  # batches in this step, as Trainer keeps it
        self._train_terms, self._eval_terms = RunningMeans(), RunningMeans()
        self._train_tallies, self._eval_tallies = RunningSum(), RunningSum()
        self._last_log = (0, time.monotonic())
        self.share_of_rate = 1.0  # of the scheduler's learning rate, see decay_train_seconds
        type_name = "bfloat16" if args.bf16 else "float32"
        self._throughput = Throughput(model, args.device, type_name)
        self._machine = f"{describe_processor(args.device)}; in {type_name}"
        self.add_callback(_TrainingEvents(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        """Choose the order of the items: of `MixedItems`, blocks that are each a step's."""
        seeded = self.train_dataset if train_dataset is None else train_dataset
        mixed = getattr(seeded, "dataset", None)
        if isinstance(mixed, MixedItems):
            return BlockSampler(mixed, self.args.items_per_step, self.args.data_seed)
        return super()._get_train_sampler(train_dataset)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name what weight decay acts on: matrices and convolutions.

        Not norms and biases, by transformers' rule, and not what a module lists in
        `no_weight_decay`: Mamba's A and D, tokens and embeddings.
        """
        exempt = [
            f"{name}.{own}." if name else f"{own}."
            for name, module in model.named_modules()
            for own in getattr(module, "no_weight_decay", ())
        ]
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not f"{name}.".startswith(tuple(exempt))]

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Collect the batches of a step; of several, count what the means of their loss are over.

        Each item gets its place in the step, to draw by. Under torch's DataParallel each batch, on
        each device, takes means of its own.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._draws_by_keys():
            number_items(batches, self.args)
        shared = self.batches_to_share()
        is_one = len(batches) * shared < 2
        if is_one or not self.model_accepts_loss_kwargs or self.args.n_gpu > 1:
            return batches, None
        batches = [self._prepare_inputs(batch) for batch in batches]
        counts = count_items_in_batches(self.model.config, batches)
        # All processes of a group count the same items.
        return batches, {name: shared * count for name, count in counts.items()}

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Take the gradients of a batch, and note how much there was to read."""
        inputs = self._prepare_inputs(inputs)
        self._throughput.add(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch (Eq. 18), or its share of a step's; keep its terms to log."""
        inputs = dict(inputs)
        if (items := inputs.pop(ITEMS, None)) is not None:
            is_step = (self.args.seed, self.state.global_step)
            seed, step = is_step if model.training else (self.args.sample_seed, 0)
            inputs["item_keys"] = ItemKeys(seed, step, items)
        share = 1 / self.current_gradient_accumulation_steps if model.training else 1.0
        weight = share  # of a loss that transformers divides by the number of batches in its step
        if num_items_in_batch is not None:
            # Not as super's argument: it would multiply by the number of processes.
            inputs, weight = {**inputs, "num_items_in_batch": num_items_in_batch}, 1.0
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        tallies = outputs.get("tallies")
        if tallies is None:
            terms = self._train_terms if model.training else self._eval_terms
            terms.add({name: outputs.get(name) for name in LOSS_TERMS}, weight, share)
        elif model.training:
            self._train_tallies.add(tallies)
        else:
            # Of all processes, without the items that fill up the last batch.
            self._eval_tallies.add(self.accelerator.gather_for_metrics(tallies))
        return (loss, outputs) if return_outputs else loss

    def _combine(self, tallies: torch.Tensor | None) -> dict[str, float]:
        """Losses from the sums of tallies; nothing where there are none."""
        if tallies is None:
            return {}
        combined = combine_tallies(self.model.config, tallies)
        return {name: float(value) for name, value in combined.items()}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log values; with a loss, also its terms, the speed since the last time and memory.

        Each term is one mean over all positions (or items) that were trained on meanwhile.
        """
        if "learning_rate" in logs:
            logs["learning_rate"] *= self.share_of_rate
        if "loss" in logs:
            logs.update(self._train_terms.pop(self.accelerator.gather))
            losses = self._combine(self._train_tallies.pop(self.accelerator.gather))
            logs.update({name: losses[name] for name in LOSS_TERMS if name in losses})
            since = self._last_log[1]
            logs["samples_per_second"] = self._speed()
            seconds = self._last_log[1] - since
            logs.update(self._throughput.pop(self.accelerator.gather, seconds))
            if skipped := getattr(self.train_dataset, "skipped", None):  # of a stream, by source
                counts = skipped.values() if isinstance(skipped, dict) else [skipped]
                logs["skipped_samples"] = sum(counts)
            if lacking := getattr(self.train_dataset, "lacking", None):
                logs["samples_without_a_part"] = sum(lacking.values())
        super().log(logs, *args, **kwargs)
        if any(name.endswith("samples_per_second") for name in logs):
            self.state.log_history[-1]["machine"] = self._machine

    def _speed(self) -> float:
        """Samples a second, of all processes, since the last call; evaluation does not count."""
        step, since = self._last_log
        self._last_log = (self.state.global_step, time.monotonic())
        items = (self.state.global_step - step) * self.args.items_per_step
        return items / max(time.monotonic() - since, 1e-9)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate the averaged weights with fixed noise, and write a picture of samples.

        What is random is drawn for each item from its place and `sample_seed`, and losses are means
        over the positions of the whole set: they depend neither on the size of batches nor on the
        number of processes.
        """
        start = time.monotonic()
        if not isinstance(eval_dataset, str):
            eval_dataset = with_seeds(eval_dataset, self.args.data_seed)
        with self.saved_weights(), fixed_random_state(self.args.sample_seed):
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            # Of several data sets, each comes through here once more under a longer prefix.
            wanted = metric_key_prefix == "eval" and self.args.num_samples > 0
            if wanted and (self.is_world_process_zero() or is_split(self.model)):
                self._write_samples()
        step, since = self._last_log
        self._last_log = (step, since + time.monotonic() - start)
        return metrics

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Load an evaluation set in batches that name the seeds of their items."""
        collator = self.data_collator
        if self._draws_by_keys():
            self.data_collator = WithItemSeeds(collator)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def _draws_by_keys(self) -> bool:
        return getattr(getattr(self.model, "config", None), "model_type", None) == "mdm"

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Run over a data set; its loss and the terms of it are means over the whole set."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        terms = self._eval_terms.pop(self.accelerator.gather)
        losses = self._combine(self._eval_tallies.pop())
        terms |= {name: losses[name] for name in ("loss", *LOSS_TERMS) if name in losses}
        output.metrics.update({f"{metric_key_prefix}_{n}": value for n, value in terms.items()})
        if skipped := getattr(self.eval_dataset, "skipped", None):
            output.metrics[f"{metric_key_prefix}_skipped_samples"] = skipped
        return output

    def _write_samples(self) -> None:
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        if isinstance(model, FSDPModule):
            # It evaluates pieces of the model by themselves, so the root's weights must be there.
            register_fsdp_forward_method(model, "generate")
        sheet = self.sample_sheet(model, self.processing_class, self.args)
        if self.is_world_process_zero():
            callbacks = self.callback_handler.callbacks
            write_sheet(sheet, self.args.output_dir, self.state.global_step, callbacks)

    @contextmanager
    def saved_weights(self) -> Iterator[None]:
        """Have the averaged weights in the model inside a `with` block, where there are any."""
        if self.average is None or self._average_is_in:
            yield
            return
        self._average_is_in = True
        try:
            with self.average.swapped_in():
                yield
        finally:
            self._average_is_in = False

    def begin_run(self) -> None:
        """Begin the average of the weights, or go on with that of a checkpoint."""
        if self.args.checkpointed_blocks < 1:
            checkpoint_share(self.model, self.args.checkpointed_blocks)
        if self.args.ema_decay == 0:
            return
        model = self.accelerator.unwrap_model(self.model)
        self.average = ExponentialMovingAverage(model, self.args.ema_decay)
        if self._resumed_from is not None:
            self._load_average(self._resumed_from)

    def save_beside(self, folder: Path) -> None:
        """Write the average of the weights, which all processes gather, into a checkpoint."""
        super().save_beside(folder)
        if self.average is not None and not self._saves_shards:
            self.average.save(folder / EMA_FILE, writes=self.args.should_save)

    def parts_to_save(self) -> dict[str, Any]:
        """The average of the weights, in a checkpoint that is written in parts."""
        parts = super().parts_to_save()
        return parts if self.average is None else {**parts, AVERAGE: self.average.parts()}

    def _load_average(self, checkpoint: str) -> None:
        if self.average is None:
            return
        try:
            self.average.load_from(checkpoint)
        except FileNotFoundError as error:
            raise ValueError(
                f"ema_decay={self.args.ema_decay}, but {checkpoint} holds no average of the "
                "weights: go on with ema_decay=0, as it was trained."
            ) from error

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_average(str(self.state.best_model_checkpoint))


class _TrainingEvents(TrainerCallback):
    """What MDMTrainer does at the start, after each step and before each epoch."""

    def __init__(self, trainer: MDMTrainer) -> None:
        self.trainer = trainer
        self.stop_at = float("inf")

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if args.max_train_seconds is not None:
            self.stop_at = time.monotonic() + args.max_train_seconds
        self.trainer._last_log = (state.global_step, time.monotonic())
        self.trainer.begin_run()
        if self.trainer._resumed_from is None:
            self.trainer._load_rng_state(None)

    def on_epoch_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        # accelerate's loaders tell the data set its epoch in some arrangements only: not when they
        # shard, and not when they skip the first batches of a resumed epoch.
        dataset = self.trainer.train_dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.trainer.before_optimizer_step()
        if args.decay_train_seconds:
            left = self._seconds_left(args) / args.decay_train_seconds
            self.trainer.share_of_rate = share = max(0.0, min(1.0, left))
            rates = kwargs["lr_scheduler"].get_last_lr()
            for group, rate in zip(kwargs["optimizer"].param_groups, rates, strict=True):
                group["lr"] = rate * share

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if isinstance(self.trainer.train_dataset, EndlessStream):  # one epoch, and all of the run
            state.epoch = state.global_step / state.max_steps
        self.trainer.finish_saving(waits=False)
        if self.trainer.average is not None:
            self.trainer.average.update()
        if self._time_is_up(args):
            logger.warning(f"max_train_seconds={args.max_train_seconds} is over: saving, stopping.")
            control.should_log = control.should_save = control.should_training_stop = True
        return control

    def _seconds_left(self, args: MDMTrainingArguments) -> float:
        """The least of all processes, whose clocks differ: they must do the same."""
        left = self.stop_at - time.monotonic()
        if args.world_size > 1:
            clocks = torch.tensor([left], device=args.device)
            left = float(self.trainer.accelerator.gather(clocks).min())
        return left

    def _time_is_up(self, args: MDMTrainingArguments) -> bool:
        return args.max_train_seconds is not None and self._seconds_left(args) <= 0
