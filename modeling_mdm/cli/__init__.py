# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line: `mdm generate`, `score`, `chat`, `encode`, `train`, `evaluate` and `export`."""
