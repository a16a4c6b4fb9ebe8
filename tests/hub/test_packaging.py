# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The package as it is shipped: metadata, the rules of its flat files, licence headers."""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import tokenize
import zipfile
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "modeling_mdm"
PACKAGES = (PACKAGE, ROOT / "mdm_cli")  # the second starts before the first is imported
VERSION_FILE = PACKAGE / "version.py"
FLAT_FILES = sorted(PACKAGE.glob("*.py"))
HUGGING_FACE = {"transformers", "huggingface-hub", "tokenizers", "safetensors"}
GENERATED = {"outputs", "runs", "data", "build", "dist"}


def repository_files(*suffixes: str) -> list[Path]:
    """List the project's own files with these suffixes: no environments, caches or outputs."""
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        here = Path(folder)
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not (name.startswith(".") and name != ".ci")
            and not name.endswith((".egg-info", "__pycache__"))
            and not (here == ROOT and name in GENERATED)
            and not (here / name / "pyvenv.cfg").exists()
        )
        # In a worktree, git's own `.git` is a file.
        names = [name for name in sorted(names) if (here / name).suffix in suffixes]
        found += [here / name for name in names if name != ".git"]
    return found


def in_repository(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PYTHON_FILES = repository_files(".py")


# --- the version and the metadata ---


def test_version_is_written_in_one_place():
    """Only `version.py` assigns a version, and no other source repeats the number."""
    version = re.search(r'^__version__ = "(\d+\.\d+\.\d+)"$', VERSION_FILE.read_text(), re.M)
    assert version is not None
    assigned = re.compile(r"""^\s*(__)?version(__)?\s*=\s*["']""", re.MULTILINE)
    sources = [*PYTHON_FILES, ROOT / "pyproject.toml"]
    texts = {path: path.read_text(encoding="utf-8") for path in sources}
    assert [path for path, text in texts.items() if assigned.search(text)] == [VERSION_FILE]
    assert [path for path, text in texts.items() if f'"{version[1]}"' in text] == [VERSION_FILE]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the sources, with no network, and open it."""
    work = tmp_path_factory.mktemp("wheel")
    sources = work / "sources"
    sources.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, sources / name)
    # Folders that must stay out of the wheel are there as packages, to see that they do.
    for name in ("configuration", "examples", "processing", "tests"):
        (sources / name).mkdir()
        (sources / name / "__init__.py").touch()
    for package in PACKAGES:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, sources / package.name, ignore=unwanted)
    build = (
        "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", build, str(work)],
        cwd=sources,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = work.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {in_repository(path) for package in PACKAGES for path in package.rglob("*.py")}
    assert names == sources | {"modeling_mdm/py.typed"}


def test_the_installed_command_runs_from_the_wheel(wheel, tmp_path):
    """Elsewhere, with no sources near: the version and an error, without a heavy import."""
    wheel.extractall(tmp_path / "site")
    script = """
import sys
from importlib.metadata import distributions
site = sys.argv.pop(1)
sys.path.insert(0, site)
(installed,) = distributions(path=[site])
(command,) = installed.entry_points.select(group="console_scripts", name="mdm")
try:
    command.load()()
except SystemExit as ended:
    assert sys.modules["mdm_cli"].__file__.startswith(site)
    assert not {"torch", "transformers", "modeling_mdm"} & set(sys.modules)
    sys.exit(ended.code)
"""
    command = [sys.executable, "-I", "-c", script, str(tmp_path / "site")]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([*command, "--version"], **options)
    assert done.returncode == 0 and done.stderr == ""
    assert f'"{done.stdout.split()[1]}"' in VERSION_FILE.read_text()
    done = subprocess.run([*command, "generate", "--wriet", "text"], **options)
    assert done.returncode == 2 and "usage: mdm generate" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tests_of_the_command_line_pass_with_what_the_wheel_installs(wheel, tmp_path):
    """In a folder that has tests and examples, and of the sources only what is in the wheel."""
    for name in ("tests", "examples", "configuration", "processing"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    wheel.extractall(tmp_path)
    options = {
        "cwd": tmp_path,
        "env": {**os.environ, "PYTHONPATH": str(tmp_path)},
        "capture_output": True,
        "text": True,
        "check": False,
    }
    show = "import mdm_cli, modeling_mdm; print(mdm_cli.__file__, modeling_mdm.__file__)"
    done = subprocess.run([sys.executable, "-c", show], **options)
    assert all(Path(place).is_relative_to(tmp_path) for place in done.stdout.split()), done.stderr
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not gpu"]
    done = subprocess.run([*command, "tests/cli/test_cli.py"], **options)
    assert done.returncode == 0, done.stdout[-4000:]


def test_wheel_metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Name"] == "modeling-mdm"
    assert f'"{metadata["Version"]}"' in VERSION_FILE.read_text()
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    extras = {"train", "app", "emoji", "docs", "kernels", "dev"}
    extras |= {"eval", "eval-text", "eval-lite", "eval-suite"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert any(line.endswith(".dist-info/licenses/LICENSE") for line in wheel.namelist())
    requirements = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    core = {re.match(r"[\w-]+", line)[0] for line in requirements}
    assert core == {"torch", "torchvision", "pillow", "numpy"} | HUGGING_FACE


# --- the flat files, which travel to the Hub as they are ---


def test_flat_file_imports():
    """Transformers' own scanner of remote code finds only what every user of it has."""
    # huggingface_hub is where transformers' configurations get their `strict` from.
    allowed = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"}
    allowed |= set(sys.stdlib_module_names)
    others = {path.name: set(get_imports(path)) - allowed for path in FLAT_FILES}
    assert {name: found for name, found in others.items() if found} == {}


def check_relative_imports(path):
    siblings = {file.stem for file in FLAT_FILES}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            assert node.level == 1 and node.module is not None, ast.unparse(node)
            imported.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] != "modeling_mdm", ast.unparse(node)
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "modeling_mdm" for alias in node.names)
    assert imported <= siblings
    # The scanner is a regular expression over the text: a docstring line can fool it.
    assert set(get_relative_imports(path)) == imported, path


