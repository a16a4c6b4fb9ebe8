# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model costs before it runs: operations, memory, traffic between processes, hours."""
