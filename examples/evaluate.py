# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measure a checkpoint: text to image, captioning and joint generation, told by a judge network.

::

    python examples/evaluate.py --checkpoint examples/checkpoints/mdm-fashion \\
        --data_dir /usr/share/datasets/fashion-mnist --output figures.json

Options may instead stand in a YAML file: `python examples/evaluate.py options.yaml`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_mdm.evaluation.evaluate import parse, run

HERE = Path(__file__).resolve().parent
SHIPPED = {
    "checkpoint": str(HERE / "checkpoints" / "mdm-fashion"),
    "judge": str(HERE / "checkpoints" / "fashion-judge"),
    "captions": str(HERE / "captions"),
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what the command line names, or what is shipped."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return run(*parse(given, __doc__, "python examples/evaluate.py", SHIPPED))


if __name__ == "__main__":
    main()
