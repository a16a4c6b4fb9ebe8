# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measure a checkpoint: text to image, captioning and joint generation, told by a judge network.

::

    python examples/evaluate.py --checkpoint examples/checkpoints/mdm-fashion \\
        --data_dir /usr/share/datasets/fashion-mnist --output figures.json

Options may instead stand in a YAML file: `python examples/evaluate.py options.yaml`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="eval")

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_mdm.evaluation import evaluate
from modeling_mdm.evaluation.evaluate import EvaluationArguments, run

HERE = Path(__file__).resolve().parent
SHIPPED = {
    "checkpoint": str(HERE / "checkpoints" / "mdm-fashion"),
    "judge": str(HERE / "checkpoints" / "fashion-judge"),
    "captions": str(HERE / "captions"),
}


def parse(argv: Sequence[str]) -> tuple[EvaluationArguments, str]:
    """Read the command line; what it does not name is what is shipped."""
    return evaluate.parse(argv, __doc__, "python examples/evaluate.py", SHIPPED)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what the command line names, or what is shipped."""
    return run(*parse(sys.argv[1:] if arguments is None else arguments))
