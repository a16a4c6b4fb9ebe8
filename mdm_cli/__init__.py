# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `mdm` and the scripts do before anything heavy is imported; `modeling_mdm` does the rest.

It stands beside `modeling_mdm`, whose import takes seconds: a command line is understood, refused
or interrupted without it.
"""
