# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which of our files imports which, read from their source: wherever it is written, it counts."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGES = ("modeling_mdm", "mdm_cli", "benchmarks", "examples", "processing", "configuration")


def imports_of_all(root: Path) -> dict[str, set[str]]:
    """Imports of every file of ours, both by their paths within `root`.

    Imports within functions and for type checkers alone count as any other.
    """
    files = {path.relative_to(root) for name in PACKAGES for path in (root / name).rglob("*.py")}
    return {str(path): set(imports_of(root, path, files)) for path in sorted(files)}


def imports_of(root: Path, path: Path, files: set[Path]) -> Iterator[str]:
    """The files of ours that a file imports, by their paths within `root`."""
    for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [(Path(*alias.name.split(".")), []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = path.parents[node.level - 1] if node.level else Path()
            module = start.joinpath(*(node.module or "").split("."))
            modules = [(module, [alias.name for alias in node.names])]
        else:
            continue
        for module, names in modules:
            for found in {_file_of(module, name, files) for name in names or [""]}:
                if found is not None and found != path:
                    yield str(found)


def _file_of(module: Path, name: str, files: set[Path]) -> Path | None:
    """The file of a name in a module: the name's own, the module's, or its package's."""
    places = [module.with_suffix(".py"), module / "__init__.py"]
    if name:
        places = [module / f"{name}.py", module / name / "__init__.py", *places]
    return next((place for place in places if place in files), None)


def circles(imports: dict[str, Iterable[str]]) -> list[list[str]]:
    """Groups of files each of which reaches all others: what Tarjan finds, largest first."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(file: str) -> None:
        number[file] = lowest[file] = len(number)
        stack.append(file)
        for other in sorted(imports.get(file, ())):
            if other not in number:
                visit(other)
                lowest[file] = min(lowest[file], lowest[other])
            elif other in stack:
                lowest[file] = min(lowest[file], number[other])
        if lowest[file] == number[file]:
            group = stack[stack.index(file) :]
            del stack[len(stack) - len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for file in imports:
        if file not in number:
            visit(file)
    return sorted(found, key=len, reverse=True)
