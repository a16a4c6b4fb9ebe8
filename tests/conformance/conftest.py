# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Marks of transformers' common tests: what `make check` runs of them, and their warnings."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_configure(config):
    flash = (f"flash_attn_{version}test" for version in ("", "3_", "4_"))
    for name in ("accelerate_tests", "torch_compile_test", *flash):
        config.addinivalue_line("markers", f"{name}: of transformers' common tests")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE not in item.path.parents:
            continue
        # Their tests warn of much that is none of ours.
        item.add_marker(pytest.mark.filterwarnings("default"))
        # A module that names no fast ones is fast throughout.
        if item.originalname not in getattr(item.module, "FAST", {item.originalname}):
            item.add_marker(pytest.mark.slow)
