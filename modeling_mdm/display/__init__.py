# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Showing what the model writes."""
