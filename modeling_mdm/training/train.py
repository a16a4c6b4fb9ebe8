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
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from transformers import set_seed
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from mdm_cli.interrupts import unwinding
from mdm_cli.places import require_file, require_writable
from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.data.damage import MAX_SKIPPED, MAX_SKIPPED_HELP
from modeling_mdm.data.lengths import check_text, check_texts
from modeling_mdm.data.pictures import PictureDataset, load_training_data
from modeling_mdm.data.streams import MixedStream, read_recipe
from modeling_mdm.data.tasks import DEFAULT_WEIGHTS, TASKS, MDMDataCollator, TaskMixture
from modeling_mdm.matching import check_processor
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.checkpoints import how_to_go_on, last_whole_checkpoint, list_checkpoints
from modeling_mdm.training.command_line import read_command_line
from modeling_mdm.training.loading import load_pretrained
from modeling_mdm.training.trainer import MDMTrainer, MDMTrainingArguments

# Of `DataArguments`, what a recipe of streams has no use for.
_NOT_FOR_STREAMS = (
    *("data_dir", "train_split", "eval_split", "eval_share", "captions", "columns"),
    *("augment", "limit", "eval_limit"),
)
UNTRAINED = "untrained"
DEFAULT_TASKS = [f"{name}={weight}" for name, weight in DEFAULT_WEIGHTS.items()]


@dataclass
class ModelArguments:
    """What is trained."""

    config: str = field(
        metadata={
            "help": "A folder or Hub id with config.json, such as configuration/mdm-fashion: a new "
            "model is made. If it also holds weights, training goes on from them."
        }
    )
    processor: str | None = field(
        default=None, metadata={"help": "The processor's folder or Hub id, if not that of config."}
    )
    config_overrides: list[str] | None = field(
        default=None,
        metadata={
            "help": "Fields of a new model's config, as name=value; values are YAML. `auto` takes "
            "what the processor says: vocab_size=auto."
        },
    )
    vq_model: str | None = field(
        default=None,
        metadata={
            "help": "Where a config with vq_config gets its trained VQ-VAE: a folder or Hub id of "
            f"one, or of a whole model that has it; '{UNTRAINED}' takes random codes, for tests."
        },
    )


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset: str = field(
        metadata={
            "help": "'digits', 'fashion_mnist', a folder, the id of a data set on the Hub with an "
            "image column and a text and/or label column, or a YAML file that names several to "
            "stream, such as configuration/data/paper.yaml."
        }
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "For fashion_mnist: the folder with its four IDX files."}
    )
    train_split: str = field(default="train", metadata={"help": "The split to train on."})
    eval_split: str | None = field(
        default=None,
        metadata={"help": "The split to evaluate on, with --eval_strategy steps; None for none."},
    )
    eval_share: float = field(
        default=0.0,
        metadata={
            "help": "Without an eval_split: hold out this share of the training split, the same "
            "items in every run, and evaluate on it; 0 holds out none."
        },
    )
    captions: str | None = field(
        default=None,
        metadata={"help": "A JSON table of names and templates; labelled pictures get captions."},
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Columns by role, as role=column; roles are image, text, label."},
    )
    augment: bool = field(default=False, metadata={"help": "Flip and shift training pictures."})
    limit: int | None = field(default=None, metadata={"help": "Train on the first items only."})
    eval_limit: int | None = field(
        default=None, metadata={"help": "Evaluate on the first items only."}
    )
    max_skipped: float = field(default=MAX_SKIPPED, metadata={"help": MAX_SKIPPED_HELP})
    truncation: bool = field(
        default=False, metadata={"help": "Cut texts that are longer than the model's text region."}
    )
    tasks: list[str] = field(
        default_factory=lambda: list(DEFAULT_TASKS),
        metadata={
            "help": f"How often each task is drawn, as task=weight. Tasks: {', '.join(TASKS)}."
        },
    )


def pairs(argument: str, values: list[str] | dict[str, Any] | None) -> dict[str, Any]:
    """Turn name=value strings (command line) or a mapping (YAML) into a dictionary.

    Raises:
        ValueError: if a string has no `=`.
    """
    if values is None or isinstance(values, dict):
        return dict(values or {})
    if malformed := [value for value in values if "=" not in value]:
        raise ValueError(f"{argument} holds {malformed}: write name=value.")
    return {name: yaml.safe_load(value) for name, value in (part.split("=", 1) for part in values)}


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


def holds_weights(place: str) -> bool:
    """Tell whether a folder or a repository of the Hub has weights beside its config.

    Raises:
        ValueError: if nothing is known of the repository's weights and the Hub cannot be asked.
    """
    if Path(place).is_dir():
        return any(Path(place).glob("*.safetensors*"))
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    if any(cached_file(place, n, _raise_exceptions_for_missing_entries=False) for n in names):
        return True
    # A config alone in the cache does not say that there is no more than that.
    if is_offline_mode() and any(try_to_load_from_cache(place, n) is None for n in names):
        raise ValueError(
            f"config={place!r} has no weights in the cache, and offline nobody can tell whether it "
            "has any: run once online, or name a local folder."
        )
    return False


