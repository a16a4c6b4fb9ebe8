# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Other releases of the libraries: the newest there are, and the oldest that `setup.py` allows.

    python tests/support/libraries.py lock      # what `make demo`, `test` and `app` install
    python tests/support/libraries.py latest    # make test-latest
    python tests/support/libraries.py lowest    # make test-lowest
    python tests/support/libraries.py canary    # the newest in at most 3 minutes; fails nothing

`latest` looks beyond the upper bounds of `setup.py`, else it would never see the release that it is
there for. Each makes an environment of its own, runs the tests that touch the libraries with all
warnings shown, and says in its last line what it found; `latest` and `lowest` write a row of
`docs/versions.md` where all passed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
TABLE = ROOT / "docs" / "versions.md"

# Held below what has not passed yet; torchvision's operators are built for one release of torch.
HELD = ("torch<2.15", "torchvision<0.29.2")

UV_SECONDS = 300
CANARY_SECONDS = 180.0

# What breaks first where a library moves comes first.
TESTS = [
    f"tests/{folder}/test_{name}.py"
    for folder, names in (
        ("generation", "cache_names generation generation_tasks pipeline"),
        ("hub", "loading remote_code pretrained"),
        ("training", "trainer saving train_script finetune adapters checkpoints"),
        ("hub", "hooks"),
        ("network", "past_turns"),
        ("processor", "chat processing processing_tasks decoding processor_saving"),
        ("processor", "image_processing"),
        ("network", "cache compile"),
        ("cli", "cli"),
    )
    for name in names.split()
]
COLUMNS = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers")
HEADER = f"""# Versions that passed

The tests that touch the libraries, all passed: with the newest releases on the index
(`make test-latest`) and with the oldest that `setup.py` allows (`make test-lowest`).
Both targets write their row.

| releases | Python | {" | ".join(COLUMNS)} | passed |
|---|---|{"---|" * len(COLUMNS)}---|
"""


@dataclass
class Outcome:
    """What a run of pytest found."""

    passed: int = 0
    failed: int = 0
    reason: str | None = None  # why nothing was found
    stopped: bool = False  # before all tests had run
    warnings: list[str] = field(default_factory=list)  # that come from our files


def requirements(extras: Sequence[str] = ("dev",)) -> list[Requirement]:
    """What `setup.py` requires, of the core and of some extras."""
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, folder], cwd=ROOT, check=True, capture_output=True)
        (metadata,) = distributions(path=[folder])
        found = [Requirement(line) for line in metadata.requires or []]
    wanted = [{"extra": extra} for extra in ("", *extras)]
    return [r for r in found if r.marker is None or any(map(r.marker.evaluate, wanted))]


def without_upper_bounds(requirement: Requirement) -> str:
    """Keep the lower bounds alone: `transformers>=5.17,<6` becomes `transformers>=5.17`."""
    lower = [s for s in requirement.specifier if s.operator in (">=", ">", "!=")]
    return f"{requirement.name}{SpecifierSet(','.join(map(str, lower)))}"


def uv(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run uv, which resolves what pip can not: overrides, the lowest versions, every platform.

    Raises:
        subprocess.CalledProcessError: with what it said.
        subprocess.TimeoutExpired: after `UV_SECONDS`, where an index is slow.
    """
    command = [sys.executable, "-m", "uv", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=UV_SECONDS
    )


def lock() -> str:
    """Write `constraints.txt`: one version of everything for every platform, without addresses."""
    with tempfile.TemporaryDirectory() as folder:
        held = _write(folder, "held.txt", HELD)
        wanted = _write(folder, "wanted.in", map(_bare, requirements(("dev", "app"))))
        arguments = ["--universal", "--python-version", "3.11", "--no-annotate", "--no-header"]
        lines = uv("pip", "compile", *arguments, "--constraint", held, wanted).stdout
    note = "# Written by `make lock`: what `make demo`, `test`, `docs` and `app` install.\n"
    CONSTRAINTS.write_text(note + lines, encoding="utf-8")
    return f"lock: {len(lines.splitlines())} versions in {CONSTRAINTS.name}"


def install(kind: str, folder: Path, wanted: Sequence[Requirement]) -> Path:
    """Make an environment with the newest or the lowest releases, and return its Python.

    Args:
        kind: "latest", whatever the upper bounds say, or "lowest".
        folder: of the environment; one that is there is brought up to date.
        wanted: what `setup.py` requires.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        uv("venv", "--python", sys.executable, folder)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ["-r", _write(scratch, "wanted.txt", map(_bare, wanted))]
        if kind == "latest":
            bounded = [r for r in wanted if any(s.operator[0] == "<" for s in r.specifier)]
            overrides = _write(scratch, "overrides.txt", map(without_upper_bounds, bounded))
            arguments += ["--upgrade", "--override", overrides]
        else:
            arguments += ["--resolution", "lowest-direct"]
        uv("pip", "install", "--python", python, *arguments)
    return python


def installed(python: Path) -> dict[str, str]:
    """Versions in an environment by canonical name."""
    lines = uv("pip", "list", "--format", "freeze", "--python", python).stdout.splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


def beyond_bounds(versions: dict[str, str], wanted: Sequence[Requirement]) -> list[str]:
    """Which versions `setup.py` does not allow, and by which bounds."""
    found = []
    for requirement in wanted:
        version = versions.get(canonicalize_name(requirement.name))
        if version and not requirement.specifier.contains(version, prereleases=True):
            bound = ",".join(sorted(map(str, requirement.specifier)))
            found.append(f"{requirement.name} {version} lies beyond {bound}")
    return found


def run_tests(python: Path, tests: Sequence[str], seconds: float | None = None) -> Outcome:
    """Run tests in an environment, for so many seconds at most, and count."""
    with tempfile.TemporaryDirectory() as folder:
        report, warned = Path(folder, "report.xml"), Path(folder, "warnings.txt")
        command = [str(python), "-m", "pytest", "-n", "2", "--dist", "loadfile", "-q"]
        command += ["-m", "not slow and not gpu", "-o", "filterwarnings=default"]
        command += ["-p", "our_warnings", "--timeout", "600"]
        command += [f"--junitxml={report}", *tests]
        if seconds is not None:
            command += [f"--session-timeout={seconds}"]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "OUR_WARNINGS": str(warned)}
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False)
        if not report.is_file():
            return Outcome(reason=f"pytest ended with {done.returncode} and no report")
        outcome = count(report.read_text(encoding="utf-8"))
        outcome.stopped = seconds is not None and time.monotonic() - start > seconds
        if warned.is_file():
            outcome.warnings = sorted(set(warned.read_text(encoding="utf-8").splitlines()))
    return outcome


