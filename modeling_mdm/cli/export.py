# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint as a repository of the Hub: weights, code, processor and card, ready to load.

    mdm export --checkpoint runs/mine --output_dir outputs/hub
    mdm export --checkpoint runs/mine --output_dir outputs/hub --push_to_hub me/mine

What it writes loads with `trust_remote_code=True` where this package is not installed; with
`--code false` it has no code, for readers that have the package.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from mdm_cli.places import require_writable
from modeling_mdm import MDMConfig, MDMForJointGeneration, MDMProcessor
from modeling_mdm.training.carried_code import remove_code
from modeling_mdm.training.command_line import read_command_line
from modeling_mdm.training.ema import has_average, load_averaged_weights
from modeling_mdm.training.loading import load_pretrained
from modeling_mdm.training.sharded import is_sharded, load_weights


@dataclass
class ExportArguments:
    """What to export, and to where."""

    checkpoint: str = field(
        metadata={"help": "folder or Hub id of a model with its processor, or of adapters"}
    )
    output_dir: str = field(metadata={"help": "folder to write, made if it does not exist"})
    code: bool = field(default=True, metadata={"help": "false: weights and settings alone"})
    push_to_hub: str | None = field(default=None, metadata={"help": "Hub id to upload to as well"})
    private: bool = field(default=False, metadata={"help": "make a new Hub repository private"})
    json: bool = field(default=False, metadata={"help": "print what was written as JSON"})


load_model = partial(load_pretrained, MDMForJointGeneration)


def load_whole(checkpoint: str) -> Any:
    """Load a model, from a checkpoint in parts too."""
    if not is_sharded(checkpoint):
        return load_model("checkpoint", checkpoint)
    model = MDMForJointGeneration(load_pretrained(MDMConfig, "checkpoint", checkpoint))
    load_weights(model, checkpoint)
    return model


def holds_adapters(checkpoint: str) -> bool:
    """Tell adapters from a whole model."""
    folder = Path(checkpoint)
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def load_merged(checkpoint: str) -> Any:
    """Load the model that adapters are for, and merge them into it."""
    import peft

    config = peft.PeftConfig.from_pretrained(checkpoint)
    options = {"use_mode_head": True} if "mode_head" in (config.modules_to_save or ()) else {}
    base = load_model("base model of checkpoint", config.base_model_name_or_path, **options)
    model = peft.PeftModel.from_pretrained(base, checkpoint, is_trainable=True)
    return take_average(model, checkpoint).merge_and_unload()


def take_average(model: Any, checkpoint: str) -> Any:
    """Put the averaged weights into a model, where they lie beside it, as in what a run leaves."""
    if has_average(checkpoint):
        load_averaged_weights(model, checkpoint)
    return model


def export(checkpoint: str, output_dir: str, code: bool = True) -> Path:
    """Write a folder that stands alone.

    Args:
        checkpoint: folder or Hub id of a model with its processor, the folder of a run or one of
            its checkpoints, of which the averaged weights are taken if it has any. Adapters are
            merged into their model. A `README.md` in the folder of a model is taken along as the
            model card.
        output_dir: folder to write.
        code: False leaves the code out, and every mention of it.

    Returns:
        The folder.

    Raises:
        OSError: if the checkpoint is missing, or the folder cannot be written to.
    """
    require_writable("output_dir", output_dir)
    merges = holds_adapters(checkpoint)
    if merges:
        model = load_merged(checkpoint)
    else:
        model = take_average(load_whole(checkpoint), checkpoint)
    processor = load_pretrained(MDMProcessor, "checkpoint", checkpoint)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    card = Path(checkpoint) / "README.md"
    if card.is_file() and not merges:
        shutil.copyfile(card, folder / card.name)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if not code:
        remove_code(folder)
    return folder


def parse(
    argv: Sequence[str], description: str | None = __doc__, prog: str | None = None
) -> tuple[ExportArguments]:
    """Read the command line; `description` and `prog` are what `--help` shows."""
    return read_command_line((ExportArguments,), argv, description, prog)


def run(chosen: ExportArguments) -> None:
    """Export, and upload where asked."""
    folder = export(chosen.checkpoint, chosen.output_dir, chosen.code)
    files = sorted(path.name for path in folder.iterdir())
    repository = None
    if chosen.push_to_hub is not None:
        api = HfApi()
        repository = api.create_repo(chosen.push_to_hub, private=chosen.private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository.repo_id)
    if chosen.json:
        uploaded = None if repository is None else str(repository)
        print(json.dumps({"folder": str(folder), "files": files, "uploaded": uploaded}, indent=2))
        return
    print(f"{folder}: {', '.join(files)}")
    if repository is not None:
        print(f"uploaded to {repository}")


def main(argv: Sequence[str] | None = None, description: str | None = __doc__) -> None:
    """Export as the command line says."""
    run(*parse(sys.argv[1:] if argv is None else argv, description))
