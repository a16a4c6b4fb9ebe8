# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's tables: the measures of their columns, the readers of their data, one command."""
