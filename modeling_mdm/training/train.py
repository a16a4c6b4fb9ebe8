# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Train MDM end to end (VAE and decoder together, Eq. 18) on pictures with captions or labels.

::

    # a new model: a folder with metadata.jsonl, Parquet files, or an id on the Hub
    mdm train --config FOLDER --processor FOLDER --dataset path/to/pictures --output_dir runs/mine

    # values from a file; what the command line names comes first
    mdm train run.yaml --max_steps 1000 --output_dir runs/mine

An unknown key is an error in the file and on the command line. The same command with
`--resume_from_checkpoint last` goes on where a run was cut off, and gives the losses that it would
have given. The trained model, its processor and the pictures of samples go to `output_dir`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transformers import set_seed

from mdm_cli.interrupts import unwinding
from mdm_cli.places import require_writable
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.arguments import MDMTrainingArguments
from modeling_mdm.training.checkpoints import how_to_go_on, last_whole_checkpoint, list_checkpoints
from modeling_mdm.training.command_line import read_command_line
from modeling_mdm.training.loading import load_pretrained
from modeling_mdm.training.new_model import ModelArguments, make_model
from modeling_mdm.training.run_data import (
    DataArguments,
    check_encoded_data,
    load_data,
    make_collator,
)
from modeling_mdm.training.trainer import MDMTrainer


def parse(
    argv: Sequence[str], description: str | None = __doc__, prog: str | None = None
) -> tuple[ModelArguments, DataArguments, MDMTrainingArguments]:
    """Read the command line and the YAML file that it may begin with.

    Args:
        argv: words of the command line. description, prog: what `--help` shows.

    Raises:
        ValueError: if the file or the command line names an unknown key.
        FileNotFoundError: if there is no such file.
    """
    kinds = (ModelArguments, DataArguments, MDMTrainingArguments)
    return read_command_line(kinds, argv, description, prog)


def checkpoint_to_resume(args: MDMTrainingArguments) -> str | None:
    """Return the checkpoint that `resume_from_checkpoint` asks for; `last` may find none.

    Raises:
        ValueError: if a run would be started on top of another one's checkpoints.
    """
    if args.resume_from_checkpoint == "last":
        return last_whole_checkpoint(args.output_dir)
    if args.resume_from_checkpoint is None and list_checkpoints(args.output_dir):
        raise ValueError(
            f"output_dir={args.output_dir!r} holds checkpoints of an earlier run: add "
            "--resume_from_checkpoint last to go on with it, or choose another output_dir."
        )
    return args.resume_from_checkpoint


def run(model_args: ModelArguments, data_args: DataArguments, args: MDMTrainingArguments) -> None:
    """Train, and save the model with its processor.

    Raises:
        ValueError: if the arguments do not fit each other, or an earlier run's checkpoints.
        OSError: if a file or folder is missing, or output_dir cannot be written to.
        KeyboardInterrupt: after Ctrl-C, with the way to go on.
    """
    require_writable("output_dir", args.output_dir)
    checkpoint = checkpoint_to_resume(args)
    set_seed(args.seed)
    named = "config" if model_args.processor is None else "processor"
    processor = load_pretrained(MDMProcessor, named, getattr(model_args, named))
    train_data, eval_data = load_data(data_args, processor, args.items_per_step, args.data_seed)
    model = make_model(model_args, processor)
    check_encoded_data(data_args, processor, model)
    trainer = MDMTrainer(
        model=model,
        args=args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=make_collator(data_args, processor, args.data_seed),
        processing_class=processor,
    )
    with unwinding(lambda: how_to_go_on(args.output_dir)):
        trainer.train(checkpoint)
        trainer.save_model()
        trainer.save_state()


def main(argv: Sequence[str] | None = None, description: str | None = __doc__) -> None:
    """Train as the command line says."""
    run(*parse(sys.argv[1:] if argv is None else argv, description))
