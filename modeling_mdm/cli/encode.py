# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Encode data once, before training: pictures to codes or to the model's size, words to ids.

    # a set: each split into a folder of its own, to be trained on by --dataset encoded/mine
    mdm encode --config FOLDER --processor FOLDER --vq_model NAME --dataset path/to/pictures \\
        --splits train test --output_dir encoded/mine

    # streams: --dataset encoded/paper/recipe.yaml then trains on all of them
    mdm encode --config FOLDER --processor FOLDER --vq_model NAME --dataset recipe.yaml \\
        --output_dir encoded/paper

A frozen VQ-VAE then need not run at every step. Training gives the same losses as on the data
themselves: samples keep their places, damaged ones too, and captions, tasks and noise are drawn as
ever. Codes can be neither mirrored nor shifted. The same command goes on after a kill, and refuses
a folder that was made with other settings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mdm_cli.places import require_file, require_writable
from modeling_mdm import MDMConfig, MDMProcessor
from modeling_mdm.data.damage import MAX_SKIPPED, MAX_SKIPPED_HELP, check_max_skipped
from modeling_mdm.data.encoded import Encoding, is_encoded
from modeling_mdm.data.encoding import Encoder, OfSet, OfStream, encode_split
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.stream_sources import StreamSource, read_recipe
from modeling_mdm.precision import default_device
from modeling_mdm.training.command_line import pairs, read_command_line
from modeling_mdm.training.loading import load_pretrained, require_device
from modeling_mdm.training.new_model import holds_weights
from modeling_mdm.vae import VQFrontEnd

RECIPE = "recipe.yaml"


