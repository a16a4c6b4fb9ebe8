# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The linter of transformers' model files, on the files that a saved model takes along."""

import json
import subprocess
import sys

import torch
from tiny_digits import make_processor
from tiny_model import tiny_config

from modeling_mdm import MDMForJointGeneration

# Rules that these files break on purpose. The linter is made for files inside of transformers.
EXPLAINED = {
    "TRF028": "the licence is named by its SPDX identifier, and LICENSE holds its text",
    "TRF045": "of two passes with self-conditioning only the second is recorded, not every call",
    "TRF057": "docstrings are written by hand: generated ones know no shapes, units and errors",
}


def test_saved_code_follows_the_structure_of_transformers(tmp_path):
    torch.manual_seed(0)
    code = tmp_path / "mdm"
    MDMForJointGeneration(tiny_config()).save_pretrained(code)
    make_processor().save_pretrained(code)
    report = tmp_path / "findings.json"
    command = [sys.executable, "-m", "mlinter", "--no-cache", "--no-progress"]
    result = subprocess.run(
        [*command, "--output-json", report, code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.is_file(), result.stderr
    findings = json.loads(report.read_text())["findings"]
    assert len(findings) > 5  # it looked
    unexplained = [finding for finding in findings if finding["rule"] not in EXPLAINED]
    assert not unexplained
    assert {finding["rule"] for finding in findings} == set(EXPLAINED)
