# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The version of this package, written in this one place."""

__version__ = "0.1.0"
