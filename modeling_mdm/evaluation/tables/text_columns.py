# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The text columns of Table 2: lm-eval's tasks on files as the data sets are distributed.

Each column is lm-eval's own task, its prompts and metrics included; only where its items lie is
ours: `DATA_ROOT/FOLDER/SPLIT.jsonl`, or `SPLIT*.parquet`, in the set's own schema.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from mdm_cli.endings import MissingExtra
from modeling_mdm.evaluation.tables.answers import Answers
from modeling_mdm.evaluation.tables.estimates import Estimate
from modeling_mdm.evaluation.tables.hub import reading
from modeling_mdm.evaluation.tables.plots import Calibration

SUBJECTS = (
    *("abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge"),
    *("college_biology", "college_chemistry", "college_computer_science", "college_mathematics"),
    *("college_medicine", "college_physics", "computer_security", "conceptual_physics"),
    *("econometrics", "electrical_engineering", "elementary_mathematics", "formal_logic"),
    *("global_facts", "high_school_biology", "high_school_chemistry"),
    *("high_school_computer_science", "high_school_european_history", "high_school_geography"),
    *("high_school_government_and_politics", "high_school_macroeconomics"),
    *("high_school_mathematics", "high_school_microeconomics", "high_school_physics"),
    *("high_school_psychology", "high_school_statistics", "high_school_us_history"),
    *("high_school_world_history", "human_aging", "human_sexuality", "international_law"),
    *("jurisprudence", "logical_fallacies", "machine_learning", "management", "marketing"),
    *("medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition"),
    *("philosophy", "prehistory", "professional_accounting", "professional_law"),
    *("professional_medicine", "professional_psychology", "public_relations"),
    *("security_studies", "sociology", "us_foreign_policy", "virology", "world_religions"),
)
MATH_KINDS = {
    "algebra": "algebra",
    "counting_and_prob": "counting_and_probability",
    "geometry": "geometry",
    "intermediate_algebra": "intermediate_algebra",
    "num_theory": "number_theory",
    "prealgebra": "prealgebra",
    "precalc": "precalculus",
}


@dataclass(frozen=True)
class TextColumn:
    """One column of lm-eval's.

    Args:
        tasks: lm-eval's tasks by the folder of their items; their figures are averaged over all
            items, as lm-eval averages a group.
        file: of a task, in lm-eval's folder of tasks, the task's name put in for {}.
        metric: the figure, with lm-eval's filter.
        split: whose items are measured.
        shots: the split that examples are drawn from; None where there are no examples.
        num_shots: how many examples come before each item.
        writes: the model writes answers, rather than scores choices.
    """

    tasks: Mapping[str, str]
    file: str
    metric: str
    split: str
    shots: str | None = None
    num_shots: int = 0
    writes: bool = False


TEXT_COLUMNS = {
    "HellaSwag": TextColumn(
        {"hellaswag": "hellaswag"}, "hellaswag/{}.yaml", "acc_norm,none", "validation"
    ),
    "OpenBookQA": TextColumn(
        {"openbookqa": "openbookqa"}, "openbookqa/{}.yaml", "acc_norm,none", "test"
    ),
    "WinoGrande": TextColumn(
        {"winogrande": "winogrande"}, "winogrande/default.yaml", "acc,none", "validation"
    ),
    "ARC-E": TextColumn({"arc_easy": "arc_easy"}, "arc/{}.yaml", "acc,none", "test"),
    "ARC-C": TextColumn({"arc_challenge": "arc_challenge"}, "arc/{}.yaml", "acc_norm,none", "test"),
    "BoolQ": TextColumn(
        {"boolq": "boolq"}, "super_glue/boolq/default.yaml", "acc,none", "validation"
    ),
    "PIQA": TextColumn({"piqa": "piqa"}, "piqa/{}.yaml", "acc_norm,none", "validation"),
    "GSM8K": TextColumn(
        {"gsm8k": "gsm8k"}, "gsm8k/{}.yaml", "exact_match,strict-match", "test", "train", 5, True
    ),
    "MATH": TextColumn(
        {f"math/{folder}": f"hendrycks_math_{name}" for name, folder in MATH_KINDS.items()},
        "hendrycks_math/{}.yaml",
        "exact_match,none",
        "test",
        writes=True,
    ),
    "MMLU": TextColumn(
        {f"mmlu/{subject}": f"mmlu_{subject}" for subject in SUBJECTS},
        "mmlu/default/{}.yaml",
        "acc,none",
        "test",
        "dev",
        5,
    ),
}


