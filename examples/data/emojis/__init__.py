# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How the emoji world is made: artwork and names in, pictures with words and truth out."""