def make_model(args: ModelArguments, processor: Any) -> MDMForJointGeneration:
    """Load the model whose weights `config` holds, or make a new one.

    Raises:
        ValueError: if the config does not fit the processor, or weights come with overrides, or
            whether there are weights is not known.
    """
    overrides = pairs("config_overrides", args.config_overrides)
    if holds_weights(args.config):
        if overrides:
            raise ValueError(
                f"config_overrides={overrides} cannot change the trained model in {args.config!r}: "
                "drop them, or name a config without weights."
            )
        model = load_pretrained(MDMForJointGeneration, "config", args.config)
    else:
        config = load_pretrained(MDMConfig, "config", args.config)
        overrides |= _of_processor(overrides, processor)
        if unknown := sorted(name for name in overrides if not hasattr(config, name)):
            raise ValueError(f"config_overrides names {unknown}, which MDMConfig does not have.")
        model = MDMForJointGeneration(MDMConfig(**{**config.to_dict(), **overrides}))
    if (size := len(processor.tokenizer)) != model.config.vocab_size:
        raise ValueError(
            f"vocab_size={model.config.vocab_size} differs from the processor's {size} words: use "
            f"the processor of this config, or config_overrides vocab_size={size}."
        )
    check_processor(processor, model.config, learns=True)
    load_vq(model, args)
    return model


def load_vq(model: MDMForJointGeneration, args: ModelArguments) -> None:
    """Give a model with a VQ-VAE the trained weights that `vq_model` names.

    Raises:
        ValueError: if it needs them and none are named, or has no use for them.
    """
    if model.vq is None or (args.vq_model and model.vq.is_loaded):
        if args.vq_model:
            reason = "reads pixels" if model.vq is None else "has a trained VQ-VAE already"
            raise ValueError(
                f"vq_model={args.vq_model!r} has no use: the model of config={args.config!r} "
                f"{reason}. Leave it out."
            )
    elif args.vq_model == UNTRAINED:
        model.vq.allow_untrained()
    elif args.vq_model:
        model.vq.load_pretrained(args.vq_model)
    elif not model.vq.is_loaded:
        raise ValueError(
            f"config={args.config!r} names a VQ-VAE ({model.vq.model_type}), which never learns: "
            "say by --vq_model NAME where its trained weights are: a folder or Hub id of one, or "
            "of a whole model that has it, such as deepseek-community/Janus-Pro-1B."
        )


def _of_processor(overrides: dict[str, Any], processor: Any) -> dict[str, Any]:
    """Find the fields that are to be as the processor has them."""
    size = processor.image_processor.size
    known = {
        "vocab_size": len(processor.tokenizer),
        "max_text_length": processor.max_text_length,
        "num_classes": processor.num_classes or 0,
        "num_channels": processor.image_processor.num_channels,
        "image_size": size.height,
        "patch_size": processor.patch_size,
    }
    return {name: value for name, value in known.items() if overrides.get(name) == "auto"}


def load_evaluation_data(args: DataArguments, seed: int) -> PictureDataset | None:
    """Load what is evaluated on: a split, what is held out of the training split, or nothing."""
    if args.eval_split is not None:
        return load_split(args, args.eval_split, args.eval_limit, False, seed)
    if args.eval_share:
        return load_split(args, args.train_split, args.eval_limit, False, seed, True)
    return None


def load_split(
    args: DataArguments,
    split: str,
    limit: int | None,
    augment: bool,
    seed: int,
    takes_held_out: bool = False,
) -> PictureDataset:
    """Load one split of the data set that the arguments describe, or the held-out share of one."""
    held_out = args.eval_share if args.eval_split is None else 0.0
    return load_training_data(
        args.dataset,
        split=split,
        data_dir=args.data_dir,
        captions=args.captions,
        columns=pairs("columns", args.columns),
        seed=seed,
        augment=augment,
        limit=limit,
        held_out=held_out,
        takes_held_out=takes_held_out,
        max_skipped=args.max_skipped,
    )


def load_stream(args: DataArguments, processor: Any, batch_size: int, seed: int) -> MixedStream:
    """Open the streams that a YAML file names, for pictures in the ratio that the model sees.

    Raises:
        ValueError: if arguments are passed that streams have no use for.
    """
    unused = {
        f.name: value
        for f in fields(args)
        if f.name in _NOT_FOR_STREAMS and (value := getattr(args, f.name)) != f.default
    }
    if unused:
        raise ValueError(
            f"{', '.join(f'{name}={value!r}' for name, value in unused.items())} cannot be used "
            f"with the streams of dataset={args.dataset!r}: leave it out. Split, columns and files "
            "of each stream stand in that recipe; streams are not evaluated on."
        )
    require_file("dataset", args.dataset)
    size = processor.image_processor.size
    return MixedStream(
        read_recipe(args.dataset),
        (size.height, size.width),
        seed,
        batch_size,
        buckets=8,
        max_skipped=args.max_skipped,
        check_text=None if args.truncation else partial(check_text, processor),
    )


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
    if data_args.dataset.endswith((".yaml", ".yml")):
        batch_size = args.per_device_train_batch_size
        train_data = load_stream(data_args, processor, batch_size, args.data_seed)
    else:
        train_data = load_split(
            data_args, data_args.train_split, data_args.limit, data_args.augment, args.data_seed
        )
    eval_data = load_evaluation_data(data_args, args.data_seed)
    if not data_args.truncation:
        for data in (train_data, eval_data):
            if isinstance(data, PictureDataset):
                check_texts(processor, data)
    mixture = TaskMixture(pairs("tasks", data_args.tasks))
    trainer = MDMTrainer(
        model=make_model(model_args, processor),
        args=args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=MDMDataCollator(processor, mixture, args.data_seed, data_args.truncation),
        processing_class=processor,
    )
    with unwinding(lambda: how_to_go_on(args.output_dir)):
        trainer.train(checkpoint)
        trainer.save_model()
        trainer.save_state()


def main(argv: Sequence[str] | None = None, description: str | None = __doc__) -> None:
    """Train as the command line says."""
    run(*parse(sys.argv[1:] if argv is None else argv, description))
