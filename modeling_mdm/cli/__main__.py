# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m modeling_mdm.cli` is `mdm`."""

import sys

from mdm_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