@dataclass(frozen=True)
class Source:
    """Where the items of a text column are.

    Args:
        name: of the column.
        root: folder of the data sets' folders; None where `datasets` has the items.
        hub_id: of theirs then, or a copy on disk; None is lm-eval's own id.
    """

    name: str
    root: Path | None
    hub_id: str | None = None

    @property
    def column(self) -> TextColumn:
        """Its tasks."""
        return TEXT_COLUMNS[self.name]


@dataclass(frozen=True)
class TextFigures:
    """Figures of one text column, each times 100.

    Args:
        accuracy: share of right items, a mean over draws of noise; its standard error is that of
            the items.
        noise_error: how far the mean over draws lies from that of infinitely many draws of noise,
            one standard deviation; None with one draw.
        metric: lm-eval's name of the figure. num_shots: examples before each item.
        by_task: of each task, a mean over draws.
        num_draws, num_evaluations: of noise for each item, and of the network for each draw.
        calibration: of the choice with the highest log-likelihood, whose probability among the
            choices is a softmax, in all draws; None where answers are written.
    """

    accuracy: Estimate
    noise_error: float | None
    metric: str
    num_shots: int
    by_task: dict[str, float]
    num_draws: int
    num_evaluations: int
    calibration: Calibration | None = None


def wanted(column: TextColumn, root: Path) -> list[Path]:
    """Name the files that are missing, as JSON lines."""
    splits = [column.split] + [column.shots] * (column.shots is not None)
    return [
        root / folder / f"{split}.jsonl"
        for folder in column.tasks
        for split in splits
        if not _files(root / folder, split)
    ]


def num_items(source: Source, limit: int | None) -> int:
    """Count the items that are measured.

    Raises:
        OSError: `datasets` cannot read them.
    """
    column, root = source.column, source.root
    if root is None:
        with TemporaryDirectory() as folder:
            loaded = load_tasks(source, Path(folder))
        counts = [len(list(task.eval_docs)) for task in loaded["tasks"].values()]
    else:
        counts = [_count(_files(root / folder, column.split)) for folder in column.tasks]
    return sum(count if limit is None else min(count, limit) for count in counts)


def load_tasks(source: Source, folder: Path) -> Any:
    """Load lm-eval's tasks of a column, with their items.

    Args:
        source: where those are. folder: where the tasks are written.

    Raises:
        ImportError: lm-eval is missing.
        OSError: `datasets` cannot read the items.
    """
    _, tasks = require_lm_eval()
    files = [str(file) for file in _write_tasks(source, folder)]
    manager = tasks.TaskManager(include_defaults=False)
    if source.root is not None:
        return manager.load(files)
    with reading(source.name, source.hub_id):
        return manager.load(files)


def text_figures(
    name: str,
    loaded: Any,
    answers: Answers,
    model: Any,
    processor: Any,
    num_evaluations: int,
    num_draws: int,
    seed: int,
    limit: int | None = None,
    **options: Any,
) -> TextFigures:
    """Measure one column, once for each draw of noise.

    Args:
        name: of the column. loaded: its tasks, as `load_tasks` gives them.
        answers: where answers are kept.
        num_evaluations, num_draws: see `TextFigures`; what is written is written with `options`.
        seed: of noise and examples.
        limit: of each task, the first items only.
        **options: more arguments of `MDMLanguageModel`.

    Raises:
        ImportError: lm-eval is missing.
    """
    evaluator, _ = require_lm_eval()
    from modeling_mdm.evaluation.tables.language_model import MDMLanguageModel

    column = TEXT_COLUMNS[name]
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed)
    draws = []
    for draw in range(num_draws):
        lm = MDMLanguageModel(
            model=model,
            processor=processor,
            num_evaluations=num_evaluations,
            seed=seed + draw,
            answers=answers,
            column=f"{name}.{draw}",
            **options,
        )
        # Not `simple_evaluate`, which asks the machine for its versions each time.
        draws.append(evaluator.evaluate(lm, loaded, limit=limit, bootstrap_iters=0))
    return _figures(column, draws, num_evaluations)


