# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trainer whose checkpoints and models are written whole or not at all."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from modeling_mdm.training.carried_code import replace_code_by_signpost
from modeling_mdm.training.checkpoints import (
    STAGING_FOLDER,
    last_whole_checkpoint,
    publish_checkpoint,
    publish_files,
)


class SavesWhole(Trainer):
    """transformers' Trainer, which writes what it saves aside and names it when it is whole."""

    _staging: Path | None = None  # the folder of the checkpoint that is being written
    _writing: Future[Any] | None = None  # what is still written of it while the run goes on
    _unnamed: tuple[Path, Path] | None = None  # where it lies, and its folder when it is whole

    def saved_weights(self) -> AbstractContextManager[None]:
        """Have the weights in the model, inside a `with` block, that `save_model` is to save."""
        return nullcontext()

    def save_beside(self, folder: Path) -> None:
        """Write what a checkpoint holds beside transformers' own files; all processes call it."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights that are of use, the configuration and the processor.

        Files that were there before are replaced one by one when all new ones are written. Inside a
        checkpoint the weights are those that training goes on from.

        Raises:
            OSError: if the disk is full.
        """
        if self._staging is not None:
            self._write_model(str(output_dir))
            return
        final = Path(self.args.output_dir if output_dir is None else output_dir)
        staging = final / STAGING_FOLDER
        try:
            with self.saved_weights():
                self._write_model(str(staging))
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

    def _write_model(self, folder: str) -> None:
        """Write weights, configuration and processor; all processes call it."""
        super().save_model(folder, _internal_call=True)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # An upload runs in the background, so it must find the files under their final name.
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside and give it its name when it is whole.

        What is written while the run goes on is waited for before the next one.
        """
        self.finish_saving()
        run_dir = Path(self._get_output_dir(trial))
        final = run_dir / f"checkpoint-{self.state.global_step}"
        staging = run_dir / STAGING_FOLDER
        try:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            self._staging = staging
            super()._save_checkpoint(model, trial)
            self.save_beside(staging / final.name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._tidy(staging / final.name, final)
        except Exception as error:
            self._give_up(final, error)
        finally:
            self._staging = None
        self._unnamed = (staging / final.name, final)
        if self._writing is None:
            self.finish_saving()

    def finish_saving(self, waits: bool = True) -> None:
        """Give the checkpoint that is being written its name.

        Args:
            waits: until it is whole, and for the other processes, which must all call this then;
                False leaves it for the next time where it is not.

        Raises:
            OSError: if it could not be written.
        """
        writing, unnamed = self._writing, self._unnamed
        if unnamed is not None and (waits or writing is None or writing.done()):
            self._writing = self._unnamed = None
            try:
                if writing is not None:
                    writing.result()
                if self.args.should_save:
                    publish_checkpoint(*unnamed)
            except Exception as error:
                self._give_up(unnamed[1], error)
            self._after_saving(unnamed[1])
        if waits:
            self.accelerator.wait_for_everyone()

    def _after_saving(self, final: Path) -> None:
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(final.parent),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _give_up(self, final: Path, error: Exception) -> NoReturn:
        shutil.rmtree(final.parent / STAGING_FOLDER, ignore_errors=True)
        previous = last_whole_checkpoint(final.parent)
        raise OSError(_not_saved_message(final, error, previous)) from error

    def _tidy(self, staged: Path, final: Path) -> None:
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
            self.state.save_to_json(str(staged / "trainer_state.json"))
        if not self.args.push_to_hub:  # an upload takes its files from here
            replace_code_by_signpost(staged, final)
        (staged / "README.md").unlink(missing_ok=True)  # the card is that of the trained model


def _not_saved_message(final: Path, error: Exception, previous: str | None) -> str:
    message = f"the checkpoint {final} could not be written ({error}) and was removed. "
    if previous is None:
        return message + "There is no earlier one: make room on the disk and start again."
    return message + (
        f"The previous one, {previous}, is whole: make room on the disk and go on from it with "
        f"resume_from_checkpoint={previous!r}."
    )
