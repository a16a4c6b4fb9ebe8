# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The list of changes that no test can see: each has a reason and is of code that is there."""

import json

import pytest
from mutants import KNOWN, ROOT, SUITES, UNKNOWN, change_of, changes_only_the_place, function_of


def test_every_change_has_a_reason_and_its_line_is_in_its_module():
    for function, changes in json.loads(KNOWN.read_text(encoding="utf-8")).items():
        module, name = function.split(".", 1)
        source = (ROOT / "modeling_mdm" / f"{module}.py").read_text(encoding="utf-8")
        lines = {line.strip() for line in source.splitlines()}
        assert module in SUITES and f"def {name.rpartition('.')[2]}(" in source
        for change, reason in changes.items():
            before, after = change.split("  →  ")
            assert before in lines and after not in lines, change
            assert len(reason) > 20 and reason != UNKNOWN, change


def test_every_suite_names_files_that_are_there():
    for module, tests in SUITES.items():
        assert (ROOT / "modeling_mdm" / f"{module}.py").is_file()
        assert all((ROOT / "tests" / name).is_file() for name in tests)


@pytest.mark.parametrize(
    ("mutant", "function"),
    [
        ("modeling_mdm.vae.xǁMDMVAEǁencode__mutmut_3", "vae.MDMVAE.encode"),
        ("modeling_mdm.solvers.x__steps__mutmut_13", "solvers._steps"),
        ("modeling_mdm.solvers.x_solve__mutmut_1", "solvers.solve"),
    ],
)
def test_a_mutant_is_known_by_its_function(mutant, function):
    assert function_of(mutant) == function


def test_a_mutant_is_known_by_its_change_and_not_by_its_line():
    diff = "--- a.py\n+++ a.py\n@@ -3,2 +3,2 @@\n def f(x):\n-    return x + 1\n+    return x - 1"
    assert change_of(diff) == ("return x + 1", "return x - 1")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("zeros(3, device=x.device, dtype=d)", "zeros(3, device=None, dtype=d)", True),
        ("zeros(3, device=x.device)", "zeros(3, )", True),
        ("rank(3, order, device)", "rank(3, order, None)", True),
        ("rank(3, order, device)", "rank(3, device)", False),
        ("zeros(3, device=x.device)", "zeros(4, device=x.device)", False),
        ("zeros(3, x)", "zeros(3, None)", False),
    ],
)
def test_where_a_tensor_lies_is_no_mathematics(before, after, expected):
    assert changes_only_the_place(before, after) == expected
