# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The trainer: transformers' own, with what diffusion training needs besides (Sec. 5.1).

It adds the parts of the loss and the speed to the logs, an average of the weights, pictures of
samples during evaluation, also for TensorBoard, checkpoints that are whole or absent, a time limit,
and seeds that make a resumed run equal to one that was never interrupted.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import find_batch_size
from PIL import Image
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import Trainer, TrainerCallback, TrainerState, set_seed
from transformers.trainer_utils import TrainOutput, has_length, rotate_checkpoints
from transformers.utils import logging

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.data.tasks import SeededItems
from modeling_mdm.loss import combine_tallies, count_items_in_batches
from modeling_mdm.matching import check_processor
from modeling_mdm.precision import cast_parameters_alike, describe_processor, warn_if_emulated
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.arguments import MDMTrainingArguments
from modeling_mdm.training.carried_code import replace_code_by_signpost
from modeling_mdm.training.checkpoints import (
    STAGING_FOLDER,
    find_fault,
    last_whole_checkpoint,
    publish_checkpoint,
    publish_files,
)
from modeling_mdm.training.ema import EMA_FILE, ExponentialMovingAverage, is_split
from modeling_mdm.training.item_noise import ITEM_SEEDS, WithItemSeeds, draw_for_items
from modeling_mdm.training.passes import START, EndlessStream

logger = logging.get_logger(__name__)

# The place in a stream, in a checkpoint.
STREAM_FILE = "stream.pt"
LOSS_PARTS = ("loss_se_image", "loss_se_text", "loss_rec_image", "loss_rec_text", "loss_kl")
LOSS_PARTS += ("loss_mode",)

# Makes the picture of samples of an evaluation: (model, processor, args) -> picture.
SampleSheet = Callable[[nn.Module, Any, MDMTrainingArguments], Image.Image]


