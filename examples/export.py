# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint as a repository of the Hub: weights, code, processor and card, ready to load.

    python examples/export.py --checkpoint examples/checkpoints/mdm-fashion --output_dir outputs/hub
    python examples/export.py --checkpoint runs/mine --output_dir outputs/hub --push_to_hub me/mine

What it writes loads with `trust_remote_code=True` where this project is not installed. The
checkpoints in `examples/` hold no code, for it lies beside them: `--code false` writes that form.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from transformers import HfArgumentParser

from modeling_mdm import MDMForJointGeneration, MDMProcessor

CODE_FIELDS = ("auto_map", "custom_pipelines")


@dataclass
class Arguments:
    """What to export, and to where."""

    checkpoint: str = field(metadata={"help": "folder or Hub id of a model with its processor"})
    output_dir: str = field(metadata={"help": "folder to write, made if it does not exist"})
    code: bool = field(default=True, metadata={"help": "false: weights and settings alone"})
    push_to_hub: str | None = field(default=None, metadata={"help": "Hub id to upload to as well"})
    private: bool = field(default=False, metadata={"help": "make a new Hub repository private"})


def export(checkpoint: str, output_dir: str, code: bool = True) -> Path:
    """Write a folder that stands alone.

    Args:
        checkpoint: folder or Hub id of a model with its processor; a `README.md` in a folder is
            taken along as the model card.
        output_dir: folder to write.
        code: False leaves the code out, and every mention of it.

    Returns:
        The folder.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    card = Path(checkpoint) / "README.md"
    if card.is_file():
        shutil.copyfile(card, folder / card.name)
    MDMForJointGeneration.from_pretrained(checkpoint).save_pretrained(folder)
    MDMProcessor.from_pretrained(checkpoint).save_pretrained(folder)
    if not code:
        remove_code(folder)
    return folder


def remove_code(folder: Path) -> None:
    """Delete the code in a saved folder and what names it."""
    for path in folder.glob("*.py"):
        path.unlink()
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        settings = json.loads(path.read_text(encoding="utf-8"))
        for part in (settings, settings.get("image_processor", {})):
            for code_field in CODE_FIELDS:
                part.pop(code_field, None)
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Export, and upload where asked."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    folder = export(args.checkpoint, args.output_dir, args.code)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if args.push_to_hub is not None:
        api = HfApi()
        repository = api.create_repo(args.push_to_hub, private=args.private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository.repo_id)
        print(f"uploaded to {repository}")


if __name__ == "__main__":
    main()
