# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is installed is fixed, and the next release of a library is seen before users meet it."""

import importlib
import re
import shutil
import sys
import warnings
import zipfile
from pathlib import Path

import libraries
import our_warnings
import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from transformers.utils import logging

from modeling_mdm.version import TESTED_TRANSFORMERS, warn_if_untested

ROOT = Path(__file__).resolve().parents[2]
WANTED = {r.name: r for r in libraries.requirements(("dev", "app"))}


def pinned() -> dict[str, list[str]]:
    """Every version that `constraints.txt` names, by package; several where platforms differ."""
    found: dict[str, list[str]] = {}
    for line in libraries.CONSTRAINTS.read_text().splitlines():
        if not line.startswith("#"):
            name, version = re.match(r"([a-z0-9.-]+)==([^ ;]+)( ;|$)", line).groups()[:2]
            found.setdefault(name, []).append(version)
    return found


# --- what the commands install


def test_constraints_fix_all_that_is_required_within_its_bounds():
    versions = pinned()
    for name, requirement in WANTED.items():
        assert versions[name], name
        for version in versions[name]:
            assert requirement.specifier.contains(version), (name, version)


def test_constraints_hold_no_address_and_no_option():
    """An index of one's own must serve them too."""
    for line in libraries.CONSTRAINTS.read_text().splitlines():
        assert line.startswith("#") or re.match(r"^[a-z0-9.-]+==\S+( ; .+)?$", line), line
        assert "://" not in line and " @ " not in line


def test_constraints_hold_back_what_has_not_passed():
    versions = pinned()
    for held in map(Requirement, libraries.HELD):
        assert all(held.specifier.contains(version) for version in versions[held.name])


def test_the_make_targets_install_under_the_constraints():
    makefile = (ROOT / "Makefile").read_text()
    (install,) = re.findall(r"^INSTALL := (.+)$", makefile, re.M)
    assert install.endswith("--constraint constraints.txt")
    for stamp in ("CORE", "APP", "DOCS", "DEV"):
        assert re.search(rf"^\$\({stamp}_STAMP\):.* constraints\.txt ", makefile, re.M), stamp
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make check" in ci and ci.index("make check") < ci.index("make canary")


def test_the_upper_bound_is_the_next_minor_version_behind_the_newest_tested():
    specifier = WANTED["transformers"].specifier
    major, minor = map(int, TESTED_TRANSFORMERS.split("."))
    assert specifier.contains(f"{major}.{minor}.9")
    assert not specifier.contains(f"{major}.{minor + 1}.0")
    assert all(v.startswith(f"{TESTED_TRANSFORMERS}.") for v in pinned()["transformers"])


def test_the_table_names_the_newest_tested_version():
    rows = [line.split(" | ") for line in libraries.TABLE.read_text().splitlines()]
    column = 2 + libraries.COLUMNS.index("transformers")
    passed = [row[column] for row in rows if row[0].startswith("| `make")]
    assert max(map(Version, passed)) >= Version(f"{TESTED_TRANSFORMERS}.0")


# --- a look ahead