class MDMTrainer(Trainer):
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
            kwargs[name] = _with_seeds(kwargs.get(name), args.data_seed)
        kwargs["train_dataset"] = _without_end(kwargs["train_dataset"], args)
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
        self._train_parts, self._eval_parts = RunningMeans(), RunningMeans()
        self._train_tallies, self._eval_tallies = RunningSum(), RunningSum()
        self._last_log = (0, time.monotonic())
        self._resumed_from: str | None = None
        self._staging: Path | None = None
        type_name = "bfloat16" if args.bf16 else "float32"
        self._machine = f"{describe_processor(args.device)}; in {type_name}"
        self._place = (START, 0)  # in a stream, at the first step: a mark, and the items before it
        self._items_taken = 0  # of a stream, by all processes, in the steps so far
        self._random_state_is_due = False
        self.add_callback(_TrainingEvents(self))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest whole one.

        Raises:
            ValueError: if the checkpoint is not whole, or there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"resume_from_checkpoint=True, but output_dir={self.args.output_dir!r} holds "
                    "no whole checkpoint: train from the start, or name another folder."
                )
        elif resume_from_checkpoint and (fault := find_fault(resume_from_checkpoint)):
            raise ValueError(
                f"resume_from_checkpoint={resume_from_checkpoint!r} is not a whole checkpoint: "
                f"{fault}. Use an older one."
            )
        self._resumed_from = resume_from_checkpoint or None
        splits = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.model_wrapped is self.model and not splits:
            # An evaluation before this has marked the model as ready, as it is: accelerate would
            # then leave it so, and each process would train by itself.
            vars(self.model).pop("_is_accelerate_prepared", None)
        if self._resumed_from is not None and self._is_finished(self._resumed_from):
            return self._restore_finished_run(self._resumed_from)
        with self._stream_in_place():
            return super().train(self._resumed_from, *args, **kwargs)

    @contextmanager
    def _stream_in_place(self) -> Iterator[None]:
        """Have a stream begin where the run goes on; then transformers need not skip anything."""
        stream, own = self.train_dataset, self.args.ignore_data_skip
        self._place = (START, 0)
        if isinstance(stream, EndlessStream) and self._resumed_from is not None and not own:
            path = Path(self._resumed_from) / STREAM_FILE
            if path.is_file() and self.args.dataloader_num_workers <= 1:
                saved = torch.load(path)
                self._place = (saved["mark"], saved["items"])
                self.args.ignore_data_skip = self._random_state_is_due = True
        try:
            yield
        finally:
            self.args.ignore_data_skip = own

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Return the loader of transformers; a worker that reads a stream tells where it is."""
        if isinstance(self.train_dataset, EndlessStream):
            self.train_dataset.begin_at(*self._place)
            self._items_taken = self._place[1]
            if self.args.dataloader_num_workers == 1:
                self.train_dataset.share_marks(self.args.dataloader_multiprocessing_context)
        return super().get_train_dataloader()

    def _save_place(self, folder: Path) -> None:
        stream, workers = self.train_dataset, self.args.dataloader_num_workers
        if isinstance(stream, EndlessStream) and workers <= 1 and self.args.should_save:
            mark = stream.mark_before(self._items_taken)
            torch.save({"items": self._items_taken, "mark": mark}, folder / STREAM_FILE)

    def _is_finished(self, checkpoint: str) -> bool:
        return 0 < self.args.max_steps <= _load_state(checkpoint).global_step

    def _restore_finished_run(self, checkpoint: str) -> TrainOutput:
        # transformers would take one more step before it noticed.
        logger.warning(f"{checkpoint} has reached max_steps={self.args.max_steps} already.")
        self._load_from_checkpoint(checkpoint)
        self.state = _load_state(checkpoint)
        self._start_average()
        return TrainOutput(self.state.global_step, float("nan"), {})

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

        Under torch's DataParallel each batch, on each device, takes means of its own.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if isinstance(self.train_dataset, EndlessStream):
            self._items_taken += self.args.world_size * sum(map(find_batch_size, batches))
            self.train_dataset.mark_before(self._items_taken)
        if self._random_state_is_due:  # the loader has drawn a number since it was loaded
            self._random_state_is_due = False
            self._load_rng_state(self._resumed_from)
        if len(batches) < 2 or not self.model_accepts_loss_kwargs or self.args.n_gpu > 1:
            return batches, None
        batches = [self._prepare_inputs(batch) for batch in batches]
        return batches, count_items_in_batches(self.model.config, batches)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch (Eq. 18), or its part of a step's; keep its terms to log."""
        share = 1 / self.current_gradient_accumulation_steps if model.training else 1.0
        weight = share  # of a loss that transformers divides by the number of batches in its step
        if num_items_in_batch is not None:
            # Not as super's argument: it would multiply by the number of processes.
            inputs, weight = {**inputs, "num_items_in_batch": num_items_in_batch}, 1.0
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        tallies = outputs.get("tallies")
        if tallies is None:
            parts = self._train_parts if model.training else self._eval_parts
            parts.add({name: outputs.get(name) for name in LOSS_PARTS}, weight, share)
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
        """Log values; with a loss, also its parts and the speed since the last time.

        Each part is one mean over all positions (or items) that were trained on meanwhile.
        """
        if "loss" in logs:
            logs.update(self._train_parts.pop(self.accelerator.gather))
            losses = self._combine(self._train_tallies.pop(self.accelerator.gather))
            logs.update({name: losses[name] for name in LOSS_PARTS if name in losses})
            logs["samples_per_second"] = self._speed()
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
        args, (step, since) = self.args, self._last_log
        self._last_log = (self.state.global_step, time.monotonic())
        items = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return (self.state.global_step - step) * items / max(time.monotonic() - since, 1e-9)

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
            eval_dataset = _with_seeds(eval_dataset, self.args.data_seed)
        with self._averaged_weights(), fixed_random_state(self.args.sample_seed):
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
        collator, self.data_collator = self.data_collator, WithItemSeeds(self.data_collator)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def prediction_step(
        self, model: nn.Module, inputs: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate a batch with the noise of its items."""
        inputs = dict(inputs)
        seeds, config = inputs.pop(ITEM_SEEDS, None), getattr(self.model, "config", None)
        if seeds is not None and getattr(config, "model_type", None) == "mdm":
            inputs |= draw_for_items(config, inputs, seeds, self.args.sample_seed)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Run over a data set; its loss and the parts of it are means over the whole set."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        parts = self._eval_parts.pop(self.accelerator.gather)
        losses = self._combine(self._eval_tallies.pop())
        parts |= {name: losses[name] for name in ("loss", *LOSS_PARTS) if name in losses}
        output.metrics.update({f"{metric_key_prefix}_{n}": value for n, value in parts.items()})
        if skipped := getattr(self.eval_dataset, "skipped", None):
            output.metrics[f"{metric_key_prefix}_skipped_samples"] = skipped
        return output

    def _write_samples(self) -> None:
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        if isinstance(model, FSDPModule):
            # It evaluates parts of the model by themselves, so the root's weights must be there.
            register_fsdp_forward_method(model, "generate")
        sheet = self.sample_sheet(model, self.processing_class, self.args)
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir) / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            sheet.save(folder / f"step-{self.state.global_step:07d}.png")
            for callback in self.callback_handler.callbacks:
                if (writer := getattr(callback, "tb_writer", None)) is not None:
                    pixels = np.asarray(sheet.convert("RGB"))  # (height, width, 3)
                    writer.add_image("samples", pixels, self.state.global_step, dataformats="HWC")

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        if self.average is None or self._average_is_in:
            yield
            return
        self._average_is_in = True
        try:
            with self.average.swapped_in():
                yield
        finally:
            self._average_is_in = False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the averaged weights, the configuration and the processor.

        Files that were there before are replaced one by one when all new ones are written. Inside a
        checkpoint the weights are those that training goes on from; the average lies beside them.

        Raises:
            OSError: if the disk is full.
        """
        if self._staging is not None:
            super().save_model(output_dir, _internal_call=True)
            return
        final = Path(self.args.output_dir if output_dir is None else output_dir)
        staging = final / STAGING_FOLDER
        try:
            with self._averaged_weights():
                super().save_model(str(staging), _internal_call=True)
            if self.args.should_save:
                publish_files(staging, final)
        except Exception as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise OSError(
                f"the model could not be written to {final} ({error}); nothing was changed there. "
                "Make room on the disk and save it again, or train on from the last checkpoint."
            ) from error
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # An upload runs in the background, so it must find the files under their final name.
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside and give it its name when it is whole."""
        run_dir = Path(self._get_output_dir(trial))
        final = run_dir / f"checkpoint-{self.state.global_step}"
        staging = run_dir / STAGING_FOLDER
        try:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            self._staging = staging
            super()._save_checkpoint(model, trial)
            self._save_place(staging / final.name)
            if self.average is not None:  # gathers from all processes what is split
                self.average.save(staging / final.name / EMA_FILE, writes=self.args.should_save)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._complete_checkpoint(staging / final.name, final)
        except Exception as error:
            shutil.rmtree(staging, ignore_errors=True)
            previous = last_whole_checkpoint(run_dir)
            raise OSError(_not_saved_message(final, error, previous)) from error
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _complete_checkpoint(self, staged: Path, final: Path) -> None:
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
            self.state.save_to_json(str(staged / "trainer_state.json"))
        if not self.args.push_to_hub:  # an upload takes its files from here
            replace_code_by_signpost(staged, final)
        (staged / "README.md").unlink(missing_ok=True)  # the card is that of the trained model
        publish_checkpoint(staged, final)

    def _start_average(self) -> None:
        if self.args.ema_decay == 0:
            return
        model = self.accelerator.unwrap_model(self.model)
        self.average = ExponentialMovingAverage(model, self.args.ema_decay)
        if self._resumed_from is not None:
            self._load_average(self._resumed_from)

    def _load_average(self, checkpoint: str) -> None:
        path = Path(checkpoint) / EMA_FILE
        if self.average is None:
            return
        if not path.is_file():
            raise ValueError(
                f"ema_decay={self.args.ema_decay}, but {checkpoint} holds no average of the "
                "weights: go on with ema_decay=0, as it was trained."
            )
        self.average.load(path)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Go on with the random states of a checkpoint, where it has one for this process.

        A process that the run did not have before, and every one but the first at the start, gets a
        seed of its own: with a common one, all processes would draw the same noise.
        """
        step, rank = self.state.global_step, self.args.process_index
        name = f"rng_state_{rank}.pth" if self.args.world_size > 1 else "rng_state.pth"
        if checkpoint is not None and (Path(checkpoint) / name).is_file():
            super()._load_rng_state(checkpoint)
        elif checkpoint is not None or rank > 0:
            entropy = np.random.SeedSequence((self.args.seed, step, rank))
            set_seed(int(entropy.generate_state(1)[0]))

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
        self.trainer._start_average()
        if self.trainer._resumed_from is None:
            self.trainer._load_rng_state(None)

    def on_epoch_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        # accelerate's loaders tell the data set its epoch in some arrangements only: not when they
        # shard, and not when they skip the first batches of a resumed epoch.
        dataset = self.trainer.train_dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if isinstance(self.trainer.train_dataset, EndlessStream):  # one epoch, and all of the run
            state.epoch = state.global_step / state.max_steps
        if self.trainer.average is not None:
            self.trainer.average.update()
        if self._time_is_up(args):
            logger.warning(f"max_train_seconds={args.max_train_seconds} is over: saving, stopping.")
            control.should_log = control.should_save = control.should_training_stop = True
        return control

    def _time_is_up(self, args: MDMTrainingArguments) -> bool:
        if args.max_train_seconds is None:
            return False
        over = time.monotonic() >= self.stop_at
        if args.world_size > 1:  # clocks differ; all processes must stop after the same step
            flag = torch.tensor([float(over)], device=args.device)
            over = bool(self.trainer.accelerator.gather(flag).max() > 0)
        return over


class RunningMeans:
    """Means of named numbers, added up on their device so that no step has to wait for it."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, float] = {}

    def add(
        self, values: Mapping[str, torch.Tensor | None], weight: float = 1.0, share: float = 1.0
    ) -> None:
        """Take in one 0-dim tensor a name, times a weight; None is left out.

        A step of several parts counts as one: each is this share of it.
        """
        for name, value in values.items():
            if value is None:
                continue
            self._sums[name] = self._sums.get(name, 0) + weight * value.detach().float()
            self._counts[name] = self._counts.get(name, 0) + share

    def pop(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return the means over all processes and start anew."""
        names = sorted(self._sums)
        if not names:
            return {}
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        means = gather(means.reshape(1, -1)).mean(dim=0)
        self._sums, self._counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))


