# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Training: data, captions, collation and the trainer."""
