# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets, streams and tasks to train on."""
