# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How the package hangs together, in numbers: the way of a step through its files, and their shape.

    python tests/support/structure.py                     # this tree
    python tests/support/structure.py --root ../before    # another, by the same measure
    python tests/support/structure.py --json shape.json   # also as JSON

A step is one of the tiny model that the tests share: of training, from the call to the end of
`backward`, without an estimate that is fed back; of sampling words and pictures with guidance and a
cache, from one step's callback to the next; `generate` is all of such a call with one step. A file
counts where any of its code runs, and a call where caller and callee both lie in the package and
not in one file.
"""

import argparse
import ast
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from imports import circles, imports_of_all

PACKAGE = "modeling_mdm"
COUNTED = (PACKAGE, "mdm_cli", "benchmarks", "examples", "tests")
MANY_ARGUMENTS = 7
LONGEST = 10


class Way:
    """Files of the package that run, and calls between them."""

    def __init__(self, root: Path) -> None:
        self.package = f"{root / PACKAGE}/"
        self.files: Counter[str] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()

    def notice(self, frame: FrameType, event: str, _: object) -> None:
        """Count a call: `sys.setprofile` calls this at every one."""
        if event != "call" or (callee := self.file_of(frame)) is None:
            return
        self.files[callee] += 1
        caller = self.file_of(frame.f_back)
        if caller is not None and caller != callee:
            self.calls[caller, callee] += 1

    def file_of(self, frame: FrameType | None) -> str | None:
        """The file that a frame runs, within the package."""
        name = "" if frame is None else frame.f_code.co_filename
        return name.removeprefix(self.package) if name.startswith(self.package) else None

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Count what runs within."""
        sys.setprofile(self.notice)
        try:
            yield
        finally:
            sys.setprofile(None)

    def summary(self) -> dict[str, object]:
        """Numbers of files and calls, and which."""
        return {
            "files": len(self.files),
            "calls": self.calls.total(),
            "names": sorted(self.files),
            "pairs": {f"{a} -> {b}": count for (a, b), count in self.calls.most_common()},
        }


def training_step(root: Path) -> Way:
    """The way of one step of training; a first one has been made, so that nothing is set up."""
    from tiny_model import make_model, mixed_batch

    model, way = make_model().train(), Way(root)
    batch = {**mixed_batch(), "self_condition": False}
    model(**batch).loss.backward()
    with way.noticed():
        model(**batch).loss.backward()
    return way


def sampling_step(root: Path) -> Way:
    """The way of one step of sampling, the second of four."""
    way, seen = Way(root), []

    def callback(info: object) -> None:
        seen.append(info)
        sys.setprofile(way.notice if len(seen) == 1 else None)

    sample(steps=4, callback_on_step_end=callback)
    return way


def whole_generation(root: Path) -> Way:
    """The way of a whole call of `generate` with one step."""
    way = Way(root)
    with way.noticed():
        sample(steps=1)
    return way


def sample(steps: int, **options: object) -> None:
    """Write words and pictures with guidance and a cache."""
    from tiny_model import make_model, mixed_batch

    options |= {"num_inference_steps": steps, "guidance_scale": 2.0, "show_progress": False}
    make_model().generate(**mixed_batch(), **options)


def functions_of_many_arguments(root: Path) -> list[tuple[str, int]]:
    """Functions of the package and their numbers of arguments, `self` left out, largest first."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                number = len([a for a in every if a.arg not in ("self", "cls")])
                if number >= MANY_ARGUMENTS:
                    found.append((f"{path.relative_to(root)}:{node.name}", number))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def lines_of(root: Path) -> dict[str, int]:
    """Lines of every file of Python."""
    paths = sorted(path for name in COUNTED for path in (root / name).rglob("*.py"))
    return {
        str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines())
        for path in paths
    }


def by_folder(lines: dict[str, int]) -> dict[str, int]:
    """Lines of the files of every folder, its own folders left out."""
    total: Counter[str] = Counter()
    for name, number in lines.items():
        total[str(Path(name).parent)] += number
    return dict(sorted(total.items()))


def measure(root: Path) -> dict[str, object]:
    """All that is measured of the tree at `root`."""
    lines = lines_of(root)
    steps: dict[str, Callable[[Path], Way]] = {
        "training step": training_step,
        "sampling step": sampling_step,
        "generate": whole_generation,
    }
    return {
        "steps": {name: step(root).summary() for name, step in steps.items()},
        "functions of many arguments": functions_of_many_arguments(root),
        "circles": circles(imports_of_all(root)),
        "lines": by_folder(lines),
        "longest": sorted(lines.items(), key=lambda pair: -pair[1])[:LONGEST],
    }


def report(found: dict) -> str:
    """What was measured, for a reader."""
    rows = [
        f"{name}: {step['files']} files, {step['calls']} calls between them"
        for name, step in found["steps"].items()
    ]
    many = found["functions of many arguments"]
    rows.append(f"{len(many)} functions of {MANY_ARGUMENTS} arguments or more")
    rows += [f"  {number:3} {name}" for name, number in many[:LONGEST]]
    rows.append(f"{len(found['circles'])} circles of imports")
    rows += [f"  {' - '.join(group)}" for group in found["circles"]]
    rows.append(f"{sum(found['lines'].values())} lines")
    rows += [f"  {number:6} {folder}" for folder, number in found["lines"].items()]
    rows.append("longest files")
    rows += [f"  {number:6} {name}" for name, number in found["longest"]]
    return "\n".join(rows)


def main() -> None:
    """Measure one tree, print it, and write it where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help="of the tree")
    parser.add_argument("--json", type=Path, help="file that gets all of it")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    # In front of everything: the tree's own package, and its tiny model, wherever it kept that.
    sys.path[:0] = [str(root), *(str(root / name) for name in ("tests/support", "tests"))]
    found = measure(root)
    print(report(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
