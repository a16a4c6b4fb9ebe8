# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A long sequence: scenes of 64 x 64 in patches of 2, 1,024 patches and their words, by two mixers.

    python examples/long_task.py --dataset runs/emoji-64

trains Mamba-2 (12 blocks, the four scans in turn) and the Transformer of about as many parameters
(half as many blocks of attention) for the same steps on the same items with the same noise, and
compares their losses and the seconds of a step. 100 steps at least say something on a CPU,
`--steps 200` on a GPU. Cut off, it goes on with the mixer that is missing.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="train")

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from project_commands import ROOT, run_command

from mdm_cli.places import require_place, require_writable, require_writable_file
from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.data.archives import folder_of
from modeling_mdm.evaluation.writing import circumstances, markdown, write_json
from modeling_mdm.planning.states import model_sizes
from modeling_mdm.precision import default_device, use_bfloat16
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.command_line import bf16_argument, read_command_line

MIXERS: dict[str, tuple[str, ...]] = {
    "mamba2": (),
    "attention": ("mixer=attention", "num_hidden_layers=6"),
}
LOSSES = ("loss", "loss_se_image", "loss_se_text")


@dataclass
class LongTaskArguments:
    """What is trained, how long, and where it goes."""

    dataset: str = field(
        metadata={"help": "What examples/data/emoji_world.py makes: its folder, or its tar file."}
    )
    steps: int = field(default=100, metadata={"help": "Steps of each mixer, at least 4."})
    batch_size: int = field(default=4, metadata={"help": "Scenes a step."})
    image_size: int = field(default=64, metadata={"help": "Side of the pictures, in pixels."})
    patch_size: int = field(default=2, metadata={"help": "Side of a patch."})
    config_overrides: list[str] = field(
        default_factory=list, metadata={"help": "More fields of both models, as name=value."}
    )
    bf16: str = bf16_argument()
    seed: int = field(default=0, metadata={"help": "Seed of weights, items and noise."})
    folder: str = field(default="runs/long-task", metadata={"help": "Folder of both runs."})
    output: str = field(
        default="benchmarks/results/long_task.json", metadata={"help": "The JSON file."}
    )

    def __post_init__(self) -> None:
        self.bf16 = use_bfloat16(self.bf16, default_device())
        if self.steps < 4:
            raise ValueError(f"steps={self.steps} must be >= 4: the last quarter is compared.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be >= 1.")
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size={self.patch_size} must divide image_size={self.image_size}."
            )


def write_scenes(dataset: str, folder: Path) -> Path:
    """Write the scenes of the training split alone, as Parquet."""
    import datasets

    target = folder / "scenes" / "data" / "train-00000-of-00001.parquet"
    if not target.is_file():
        place = folder_of(dataset)
        require_place("dataset", place)
        rows = datasets.load_dataset(place, split="train")
        layouts = rows["layout"]
        scenes = rows.select([n for n, layout in enumerate(layouts) if layout != "single"])
        target.parent.mkdir(parents=True, exist_ok=True)
        scenes.to_parquet(str(target))
    return folder / "scenes"


def write_processor(chosen: LongTaskArguments, folder: Path) -> Path:
    """Write the processor of the emoji world for other pictures and patches."""
    processor = MDMProcessor.from_pretrained(ROOT / "processing" / "mdm-emoji")
    size = processor.image_processor.size
    side = {"height": chosen.image_size, "width": chosen.image_size}
    processor.image_processor.size = type(size)(**side)
    processor.patch_size = chosen.patch_size
    processor.save_pretrained(folder / "processor")
    return folder / "processor"


def _train(chosen: LongTaskArguments, mixer: str, scenes: Path, processor: Path) -> dict[str, Any]:
    """Train one mixer, unless that is done, and give what its steps logged.

    Raises:
        RuntimeError: it failed.
    """
    output = Path(chosen.folder).resolve() / mixer
    state = output / "trainer_state.json"
    overrides = [f"image_size={chosen.image_size}", f"patch_size={chosen.patch_size}"]
    # As many numbers as the pixels of a patch of 2 have, and a few more for words.
    overrides += ["latent_dim=16", "image_decoder_layers=0", "use_mode_head=false"]
    if not state.is_file():
        run_command(
            *("examples/train.py", "--config", "configuration/mdm-emoji"),
            *("--processor", processor, "--dataset", scenes, "--columns", "text=captions"),
            *("--leave_out_long", "true", "--max_steps", chosen.steps, "--logging_steps", 1),
            *("--per_device_train_batch_size", chosen.batch_size, "--learning_rate", 1e-3),
            *("--warmup_steps", max(1, chosen.steps // 10), "--seed", chosen.seed),
            *("--bf16", str(chosen.bf16).lower(), "--eval_strategy", "no", "--save_strategy", "no"),
            *("--report_to", "none", "--dataloader_num_workers", 0, "--output_dir", output),
            *("--config_overrides", *overrides, *MIXERS[mixer], *chosen.config_overrides),
        )
    log = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return figures([row for row in log if "loss_se_image" in row], chosen.batch_size) | {
        "num_parameters": model_sizes(MDMConfig.from_pretrained(output)).numel
    }


def figures(rows: Sequence[Mapping[str, float]], batch_size: int) -> dict[str, Any]:
    """Take the steps of a run together: losses of the last quarter, seconds of the later half."""
    last, later = rows[-max(1, len(rows) // 4) :], rows[len(rows) // 2 :]
    return {
        **{name: mean(row[name] for row in last) for name in LOSSES},
        "seconds_a_step": median(batch_size / row["samples_per_second"] for row in later),
        "steps": len(rows),
    }


def parse(argv: Sequence[str]) -> tuple[LongTaskArguments]:
    """Read the command line."""
    return read_command_line(
        [LongTaskArguments], argv, __doc__, prog="python examples/long_task.py"
    )


def run(chosen: LongTaskArguments) -> dict[str, Any]:
    """Train both, compare, write and return the figures."""
    require_writable_file("output", chosen.output)
    require_writable("folder", chosen.folder)
    folder = Path(chosen.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    scenes, processor = write_scenes(chosen.dataset, folder), write_processor(chosen, folder)
    found = {mixer: _train(chosen, mixer, scenes, processor) for mixer in MIXERS}
    patches = (chosen.image_size // chosen.patch_size) ** 2
    settings = {k: v for k, v in asdict(chosen).items() if k not in ("folder", "dataset", "output")}
    device = default_device()
    content = {
        "settings": settings | {"patches": patches},
        **circumstances(device, chosen.bf16),
        "mixers": found,
    }
    write_json(chosen.output, content)
    rows = [("mixer", "parameters", *LOSSES, "seconds a step")]
    for mixer, one in found.items():
        losses = (f"{one[name]:.4g}" for name in LOSSES)
        rows.append((mixer, f"{one['num_parameters']:,}", *losses, f"{one['seconds_a_step']:.2f}"))
    print("\n".join(markdown(rows)))
    return content
