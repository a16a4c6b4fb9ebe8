# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Train MDM end to end (VAE and decoder together, Eq. 18) on pictures with captions or labels.

Install with `pip install -e ".[train]"`. Then, from the repository's folder::

    # 8 x 8 digits, minutes on a CPU
    python examples/train.py examples/configs/digits.yaml

    # Fashion-MNIST, from the Hub or from IDX files
    python examples/train.py examples/configs/fashion_mnist.yaml --data_dir /path/to/idx/files

    # your own pictures: a folder with metadata.jsonl, Parquet files, or an id on the Hub
    python examples/train.py --config configuration/mdm-fashion \\
        --processor processing/mdm-fashion --dataset path/to/folder --output_dir runs/mine

    # several processes
    accelerate launch --multi_gpu --num_processes 2 examples/train.py examples/configs/digits.yaml
    torchrun --nproc_per_node 2 examples/train.py examples/configs/digits.yaml --use_cpu

Values come from the YAML file, if one is named first, then from the command line, which wins; an
unknown key is an error in both. The same command with `--resume_from_checkpoint last` goes on where
a run was cut off, and gives the losses that it would have given. The trained model, its processor
and the pictures of samples go to `output_dir`.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from mdm_cli.endings import run_script

    run_script(__file__, extra="train")

import sys
from collections.abc import Sequence
from typing import Any

from modeling_mdm.training import train
from modeling_mdm.training.train import run


def parse(argv: Sequence[str], description: str | None = __doc__) -> tuple[Any, ...]:
    """Read the command line, whose first word may be a YAML file; later words win."""
    return train.parse(argv, description)


def main(argv: Sequence[str] | None = None, description: str | None = __doc__) -> None:
    """Train as the command line says."""
    run(*parse(sys.argv[1:] if argv is None else argv, description))