class RunningSum:
    """Sums tallies (b, means, 2) over items and calls, on their device."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None

    def add(self, tallies: torch.Tensor) -> None:
        """Take in those of a batch."""
        # Apple's GPUs have no float64.
        dtype = torch.float32 if tallies.device.type == "mps" else torch.float64
        total = tallies.detach().to(dtype).sum(0)
        self._sum = total if self._sum is None else self._sum + total

    def pop(
        self, gather: Callable[[torch.Tensor], torch.Tensor] = lambda mine: mine
    ) -> torch.Tensor | None:
        """Return the sum (means, 2), of all processes by `gather`, and start anew."""
        total, self._sum = self._sum, None
        return None if total is None else gather(total[None]).sum(0)


@contextmanager
def fixed_random_state(seed: int) -> Iterator[None]:
    """Seed Python, numpy and torch inside a `with` block; their states are as before after it."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def joint_sample_sheet(model: Any, processor: Any, args: MDMTrainingArguments) -> Image.Image:
    """Draw pictures with their captions from nothing, and lay them out on one sheet."""
    from modeling_mdm.display.pictures import contact_sheet

    inputs = processor(generation_mode="joint", return_tensors="pt").to(model.device)
    out = model.generate(
        **inputs,
        num_return_sequences=args.num_samples,
        num_inference_steps=args.sample_steps,
        generator=torch.Generator().manual_seed(args.sample_seed),
        show_progress=False,
    )
    return contact_sheet(processor.post_process(out), columns=max(1, round(args.num_samples**0.5)))