def fake_wheel(folder, name, version, requires=()):
    """A wheel with a name, a version and nothing in it."""
    stem = f"{name.replace('-', '_')}-{version}"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", wheel)
        archive.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index of empty wheels: of transformers the oldest, the bound, and one more behind it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, requirement in WANTED.items():
        lowest = min(Version(s.version) for s in requirement.specifier if s.operator == ">=")
        fake_wheel(folder, name, str(lowest))
    major, minor = map(int, TESTED_TRANSFORMERS.split("."))
    fake_wheel(folder, "transformers", f"{TESTED_TRANSFORMERS}.0")
    fake_wheel(folder, "transformers", f"{major}.{minor + 1}.0")
    fake_wheel(folder, "transformers", f"{major}.{minor + 2}.0")
    # Another package may bound it as well.
    fake_wheel(folder, "peft", "99.0", [f"transformers<{major}.{minor + 1}"])
    for name, value in (("UV_OFFLINE", "1"), ("UV_FIND_LINKS", str(folder))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return f"{major}.{minor + 2}.0"


def test_the_newest_release_is_taken_whatever_the_bounds_say(index, tmp_path):
    wanted = list(WANTED.values())
    python = libraries.install("latest", tmp_path / "environment", wanted)
    versions = libraries.installed(python)
    assert versions["transformers"] == index and versions["peft"] == "99.0"
    (beyond,) = libraries.beyond_bounds(versions, wanted)
    assert beyond.startswith(f"transformers {index} lies beyond <")
    line = libraries.report("latest", versions, [beyond], libraries.Outcome(9, 1))
    torch = versions["torch"]
    assert line == f"latest: transformers {index}, torch {torch} ({beyond}): 9 passed, 1 failed"
    cut = libraries.report("latest", versions, [], libraries.Outcome(9, stopped=True))
    assert cut.endswith("9 passed, 0 failed in 180 s, not all were run")


def test_the_lowest_releases_are_those_of_setup(index, tmp_path):
    wanted = list(WANTED.values())
    python = libraries.install("lowest", tmp_path / "environment", wanted)
    versions = libraries.installed(python)
    for name, requirement in WANTED.items():
        lowest = min(Version(s.version) for s in requirement.specifier if s.operator == ">=")
        assert Version(versions[name]) == lowest, name
    assert libraries.beyond_bounds(versions, wanted) == []


def test_an_index_out_of_reach_is_said_and_fails_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    assert libraries.main("canary", str(tmp_path / "environment")) == 0
    assert re.fullmatch(r"latest: not run \(.+\)", capsys.readouterr().out.splitlines()[-1])


def test_lower_bounds_are_kept():
    for text, expected in (
        ("transformers>=5.17,<6", "transformers>=5.17"),
        ("gradio~=6.31", "gradio"),
        ("torch>=2.11,!=2.12.0,<=3", "torch!=2.12.0,>=2.11"),
    ):
        assert libraries.without_upper_bounds(Requirement(text)) == expected


RUN = """
import warnings
from pathlib import Path

def test_passes(): pass
def test_warns(): warnings.warn("soon gone", FutureWarning)
def test_fails(): assert False
def test_is_skipped():
    import pytest; pytest.skip("here")
def test_breaks(missing): pass
"""


def test_results_are_counted_and_warnings_of_our_files_listed(tmp_path, monkeypatch):
    file = tmp_path / "test_some.py"
    file.write_text(RUN)
    monkeypatch.setattr(libraries, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    # Only what the run needs: hypothesis and others take longer to import than the tests to run.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin,pytest_timeout")
    (tmp_path / "tests" / "support").mkdir(parents=True)
    plugin = Path(our_warnings.__file__).read_text()
    (tmp_path / "tests" / "support" / "our_warnings.py").write_text(plugin)
    outcome = libraries.run_tests(Path(sys.executable), [file])
    assert (outcome.passed, outcome.failed, outcome.reason) == (2, 2, None)
    assert outcome.warnings == ["test_some.py:6: FutureWarning: soon gone"]


def test_a_run_without_a_report_is_said(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 4\n")
    python.chmod(0o755)
    assert libraries.run_tests(python, []).reason == "pytest ended with 4 and no report"


def test_warnings_of_libraries_are_not_ours():
    assert our_warnings.from_our_files(str(ROOT / "modeling_mdm" / "vae.py"))
    assert not our_warnings.from_our_files(warnings.__file__)
    assert not our_warnings.from_our_files(str(ROOT / ".venv/lib/site-packages/peft/a.py"))


def test_rows_replace_those_of_the_same_versions(tmp_path):
    table, versions = tmp_path / "versions.md", dict.fromkeys(libraries.COLUMNS, "1.0")
    libraries.record("latest", versions, libraries.Outcome(5), table)
    libraries.record("lowest", versions, libraries.Outcome(6), table)
    libraries.record("latest", versions, libraries.Outcome(7), table)
    rows = [line for line in table.read_text().splitlines() if line.startswith("| `make")]
    assert [row.rsplit(" | ", 1)[1] for row in rows] == ["7 |", "6 |"]
    assert table.read_text().startswith(libraries.HEADER)


def test_every_file_of_the_run_is_there():
    assert all((ROOT / test).is_file() for test in libraries.TESTS)


# --- a repository of the Hub carries no requirements


@pytest.mark.parametrize(
    ("installed", "is_newer"),
    [
        *(("5.24.0", False), ("5.24.3", False), ("5.17.0", False)),
        *(("5.25.0", True), ("5.25.0.dev0", True), ("6.0.0", True)),
    ],
)
def test_a_newer_version_than_the_newest_tested_is_said_once(monkeypatch, installed, is_newer):
    monkeypatch.setattr("modeling_mdm.version.TESTED_TRANSFORMERS", "5.24")
    said = []
    logger = logging.get_logger("modeling_mdm")
    monkeypatch.setattr(logger, "warning", lambda message, *_: said.append(message))
    logging.warning_once.cache_clear()
    warn_if_untested(installed)
    warn_if_untested(installed)
    assert len(said) == is_newer
    assert all(f"transformers {installed} is newer than 5.24" in message for message in said)


def test_the_word_comes_once_at_import_of_shipped_code(tmp_path, monkeypatch):
    """What loads a model and what loads a processor alone both say it, a process once."""
    package = tmp_path / "shipped_copy"
    shutil.copytree(ROOT / "modeling_mdm", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text("")  # as in a folder of the Hub: nothing is registered
    for name in ("version", "processor/compatibility"):
        version = package / f"{name}.py"
        changed = version.read_text().replace(f'"{TESTED_TRANSFORMERS}"', '"5.0"')
        assert changed != version.read_text()  # both name the newest tested
        version.write_text(changed)
    monkeypatch.syspath_prepend(tmp_path)
    said = []
    logger = logging.get_logger("modeling_mdm")
    monkeypatch.setattr(logger, "warning", lambda message, *_: said.append(message))
    logging.warning_once.cache_clear()
    for name in ("configuration_mdm", "processor.processing_mdm"):
        module = importlib.import_module(f"shipped_copy.{name}")
        assert Path(module.__file__).is_relative_to(package)
        assert "\nwarn_if_untested()\n" in Path(module.__file__).read_text(), name
    assert len(said) == 1 and "is newer than 5.0, the newest that this code" in said[0]
