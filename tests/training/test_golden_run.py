# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fifty steps of the real training script give the losses that they always gave.

A change of the code that is meant to change nothing must keep this trajectory. One that is meant to
change it writes the new one, and says so in CHANGELOG.md:

    MDM_WRITE_GOLDEN=1 python -m pytest tests/training/test_golden_run.py
"""

import json
import os
from pathlib import Path

import pytest
from tiny_digits import ROOT, load_script

GOLDEN = Path(__file__).parent / "golden" / "digits_50_steps.json"
ARGUMENTS = (
    f"--config {ROOT}/configuration/mdm-digits --processor {ROOT}/processing/mdm-digits "
    f"--dataset digits --captions {ROOT}/examples/captions/digits.json "
    "--config_overrides hidden_size=48 num_hidden_layers=2 vae_hidden_size=32 "
    "--max_steps 50 --per_device_train_batch_size 16 --learning_rate 1e-3 --logging_steps 1 "
    "--save_strategy no --use_cpu true --report_to none --disable_tqdm true --seed 0"
)


def trajectory(output_dir: Path) -> list[dict[str, float]]:
    """Train, and read loss and gradient norm of every step."""
    script = load_script(ROOT / "examples" / "train.py")
    script.main([*ARGUMENTS.split(), "--output_dir", str(output_dir)])
    state = json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))
    logs = [entry for entry in state["log_history"] if "grad_norm" in entry]
    return [{"loss": entry["loss"], "grad_norm": entry["grad_norm"]} for entry in logs]


def test_training_follows_the_recorded_trajectory(tmp_path):
    steps = trajectory(tmp_path / "run")
    if os.environ.get("MDM_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(steps, indent=1) + "\n", encoding="utf-8")
        pytest.skip(f"{GOLDEN} was written anew")
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(steps) == len(expected) == 50
    for name in ("loss", "grad_norm"):
        differences = [
            abs(step[name] - before[name]) / abs(before[name])
            for step, before in zip(steps, expected, strict=True)
        ]
        # Rounding differs between processors and versions and grows along the run.
        assert differences[0] < 1e-4
        assert sum(differences) / len(differences) < 5e-3
        assert max(differences) < 5e-2