def test_flat_file_relative_imports():
    """Siblings are imported by `from .name import X`; prose never looks like an import."""
    for path in FLAT_FILES:
        if path.stem != "__init__":  # which stays at home
            check_relative_imports(path)


def identifiers(tree: ast.AST) -> set[str]:
    """Collect every name that a source binds, reads, takes as an argument or passes by keyword."""
    fields = ("id", "arg", "attr", "name", "asname", "rest")
    names = {getattr(node, field, None) for node in ast.walk(tree) for field in fields}
    for node in ast.walk(tree):
        if isinstance(node, ast.Global | ast.Nonlocal):
            names |= set(node.names)
    return {name for name in names if isinstance(name, str)}


def test_the_banned_name():
    """`dt` is Delta in Mamba and a time step in diffusion, so it is neither here."""
    paths = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    assert [in_repository(path) for path, tree in trees.items() if "dt" in identifiers(tree)] == []


# --- every file of the repository ---


def has_licence_header(path):
    with tokenize.open(path) as file:
        lines = [file.readline().rstrip("\n") for _ in range(2)]
    copyright_line = re.fullmatch(r"# Copyright 20\d\d The MDM Authors\.", lines[0])
    return bool(copyright_line) and lines[1] == "# SPDX-License-Identifier: Apache-2.0"


def test_licence_header():
    assert [in_repository(path) for path in PYTHON_FILES if not has_licence_header(path)] == []


def test_no_path_of_a_developers_machine():
    # In pieces, so that this file does not hold what it looks for.
    roots = "|".join(["work", "root", "home", "Users"])
    pattern = re.compile(rf"(?<![\w.~$}})])/(?:{roots})(?![\w-])")
    suffixes = (".py", ".md", ".toml", ".json", ".yaml", ".yml", ".txt", ".in", ".sh", ".cfg", "")
    guilty = [
        f"{in_repository(path)}:{number}: {line.strip()[:120]}"
        for path in repository_files(*suffixes)
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert guilty == []
