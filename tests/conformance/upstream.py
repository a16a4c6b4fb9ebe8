# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' own common tests, out of the source archive of the installed version.

The archive is the one thing here that comes from a network: `make conformance` fetches it once,
from the package index, by running this file.
"""

import importlib
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers

CACHE = Path(__file__).resolve().parent.parent.parent / ".conformance"
SOURCES = CACHE / f"transformers-{transformers.__version__}"
PACKAGE = "transformers_common_tests"

# Mix-ins that the common tests import and the archive does not hold: nothing of theirs can run.
ABSENT = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
}


def fetch(folder: Path = CACHE) -> None:
    """Download the source archive of the installed version and unpack it, unless it is there."""
    if (SOURCES / "tests").is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary"]
    command += ["transformers", "--no-build-isolation", "--dest", str(folder), requirement]
    subprocess.run(command, check=True)
    (archive,) = folder.glob(f"transformers-{transformers.__version__}.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    archive.unlink()


def load(name: str) -> ModuleType:
    """Import one file of the common tests; skip the module that asks where there is no archive."""
    if not (SOURCES / "tests").is_dir():
        pytest.skip(
            f"{CACHE.name}/{SOURCES.name} is absent: `make conformance` fetches it",
            allow_module_level=True,
        )
    if PACKAGE not in sys.modules:
        _prepare()
    return importlib.import_module(f"{PACKAGE}.{name}")


def _prepare() -> None:
    package = ModuleType(PACKAGE)
    package.__path__ = [str(SOURCES / "tests")]
    sys.modules[PACKAGE] = package
    for path, contents in ABSENT.items():
        parent, _ = path.split(".")
        sys.modules[f"{PACKAGE}.{parent}"] = ModuleType(f"{PACKAGE}.{parent}")
        module = ModuleType(f"{PACKAGE}.{path}")
        vars(module).update(contents)
        sys.modules[f"{PACKAGE}.{path}"] = module
    # A helper of their build machines, which looks addresses up in a cache of files.
    helper = ModuleType("fetch_hub_objects_for_ci")
    helper.url_to_local_path = lambda address, *_: address
    sys.modules["fetch_hub_objects_for_ci"] = helper


if __name__ == "__main__":
    fetch()