def _load_state(checkpoint: str) -> TrainerState:
    return TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))


def _with_seeds(dataset: Any, seed: int) -> Any:
    if isinstance(dataset, dict):
        return {name: _with_seeds(part, seed) for name, part in dataset.items()}
    if dataset is None or isinstance(dataset, (SeededItems, torch.utils.data.IterableDataset)):
        return dataset
    return SeededItems(dataset, seed)


def _without_end(dataset: Any, args: MDMTrainingArguments) -> Any:
    """Let a stream of unknown length begin anew at its end."""
    if not isinstance(dataset, torch.utils.data.IterableDataset) or has_length(dataset):
        return dataset
    for name in ("save_strategy", "eval_strategy", "logging_strategy"):
        if getattr(args, name) == "epoch":
            raise ValueError(
                f"{name}='epoch', but nobody knows how many steps an epoch of a stream has: use "
                f"{name}='steps'."
            )
    if args.accelerator_config.dispatch_batches is None:
        # Batches of different tasks differ in shape: no process can cut another's out of its own.
        args.accelerator_config.dispatch_batches = False
    return dataset if isinstance(dataset, EndlessStream) else EndlessStream(dataset, args.data_seed)


def _not_saved_message(final: Path, error: Exception, previous: str | None) -> str:
    message = f"the checkpoint {final} could not be written ({error}) and was removed. "
    if previous is None:
        return message + "There is no earlier one: make room on the disk and start again."
    return message + (
        f"The previous one, {previous}, is whole: make room on the disk and go on from it with "
        f"resume_from_checkpoint={previous!r}."
    )
