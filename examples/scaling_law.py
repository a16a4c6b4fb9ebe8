# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What it costs to learn: a scaling law of weights and items, measured small.

::

    python examples/scaling_law.py --data_dir FOLDER --dry_run true
    python examples/scaling_law.py --data_dir FOLDER

trains every size for every budget of items by one recipe, and at the middle budget a Transformer of
about as many weights (half as many blocks of attention); measures each on held-out items (score
entropies, fixed noise, averaged weights) and by a judge; fits L(N, D) = E + A N^-a + B D^-b, and
writes JSON, plots and a page. Cut off, it goes on where it was; what is measured is never made
again. `--sizes` and `--budgets` do a part of it: results of earlier parts in `folder` are kept, and
count. `--recipe examples/configs/digits.yaml` trains on something else.

Of every size alike: batch, seed, shares of warm-up and decay, the average of the weights, whose
reach grows with the run (a tenth of it, up to 90,000 steps), and the rule of the learning rate.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="eval")

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from project_commands import ROOT, run_command
from scaling_report import draw, gather, page, tables
from scaling_runs import Costs, Run, read_size

from mdm_cli.places import require_file, require_writable, require_writable_file
from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.evaluation.writing import circumstances, write_json
from modeling_mdm.precision import default_device, use_bfloat16
from modeling_mdm.training.command_line import (
    bf16_argument,
    pairs,
    read_command_line,
    read_values,
)
from modeling_mdm.training.loading import load_pretrained

RECIPE = ROOT / "examples" / "configs" / "fashion_mnist.yaml"
SIZES = ["32x4", "64x4", "96x8", "192x8"]  # about 0.1, 0.3, 1 and 3 M weights
BUDGETS = [25_000, 100_000, 400_000]
REFERENCE_WIDTH = 192  # whose learning rate is `learning_rate`
EMA_DECAY = 0.9999
# What a result hangs on beside size, budget and recipe.
SETTINGS = ("batch_size", "learning_rate", "warmup_share", "decay_share", "seed", "eval_limit")
SETTINGS += ("num_judged", "guidance_scale", "num_inference_steps", "bf16")


