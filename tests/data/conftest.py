# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the data share."""

import datasets
import pytest


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """`datasets` waits ten seconds after every pass over Parquet, for Arrow's threads at exit."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