def count(report: str) -> Outcome:
    """Count the results in a report in JUnit's format."""
    suites = ElementTree.fromstring(report).iter("testsuite")
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for name in totals:
            totals[name] += int(suite.get(name, 0))
    failed = totals["failures"] + totals["errors"]
    return Outcome(totals["tests"] - failed - totals["skipped"], failed)


def record(kind: str, versions: dict[str, str], outcome: Outcome, table: Path = TABLE) -> None:
    """Write a row of the table, in the place of one with the same versions."""
    python = ".".join(map(str, sys.version_info[:2]))
    cells = [f"`make test-{kind}`", python, *(versions.get(name, "-") for name in COLUMNS)]
    start = f"| {' | '.join(cells)} |"
    text = table.read_text(encoding="utf-8") if table.is_file() else HEADER
    rows = [line for line in text.splitlines() if line.startswith("| `make")]
    rows = [f"{start} {outcome.passed} |", *(row for row in rows if not row.startswith(start))]
    table.write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")


def report(kind: str, versions: dict[str, str], beyond: Sequence[str], outcome: Outcome) -> str:
    """Say in one line what was found."""
    if outcome.reason is not None:
        return f"{kind}: not run ({outcome.reason})"
    bounds = f" ({'; '.join(beyond)})" if beyond else ""
    return (
        f"{kind}: transformers {versions['transformers']}, torch {versions['torch']}{bounds}: "
        f"{outcome.passed} passed, {outcome.failed} failed"
        + (f" in {CANARY_SECONDS:.0f} s, not all were run" if outcome.stopped else "")
    )


def check(kind: str, folder: Path, seconds: float | None = None) -> tuple[str, Outcome]:
    """Make an environment, run the tests in it, and say what was found."""
    wanted = requirements()
    try:
        python = install(kind, folder, wanted)
        # By itself, because the bounds of the package are those to look beyond.
        uv("pip", "install", "--python", python, "--no-deps", "--editable", ROOT)
        versions = installed(python)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = getattr(error, "stderr", None) or str(error)
        outcome = Outcome(reason=" ".join(str(said).split())[:300])
        return report(kind, {}, [], outcome), outcome
    outcome = run_tests(python, TESTS, seconds)
    for line in outcome.warnings:
        print(f"{kind}: our files warn: {line}")
    if seconds is None and outcome.reason is None and not outcome.failed:
        record(kind, versions, outcome)
    return report(kind, versions, beyond_bounds(versions, wanted), outcome), outcome


def main(command: str, folder: str | None = None) -> int:
    """Run one command; 1 where tests failed, but for the canary's."""
    if command == "lock":
        print(lock())
        return 0
    kind = "latest" if command == "canary" else command
    seconds = CANARY_SECONDS if command == "canary" else None
    line, outcome = check(kind, Path(folder or ROOT / f".venv-{kind}").absolute(), seconds)
    print(line, flush=True)
    return int(command != "canary" and bool(outcome.failed or outcome.reason))


def _bare(requirement: Requirement) -> str:
    """A requirement without the marker of its extra."""
    return f"{requirement.name}{requirement.specifier}"


def _write(folder: str, name: str, lines: Sequence[str] | map[str]) -> Path:
    path = Path(folder, name)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    if len(sys.argv) < 2 or not re.fullmatch("lock|latest|lowest|canary", sys.argv[1]):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:3]))
