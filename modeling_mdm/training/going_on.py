# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trainer that goes on where a run was cut off, in a stream too, as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import find_batch_size
from transformers import TrainerState, set_seed
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from modeling_mdm.training.checkpoints import find_fault, last_whole_checkpoint
from modeling_mdm.training.passes import START, EndlessStream, Mark
from modeling_mdm.training.sharing import SharesSequences

logger = logging.get_logger(__name__)

# The place in a stream, in a checkpoint.
STREAM_FILE = "stream.pt"


class GoesOn(SharesSequences):
    """A Trainer that goes on from whole checkpoints alone: same items, same random numbers."""

    _resumed_from: str | None = None
    # In a stream, at the first step: a mark, and the items before it.
    _place: tuple[Mark, int] = (START, 0)
    _items_taken = 0  # of a stream, by all processes, in the steps so far
    _random_state_is_due = False

    def begin_run(self) -> None:
        """Do what is to be done before the first step, whether or not there is one."""

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
        try:
            with self._stream_in_place():
                output = super().train(self._resumed_from, *args, **kwargs)
        except BaseException:
            self.finish_saving(waits=False)  # the other processes may be gone
            raise
        self.finish_saving()
        return output

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

    def save_beside(self, folder: Path) -> None:
        """Write the place in a stream, where there is one."""
        super().save_beside(folder)
        stream, workers = self.train_dataset, self.args.dataloader_num_workers
        if isinstance(stream, EndlessStream) and workers <= 1 and self.args.should_save:
            mark = stream.mark_before(self._items_taken)
            torch.save({"items": self._items_taken, "mark": mark}, folder / STREAM_FILE)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Collect the batches of a step, and keep count of the items that a stream has given."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if isinstance(self.train_dataset, EndlessStream):
            self._items_taken += self.args.world_size * sum(map(find_batch_size, batches))
            self.train_dataset.mark_before(self._items_taken)
        if self._random_state_is_due:  # the loader has drawn a number since it was loaded
            self._random_state_is_due = False
            self._load_rng_state(self._resumed_from)
        return batches, num_items

    def _is_finished(self, checkpoint: str) -> bool:
        return 0 < self.args.max_steps <= _load_state(checkpoint).global_step

    def _restore_finished_run(self, checkpoint: str) -> TrainOutput:
        # transformers would take one more step before it noticed.
        logger.warning(f"{checkpoint} has reached max_steps={self.args.max_steps} already.")
        self._load_from_checkpoint(checkpoint)
        self.state = _load_state(checkpoint)
        self.begin_run()
        return TrainOutput(self.state.global_step, float("nan"), {})

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Go on with the random states of a checkpoint, where it has one for this process.

        The noise of a step hangs on no such state; what a layer drops and what a data set of one's
        own draws may. A process that the run did not have before, and every one but the first at
        the start, gets a seed of its own: with a common one, all would draw the same.
        """
        step, rank = self.state.global_step, self.args.process_index
        name = f"rng_state_{rank}.pth" if self.args.world_size > 1 else "rng_state.pth"
        if checkpoint is not None and (Path(checkpoint) / name).is_file():
            super()._load_rng_state(checkpoint)
        elif checkpoint is not None or rank > 0:
            entropy = np.random.SeedSequence((self.args.seed, step, rank))
            set_seed(int(entropy.generate_state(1)[0]))


def _load_state(checkpoint: str) -> TrainerState:
    return TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
