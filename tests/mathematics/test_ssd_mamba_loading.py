# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How the kernels of mamba_ssm are found, whether or not those of Mamba-1 were built."""

import subprocess
import sys

import pytest

from modeling_mdm import ssd_mamba

ASKS_FIRST = """
try:
    import selective_scan_cuda
except ImportError:
    selective_scan_cuda = None
"""
# By the state of an installation: what mamba_ssm says at import, whether Mamba-1 is built, and what
# is found of it after the kernels were loaded.
INSTALLATIONS = {
    "a release that asks first": (ASKS_FIRST, False, True),
    "an older release": ("import selective_scan_cuda", False, True),
    "Mamba-1 is built": ("import selective_scan_cuda", True, True),
    "something else is missing": ("import einops_that_is_missing", False, False),
    "Mamba-1 and more are missing": (
        "import selective_scan_cuda\nimport x_is_missing",
        False,
        False,
    ),
}
SCRIPT = """
import importlib.util
import sys

sys.path[:0] = sys.argv[1:3]
before = importlib.util.find_spec("selective_scan_cuda") is not None
import ssd_mamba

found = ssd_mamba.load_kernels()
assert found is ssd_mamba.load_kernels()
after = importlib.util.find_spec("selective_scan_cuda") is not None
assert before == after, "whoever asks for Mamba-1 later is told the truth"
print("none" if found is None else found())
"""


@pytest.mark.parametrize("name", INSTALLATIONS)
def test_kernels_are_found_without_those_of_mamba_1(name, tmp_path):
    at_import, is_built, is_found = INSTALLATIONS[name]
    kernels = tmp_path / "site" / "mamba_ssm" / "ops" / "triton"
    kernels.mkdir(parents=True)
    for folder in (kernels, kernels.parent, kernels.parent.parent):
        (folder / "__init__.py").write_text("")
    (tmp_path / "site" / "mamba_ssm" / "__init__.py").write_text(at_import + "\n")
    (kernels / "ssd_combined.py").write_text(
        "def mamba_chunk_scan_combined():\n    return 'ours'\n"
    )
    (tmp_path / "site" / "triton.py").write_text("")
    (tmp_path / "site" / "torch.py").write_text("Tensor = object\n")  # a second saved
    if is_built:
        (tmp_path / "site" / "selective_scan_cuda.py").write_text("")
    (tmp_path / "code").mkdir()
    with open(ssd_mamba.__file__, encoding="utf-8") as source:
        (tmp_path / "code" / "ssd_mamba.py").write_text(source.read())
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(tmp_path / "site"), str(tmp_path / "code")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("ours" if is_found else "none")
