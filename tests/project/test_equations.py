# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""EQUATIONS.md names functions, tests and settings that exist, and leaves no equation out."""

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "EQUATIONS.md"
REQUIRED = [f"Eq. {n}" for n in range(1, 19)] + [f"Theorem {n}" for n in range(1, 4)]


@lru_cache
def tree(path):
    return ast.parse(path.read_text())


def has_definition(path, names):
    """Whether a file defines `names`: a function or class, or a member of a class, step by step."""
    if not path.is_file():
        return False
    scope = tree(path).body
    for name in names:
        found = [
            node
            for node in scope
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
        ]
        if not found:
            return False
        scope = found[0].body
    return True


@lru_cache
def words_of_the_package():
    """Every name and every string constant in the package's top-level sources."""
    words = set()
    for path in (ROOT / "modeling_mdm").glob("*.py"):
        for node in ast.walk(tree(path)):
            words |= {getattr(node, field, None) for field in ("id", "arg", "attr", "name")}
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
    return words


def exists(name):
    """Whether a backticked name stands for something: a test, a function, a file or a setting."""
    if "::" in name:
        file, test = name.split("::")
        return any(has_definition(path, [test]) for path in (ROOT / "tests").rglob(file))
    if name.endswith((".py", "/")):
        return any((parent / name).exists() for parent in (ROOT, ROOT / "modeling_mdm"))
    module, *names = name.split(".")
    if names:
        return has_definition(ROOT / "modeling_mdm" / f"{module}.py", names)
    return name.strip('"') in words_of_the_package()


def backticked(text):
    return re.findall(r"`([^`]+)`", text)


def rows():
    """The table rows as (first cell, function cell, proof cell)."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| ") and cells[0]:
            assert len(cells) == 5, f"a row of {len(cells)} cells: {line}"
            found.append((cells[0], cells[2], cells[3]))
    return found


@pytest.mark.parametrize(
    "name",
    [
        "diffusion.no_such_function",
        "diffusion.NoiseSchedule.no_such_method",
        "no_such_module.add_noise",
        "test_diffusion.py::test_no_such_test",
        "test_no_such_file.py::test_gradients",
        "modeling_mdm/no_such_module.py",
        "no_such_setting",
    ],
)
def test_a_name_that_does_not_exist_is_noticed(name):
    assert not exists(name)


def test_every_name_in_the_table_exists():
    names = set(backticked(PAGE.read_text())) - {"module.name", "modeling_mdm/module.py"}
    names -= {"test_file.py::test_name"}
    assert len(names) > 40
    assert [name for name in sorted(names) if not exists(name)] == []


@pytest.mark.parametrize("title", REQUIRED)
def test_every_equation_and_theorem_has_a_function_and_a_proof(title):
    matching = [row for row in rows() if title in [part.strip() for part in row[0].split(",")]]
    assert len(matching) == 1
    _, functions, proof = matching[0]
    assert any("." in name for name in backticked(functions))
    assert any("::" in name for name in backticked(proof))