@dataclass
class EncodeArguments:
    """What to encode, by what, and to where."""

    config: str = field(
        metadata={"help": "folder or Hub id with the config.json of the model that is to learn"}
    )
    dataset: str = field(
        metadata={
            "help": "a set as for `mdm train --dataset`, or a YAML file that names several to "
            "stream"
        }
    )
    output_dir: str = field(metadata={"help": "folder to write; the same command goes on in it"})
    processor: str | None = field(
        default=None, metadata={"help": "the processor's folder or Hub id, if not that of config"}
    )
    vq_model: str | None = field(
        default=None,
        metadata={
            "help": "where a config with vq_config, and without weights, gets its trained VQ-VAE"
        },
    )
    splits: list[str] = field(
        default_factory=lambda: ["train"],
        metadata={"help": "splits of a set; those of streams stand in their recipe"},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "for fashion_mnist: the folder with its four IDX files"}
    )
    columns: list[str] | None = field(
        default=None, metadata={"help": "columns of a set by role, as role=column"}
    )
    shard_size: int = field(default=4096, metadata={"help": "samples of a shard"})
    batch_size: int = field(default=32, metadata={"help": "samples that are encoded at once"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ... for the VQ-VAE"})
    max_skipped: float = field(default=MAX_SKIPPED, metadata={"help": MAX_SKIPPED_HELP})
    json: bool = field(default=False, metadata={"help": "print what was encoded as JSON"})

    def __post_init__(self) -> None:
        check_max_skipped(self.max_skipped)
        for name in ("shard_size", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if not self.splits:
            raise ValueError("splits is empty: name at least one.")


def load_front_end(config: MDMConfig, place: str, vq_model: str | None) -> VQFrontEnd | None:
    """Load the VQ-VAE of a configuration: its own, where it has weights, or that of `vq_model`.

    Raises:
        ValueError: if it has none and needs one, or the other way about.
    """
    has_own = config.vq_config is not None and holds_weights(place)
    if vq_model is not None and (config.vq_config is None or has_own):
        reason = "has a trained VQ-VAE already" if has_own else "reads pixels"
        raise ValueError(
            f"vq_model={vq_model!r} has no use: the model of config={place!r} {reason}. Leave it "
            "out."
        )
    if config.vq_config is None:
        return None
    if vq_model is None and not has_own:
        raise ValueError(
            f"config={place!r} names a VQ-VAE ({config.vq_config['model_type']}): say by "
            "--vq_model NAME where its trained weights are, such as "
            "deepseek-community/Janus-Pro-1B."
        )
    front_end = VQFrontEnd(config.vq_config, config.patch_size)
    front_end.load_pretrained(place if vq_model is None else vq_model)
    return front_end


def encode_set(chosen: EncodeArguments, encoder: Encoder) -> Iterator[Encoding]:
    """Encode splits of a set, each into a folder of its name."""
    columns = pairs("columns", chosen.columns)
    for split in chosen.splits:
        data = load_training_data(
            chosen.dataset, split=split, data_dir=chosen.data_dir, columns=columns
        )
        said = {"dataset": chosen.dataset, "split": split, "columns": columns}
        folder = Path(chosen.output_dir) / split
        yield _encode(OfSet(data, said), encoder, folder, chosen)


def encode_recipe(chosen: EncodeArguments, encoder: Encoder) -> Iterator[Encoding]:
    """Encode each stream of a recipe, and write the recipe that names what they became."""
    entries = []
    size = encoder.processor.image_processor.size
    for number, source in enumerate(read_recipe(chosen.dataset)):
        if is_encoded(source.path):
            raise ValueError(f"path={source.path!r} of {chosen.dataset} is encoded already.")
        name = Path(source.path).name
        folder = Path(chosen.output_dir) / f"{number:02}-{name}"
        said = {
            "path": source.path, "name": source.name, "split": source.split,
            "data_files": source.data_files, "columns": dict(source.columns),
        }  # fmt: skip
        samples = OfStream(source, (size.height, size.width), said)
        split = source.split.replace("/", "-")
        yield _encode(samples, encoder, folder / split, chosen)
        entries.append(_entry(source, folder, split))
    path = Path(chosen.output_dir) / RECIPE
    head = f"# What `mdm encode` has made of {chosen.dataset}, in folders beside this file.\n"
    path.write_text(head + yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")


def _entry(source: StreamSource, folder: Path, split: str) -> dict[str, Any]:
    roles = [role for role in source.columns if role != "messages"]
    roles += ["prompt", "text"] if "messages" in source.columns else []
    return {
        "path": folder.name,
        "weight": source.weight,
        "split": split,
        "columns": {role: role for role in dict.fromkeys(roles)},
    }


def _encode(
    samples: OfSet | OfStream, encoder: Encoder, folder: Path, chosen: EncodeArguments
) -> Encoding:
    return encode_split(
        samples, encoder, folder, chosen.shard_size, chosen.batch_size, chosen.max_skipped
    )


def parse(
    argv: Sequence[str], description: str | None = __doc__, prog: str | None = None
) -> tuple[EncodeArguments]:
    """Read the command line; `description` and `prog` are what `--help` shows."""
    return read_command_line((EncodeArguments,), argv, description, prog)


def run(chosen: EncodeArguments) -> None:
    """Encode, and say how many samples there are and how many of them are damaged.

    Raises:
        ValueError: if arguments do not fit each other, the data, or what output_dir holds.
        OSError: if a file or folder is missing, or output_dir cannot be written to.
    """
    require_writable("output_dir", chosen.output_dir)
    device = default_device() if chosen.device == "auto" else chosen.device
    require_device("device", device)
    if is_encoded(chosen.dataset):
        raise ValueError(f"dataset={chosen.dataset!r} is encoded already: train on it.")
    is_recipe = chosen.dataset.endswith((".yaml", ".yml"))
    if is_recipe:
        require_file("dataset", chosen.dataset)
        if chosen.columns or chosen.data_dir or chosen.splits != ["train"]:
            raise ValueError(
                "columns, data_dir and splits cannot be used with the streams of "
                f"dataset={chosen.dataset!r}: leave them out. They stand in that recipe."
            )
    named = "config" if chosen.processor is None else "processor"
    processor = load_pretrained(MDMProcessor, named, getattr(chosen, named))
    config = load_pretrained(MDMConfig, "config", chosen.config)
    front_end = load_front_end(config, chosen.config, chosen.vq_model)
    if processor.patch_size != config.patch_size:
        raise ValueError(
            f"Processor and model differ: patch_size is {processor.patch_size} and "
            f"{config.patch_size}. Use a processor that was made for this config."
        )
    encoder = Encoder(processor, front_end, device)
    made = list((encode_recipe if is_recipe else encode_set)(chosen, encoder))
    rows = [
        {
            "folder": str(one.folder),
            "samples": one.samples,
            "damaged": one.damaged,
            "shards": one.shards,
        }
        for one in made
    ]
    if chosen.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print("{folder}: {samples} samples in {shards} shards, {damaged} damaged".format(**row))
    dataset = str(Path(chosen.output_dir) / RECIPE) if is_recipe else chosen.output_dir
    print(f"to train on it: --dataset {dataset}")


def main(argv: Sequence[str] | None = None, description: str | None = __doc__) -> None:
    """Encode as the command line says."""
    run(*parse(sys.argv[1:] if argv is None else argv, description))
