# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Real questions for the text columns: BIG-bench's, for evaluation only and never for training.

They are read from the JSON files of PyPI's `bigbench` 1.0.0, nothing of which is imported::

    pip download bigbench==1.0.0 --no-deps --no-binary :all: -d FOLDER
    tar -xzf FOLDER/bigbench-1.0.0.tar.gz -C FOLDER bigbench-1.0.0/bigbench/benchmark_tasks
    BIGBENCH=FOLDER/bigbench-1.0.0/bigbench/benchmark_tasks pytest tests/evaluation/...

They are written in the schema of a set that lm-eval knows, and are not that set: their figures are
no figures of its column.
"""

import json
import os
import string
from pathlib import Path

FOLDER = Path(os.environ.get("BIGBENCH", "bigbench"))
RANKED = ("arithmetic", "elementary_math_qa", "reasoning_about_colored_objects")
WRITTEN = ("arithmetic", "object_counting")


def examples(folder):
    """Yield the examples of a task and of the tasks below it, in the order of their names."""
    for file in sorted(Path(folder).rglob("task.json")):
        yield from json.loads(file.read_text(encoding="utf-8")).get("examples", [])


def ranked(example):
    """Give ARC's row of an example with one right choice among several, or None."""
    scores = example.get("target_scores", {})
    right = [choice for choice, score in scores.items() if score == 1]
    if len(right) != 1 or not 1 < len(scores) <= len(string.ascii_uppercase):
        return None
    labels = list(string.ascii_uppercase[: len(scores)])
    return {
        "question": example["input"],
        "choices": {"text": list(scores), "label": labels},
        "answerKey": labels[list(scores).index(right[0])],
    }


def written(example):
    """Give GSM8K's row of an example whose answer is a whole number, or None."""
    target = example.get("target", [])
    answers = [target] if isinstance(target, str) else target
    numbers = [one for one in answers if one.lstrip("-").isdigit()]
    if not numbers:
        return None
    return {"question": example["input"], "answer": f"#### {numbers[0]}"}


def write_questions(task, root, name, splits, row):
    """Write examples, spread over the task, as splits of a set: {"test": 100, "train": 5}."""
    rows = [one for one in map(row, examples(FOLDER / task)) if one is not None]
    total = sum(splits.values())
    chosen = rows[:: max(1, len(rows) // total)][:total]
    (root / name).mkdir(parents=True)
    for split, count in splits.items():
        lines = [json.dumps(one) + "\n" for one in chosen[:count]]
        chosen = chosen[count:]
        (root / name / f"{split}.jsonl").write_text("".join(lines))
