# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint as a repository of the Hub: weights, code, processor and card, ready to load.

    python examples/export.py --checkpoint examples/checkpoints/mdm-fashion --output_dir outputs/hub
    python examples/export.py --checkpoint runs/mine --output_dir outputs/hub --push_to_hub me/mine

What it writes loads with `trust_remote_code=True` where this project is not installed. The
checkpoints in `examples/` hold no code, for it lies beside them: `--code false` writes that form.
"""

from modeling_mdm.cli.export import main

if __name__ == "__main__":
    main(description=__doc__)