@dataclass
class ScalingArguments:
    """What is trained and measured, and where it goes."""

    sizes: list[str] = field(
        default_factory=lambda: list(SIZES), metadata={"help": "of models, as WIDTHxBLOCKS"}
    )
    budgets: list[int] = field(
        default_factory=lambda: list(BUDGETS), metadata={"help": "items that a run trains on"}
    )
    transformer_items: int | None = field(
        default=None,
        metadata={"help": "budget of the Transformers; None: the middle one named, 0: none"},
    )
    recipe: str = field(
        default=str(RECIPE),
        metadata={
            "help": "YAML file of examples/train.py: model, data and tasks are taken from it"
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "folder of Fashion-MNIST's IDX files (None: the Hub)"}
    )
    batch_size: int = field(default=64, metadata={"help": "items of a step"})
    learning_rate: float = field(
        default=1e-3,
        metadata={
            "help": f"at width {REFERENCE_WIDTH}; else times ({REFERENCE_WIDTH} / width)^0.5"
        },
    )
    warmup_share: float = field(default=0.05, metadata={"help": "of a run's steps"})
    decay_share: float = field(default=0.2, metadata={"help": "of a run's steps, the last ones"})
    seed: int = field(default=0, metadata={"help": "of training and samples"})
    eval_limit: int = field(default=2000, metadata={"help": "held-out items, the first"})
    num_judged: int = field(
        default=500, metadata={"help": "pictures and captions that are judged; 0: none"}
    )
    judge: str | None = field(
        default=None,
        metadata={
            "help": "its folder; None: the shipped one of Fashion-MNIST, else one is trained"
        },
    )
    judge_epochs: int = field(default=60, metadata={"help": "of a judge that is trained"})
    guidance_scale: float = field(default=3.0, metadata={"help": "of text to image"})
    num_inference_steps: int = field(default=30, metadata={"help": "sampling steps"})
    bf16: str = bf16_argument()
    draws: int = field(default=200, metadata={"help": "fits to drawn runs, for the intervals"})
    dry_run: bool = field(default=False, metadata={"help": "only say what would be run"})
    flops_per_second: float | None = field(
        default=None, metadata={"help": "of this machine: --dry_run then says hours"}
    )
    folder: str = field(default="runs/scaling-law", metadata={"help": "folder of all runs"})
    output: str = field(
        default="benchmarks/results/scaling_law.json", metadata={"help": "the JSON file"}
    )
    plot: str = field(default="docs/scaling_law.png", metadata={"help": "the plots, a PNG file"})
    page: str = field(default="docs/scaling_law.md", metadata={"help": "the page, Markdown"})

    def __post_init__(self) -> None:
        self.bf16 = use_bfloat16(self.bf16, default_device())
        for name in ("batch_size", "eval_limit", "num_inference_steps", "judge_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1.")
        if self.num_judged < 0:
            raise ValueError(f"num_judged={self.num_judged} must be >= 0; 0 judges nothing.")
        if self.draws < 2:
            raise ValueError(f"draws={self.draws} make no interval: use at least 2, better 200.")
        for name in ("learning_rate", "flops_per_second"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name}={value} must be more than 0.")
        shares = (self.warmup_share, self.decay_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"warmup_share={shares[0]} and decay_share={shares[1]} must be >= 0, and at most 1 "
                "together."
            )
        self._check_runs()

    def _check_runs(self) -> None:
        for size in self.sizes:
            read_size(size)
        budgets = [*self.budgets, *([self.transformer_items] if self.transformer_items else [])]
        for budget in budgets:
            if budget < 2 * self.batch_size:
                raise ValueError(
                    f"budgets={budget} is less than two steps of batch_size={self.batch_size}: use "
                    f"at least {2 * self.batch_size}."
                )
        for name in ("sizes", "budgets"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name}={given}: name at least one, and each once.")
        steps = [budget // self.batch_size for budget in self.budgets]
        if len(set(steps)) < len(steps):
            raise ValueError(
                f"budgets={self.budgets} are {steps} steps of batch_size={self.batch_size}: leave "
                "out those that are as long as another."
            )


def read_recipe(chosen: ScalingArguments) -> dict[str, Any]:
    """Read the recipe.

    Raises:
        ValueError: it holds nothing out, is of a stream, or cannot be judged. OSError: it is none.
    """
    require_file("recipe", chosen.recipe)
    recipe = read_values(Path(chosen.recipe))
    if missing := [name for name in ("config", "dataset") if not recipe.get(name)]:
        raise ValueError(f"recipe={chosen.recipe!r} has no {' and no '.join(missing)}: add it.")
    if not recipe.get("eval_split") and not recipe.get("eval_share"):
        raise ValueError(
            f"recipe={chosen.recipe!r} holds no items out: add `eval_split: NAME`, or `eval_share: "
            "0.05`; a stream has none."
        )
    if chosen.num_judged and not (recipe.get("captions") and recipe.get("eval_split")):
        raise ValueError(
            f"recipe={chosen.recipe!r} has no `captions` and `eval_split`, by which a judge tells "
            "classes: add them, or judge nothing by --num_judged 0."
        )
    return recipe


def _here(place: str) -> str:
    """Where a place of a recipe is, as seen from this project's folder."""
    return str(ROOT / place) if (ROOT / place).exists() else place


def make_runs(chosen: ScalingArguments, recipe: dict[str, Any]) -> list[Run]:
    """List the runs, the cheapest first."""
    base = load_pretrained(MDMConfig, "config", _here(recipe["config"]))
    own = pairs("config_overrides", recipe.get("config_overrides"))
    base = MDMConfig(**{**base.to_dict(), **{n: v for n, v in own.items() if v != "auto"}})
    middle = sorted(chosen.budgets)[len(chosen.budgets) // 2]
    if chosen.transformer_items is not None:
        middle = chosen.transformer_items
    wanted = [("mamba2", budget) for budget in chosen.budgets]
    wanted += [("attention", middle)] if middle else []
    runs = [
        Run(*read_size(size), mixer, budget // chosen.batch_size, chosen.batch_size, base)
        for size in chosen.sizes
        for mixer, budget in wanted
    ]
    return sorted(runs, key=Run.flops)


def settings_of(chosen: ScalingArguments, recipe: dict[str, Any]) -> dict[str, Any]:
    """Everything that a result hangs on beside its size and budget."""
    own = {name: getattr(chosen, name) for name in SETTINGS}
    judge = None if chosen.judge is None else str(chosen.judge)
    content = {"recipe": recipe, "judge": judge, "ema_decay": EMA_DECAY, **own}
    return json.loads(json.dumps(content))  # as it is read back


def command_of(chosen: ScalingArguments) -> str:
    """The command of all runs, as the page shows it."""
    words, recipe = ["python examples/scaling_law.py"], Path(chosen.recipe).resolve()
    if recipe != RECIPE:
        place = recipe.relative_to(ROOT) if recipe.is_relative_to(ROOT) else recipe
        words.append(f"--recipe {shlex.quote(place.as_posix())}")
    words += [] if chosen.data_dir is None else ["--data_dir FOLDER"]
    for name, usual in (("sizes", SIZES), ("budgets", BUDGETS)):
        if (given := getattr(chosen, name)) != usual:
            words.append(f"--{name} {' '.join(map(str, given))}")
    return " ".join(words)


def training_words(
    chosen: ScalingArguments, recipe: dict[str, Any], run: Run, output: Path
) -> list[Any]:
    """Words of examples/train.py for a run."""
    rate = chosen.learning_rate * (REFERENCE_WIDTH / run.width) ** 0.5
    decay = {"num_decay_steps": round(chosen.decay_share * run.steps)}
    own = pairs("config_overrides", recipe.get("config_overrides"))
    overrides = [f"{n}={json.dumps(v)}" for n, v in {**own, **run.overrides}.items()]
    return [
        *("examples/train.py", Path(chosen.recipe).resolve(), "--output_dir", output),
        *(() if chosen.data_dir is None else ("--data_dir", Path(chosen.data_dir).resolve())),
        *("--resume_from_checkpoint", "last", "--max_steps", run.steps),
        *("--per_device_train_batch_size", run.batch_size, "--gradient_accumulation_steps", 1),
        *("--learning_rate", rate, "--lr_scheduler_type", "warmup_stable_decay"),
        *("--warmup_steps", round(chosen.warmup_share * run.steps)),
        *("--lr_scheduler_kwargs", json.dumps(decay), "--ema_decay", EMA_DECAY),
        *("--eval_strategy", "steps", "--eval_steps", run.steps, "--num_samples", 0),
        *("--eval_limit", chosen.eval_limit, "--save_steps", max(1, run.steps // 8)),
        *("--save_total_limit", 1, "--logging_steps", max(1, run.steps // 20)),
        *("--report_to", "none", "--seed", chosen.seed, "--bf16", str(chosen.bf16).lower()),
        *("--config_overrides", *overrides),
    ]


def _losses(chosen: ScalingArguments, recipe: dict[str, Any], run: Run, output: Path) -> Any:
    """Train, unless that is done, and give what was measured at the last step.

    Raises:
        RuntimeError: it failed, or ended early.
    """
    state = output / "trainer_state.json"
    if not state.is_file():
        run_command(*training_words(chosen, recipe, run, output))
    content = json.loads(state.read_text(encoding="utf-8"))
    found = [row for row in content["log_history"] if "eval_loss_se_image" in row]
    if not found or found[-1]["step"] != run.steps:
        raise RuntimeError(
            f"{output} was trained for {content['global_step']} of {run.steps} steps, without an "
            "evaluation of the last one: remove that folder and start again."
        )
    return {name: found[-1][f"eval_{name}"] for name in ("loss", "loss_se_image", "loss_se_text")}


def _judge(chosen: ScalingArguments, recipe: dict[str, Any], folder: Path) -> Path:
    """Find the judge, or train it."""
    if chosen.judge is not None:
        return Path(chosen.judge).resolve()
    if recipe["dataset"] == "fashion_mnist":
        return ROOT / "examples" / "checkpoints" / "fashion-judge"
    if not (folder / "judge" / "judge.json").is_file():
        run_command(
            *("-m", "modeling_mdm.evaluation.judge", "--dataset", recipe["dataset"]),
            *("--mirror", "false", "--num_epochs", chosen.judge_epochs),
            *("--output_dir", folder / "judge"),
        )
    return folder / "judge"


def _judged(chosen: ScalingArguments, recipe: dict[str, Any], output: Path) -> dict[str, Any]:
    """What a judge says of the pictures, and captions that are right."""
    run_command(
        *("examples/evaluate.py", "--checkpoint", output, "--dataset", recipe["dataset"]),
        *(() if chosen.data_dir is None else ("--data_dir", Path(chosen.data_dir).resolve())),
        *("--captions", recipe["captions"], "--judge", _judge(chosen, recipe, output.parent)),
        *("--split", recipe["eval_split"], "--tasks", "text_to_image", "captioning"),
        *("--num_samples", chosen.num_judged, "--limit", chosen.num_judged),
        *("--guidance_scale", chosen.guidance_scale, "--seed", chosen.seed),
        *("--num_inference_steps", chosen.num_inference_steps, "--device", default_device()),
        *("--bf16", str(chosen.bf16).lower(), "--output", output / "judged.json"),
    )
    found = json.loads((output / "judged.json").read_text(encoding="utf-8"))["figures"]
    tasks = {"text_to_image": found["text_to_image"][0], "captions": found["captioning"]}
    return {
        task: {name: one[name] for name in ("share_right", "num_samples")}
        for task, one in tasks.items()
    }


def measure(
    chosen: ScalingArguments, recipe: dict[str, Any], run: Run, settings: dict[str, Any]
) -> None:
    """Train and measure one run, unless that is done."""
    output = Path(chosen.folder).resolve() / run.name
    if (output / "result.json").is_file():
        return
    write_json(output / "settings.json", settings)
    content: dict[str, Any] = {"mixer": run.mixer, "size": f"{run.width}x{run.blocks}"}
    content |= {"weights": run.weights, "items": run.items, "flops": run.flops()}
    content["losses"] = _losses(chosen, recipe, run, output)
    content["judged"] = _judged(chosen, recipe, output) if chosen.num_judged else None
    write_json(output / "result.json", content)


def results(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Read all results of a folder, in the order of mixer, weights and items.

    Raises:
        ValueError: a run was made, or begun, with other settings.
    """
    found = []
    for file in sorted(folder.glob("*/settings.json")):
        before = json.loads(file.read_text(encoding="utf-8"))
        if differing := sorted(n for n in settings if before.get(n) != settings[n]):
            raise ValueError(
                f"folder={str(folder)!r} holds a run of other settings ({file.parent.name}: "
                f"{', '.join(f'{n}={before.get(n)!r}' for n in differing)}): use these, or another "
                "folder."
            )
        result = file.with_name("result.json")
        if result.is_file():
            found.append(json.loads(result.read_text(encoding="utf-8")))
    return sorted(found, key=lambda one: (one["mixer"] != "mamba2", one["weights"], one["items"]))


def parse(argv: Sequence[str]) -> tuple[ScalingArguments]:
    """Read the command line."""
    return read_command_line(
        [ScalingArguments], argv, __doc__, prog="python examples/scaling_law.py"
    )


def run(chosen: ScalingArguments) -> dict[str, Any]:
    """Train, measure, fit, write; return the content of the JSON file, of a dry run {}."""
    recipe = read_recipe(chosen)
    runs, settings = make_runs(chosen, recipe), settings_of(chosen, recipe)
    folder = Path(chosen.folder).resolve()
    results(folder, settings)  # refuses those of other settings before hours of training
    if chosen.dry_run:
        costs = Costs(
            chosen.eval_limit,
            chosen.num_judged,
            chosen.num_inference_steps,
            chosen.flops_per_second,
        )
        done = [(folder / one.name / "result.json").is_file() for one in runs]
        print("\n".join(costs.table(runs, done)))
        return {}
    for name in ("output", "plot", "page"):
        require_writable_file(name, getattr(chosen, name))
    require_writable("folder", chosen.folder)
    for one in runs:
        measure(chosen, recipe, one, settings)
    found = results(folder, settings)
    content = gather(found, settings, command_of(chosen), chosen.draws, chosen.seed)
    content |= circumstances(default_device(), chosen.bf16)
    write_json(chosen.output, content)
    draw(content, chosen.plot)
    Path(chosen.page).parent.mkdir(parents=True, exist_ok=True)
    link = os.path.relpath(chosen.plot, Path(chosen.page).parent)
    Path(chosen.page).write_text(page(content, Path(link).as_posix()), encoding="utf-8")
    print("\n".join(tables(content)))
    return content
