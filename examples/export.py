# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint as a repository of the Hub: weights, code, processor and card, ready to load.

    python examples/export.py --checkpoint examples/checkpoints/mdm-fashion --output_dir outputs/hub
    python examples/export.py --checkpoint runs/mine --output_dir outputs/hub --push_to_hub me/mine

What it writes loads with `trust_remote_code=True` where this project is not installed. The
checkpoints in `examples/` hold no code, for it lies beside them: `--code false` writes that form.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__)

import sys
from collections.abc import Sequence

from modeling_mdm.cli import export
from modeling_mdm.cli.export import ExportArguments, run


def parse(argv: Sequence[str]) -> tuple[ExportArguments]:
    """Read the command line, whose first word may be a YAML file; later words win."""
    return export.parse(argv, __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Export as the command line says."""
    run(*parse(sys.argv[1:] if argv is None else argv))
