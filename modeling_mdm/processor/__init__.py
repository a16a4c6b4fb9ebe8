# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""From text, conversations and pictures to what the model reads, and back."""
