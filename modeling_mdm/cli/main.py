# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`mdm`, for those who have imported this package: see `mdm_cli.main`."""

from mdm_cli.main import MODULES, main, make_parser

__all__ = ["MODULES", "main", "make_parser"]
