# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the judge network, the figures that it measures, and contact sheets."""
