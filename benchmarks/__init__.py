# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Speed and memory: what is measured, how, and the tables and plots made from it."""