def _figures(column: TextColumn, draws: list[Any], num_evaluations: int) -> TextFigures:
    names = list(column.tasks.values())
    counts = np.array([draws[0]["n-samples"][task]["effective"] for task in names])
    shares = np.array([[draw["results"][task][column.metric] for task in names] for draw in draws])
    means = shares @ counts / counts.sum()  # (draw,)
    mean = means.mean()
    total = int(counts.sum())
    # Items are right or wrong; of several tasks, the variance within each.
    within = (counts * shares.mean(0) * (1 - shares.mean(0))).sum() / total
    error = (within / (total - 1)) ** 0.5 if total > 1 else None
    return TextFigures(
        accuracy=Estimate(100 * float(mean), total, None if error is None else 100 * float(error)),
        noise_error=100 * float(means.std(ddof=1)) / len(means) ** 0.5 if len(means) > 1 else None,
        metric=column.metric,
        num_shots=column.num_shots,
        by_task={
            task: 100 * float(share) for task, share in zip(names, shares.mean(0), strict=True)
        },
        num_draws=len(draws),
        num_evaluations=num_evaluations,
        calibration=None if column.writes else _calibration(names, draws),
    )


def _calibration(names: list[str], draws: list[Any]) -> Calibration:
    confidence, is_right = [], []
    for item in (item for draw in draws for task in names for item in draw["samples"][task]):
        log_likelihoods = np.array([value for value, _ in item["filtered_resps"]])
        likelihoods = np.exp(log_likelihoods - log_likelihoods.max())
        confidence.append(float(likelihoods.max() / likelihoods.sum()))
        is_right.append(item["acc"] == 1)  # of the likeliest, whatever the column's own metric
    return Calibration(confidence, is_right)


def _write_tasks(source: Source, folder: Path) -> Iterator[Path]:
    """Write lm-eval's tasks anew, with the place of their items."""
    column = source.column
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    own = Path(spec.origin).parent / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    for items, task in column.tasks.items():
        content = {
            "include": str(own / column.file.format(task)),
            "task": task,
            **_place(source, items),
            "num_fewshot": column.num_shots,
            "training_split": column.shots,
            "validation_split": column.split if column.split == "validation" else None,
            "test_split": column.split if column.split == "test" else None,
        }
        file = folder / f"{task}.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        yield file


def _place(source: Source, items: str) -> dict[str, Any]:
    if source.root is None:  # the configuration is lm-eval's own
        return {} if source.hub_id is None else {"dataset_path": source.hub_id}
    splits = [split for split in (source.column.split, source.column.shots) if split is not None]
    files = {split: [str(one) for one in _files(source.root / items, split)] for split in splits}
    kind = "parquet" if files[source.column.split][0].endswith(".parquet") else "json"
    return {
        "dataset_path": kind,
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }


def _files(folder: Path, split: str) -> list[Path]:
    """Files of a split: one of JSON lines, or those of Parquet."""
    lines = folder / f"{split}.jsonl"
    return (
        [lines.resolve()] if lines.is_file() else sorted(folder.resolve().glob(f"{split}*.parquet"))
    )


def _count(files: list[Path]) -> int:
    if files and files[0].suffix == ".parquet":
        from pyarrow.parquet import read_metadata

        return sum(read_metadata(file).num_rows for file in files)
    return sum(bool(line.strip()) for file in files for line in file.open("rb"))


def require_lm_eval() -> tuple[Any, Any]:
    """Give lm-eval's evaluator and tasks.

    Raises:
        ImportError: it is missing; names the extra that has it.
    """
    try:
        from lm_eval import evaluator, tasks
    except ImportError as error:
        raise MissingExtra("the text columns need lm-eval", "eval-text") from error
    return evaluator, tasks
