# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""transformers' own common tests, out of the source archive of the installed version.

The archive is the one thing here that comes from a network: `make test` and `make conformance`
fetch it once, from the package index, by running this file. Without it the tests are skipped.
"""

import importlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import transformers
from PIL import Image

CACHE = Path(__file__).resolve().parent.parent.parent / ".conformance"
SOURCES = CACHE / f"transformers-{transformers.__version__}"
PACKAGE = "transformers_common_tests"

# Mix-ins that the common tests import and the archive does not hold: nothing of theirs can run.
ABSENT = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
}


def fetch(folder: Path = CACHE) -> None:
    """Download the source archive of the installed version and unpack it, unless it is there.

    Raises:
        subprocess.CalledProcessError: if the package index is out of reach.
    """
    if (SOURCES / "tests").is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary"]
    command += ["transformers", "--no-build-isolation", "--dest", str(folder), requirement]
    command += ["--retries", "1", "--timeout", "15"]  # soon done where there is no network
    subprocess.run(command, check=True)
    (archive,) = folder.glob(f"transformers-{transformers.__version__}.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    archive.unlink()


def load(name: str) -> ModuleType:
    """Import one file of the common tests; skip the module that asks where there is no archive."""
    if not (SOURCES / "tests").is_dir():
        pytest.skip(
            f"{CACHE.name}/{SOURCES.name} is absent: `make test` fetches it where it can reach the "
            "package index",
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
    helper.url_to_local_path = _local_picture
    sys.modules["fetch_hub_objects_for_ci"] = helper


def _local_picture(address: str, *_: object) -> str:
    """A picture of smooth colours for the address of one: no test needs to know what it shows."""
    if not address.endswith((".png", ".jpg")):
        return address
    path = CACHE / "picture.png"
    if not path.is_file():
        x, y = np.meshgrid(np.linspace(0, 255, 640), np.linspace(0, 255, 480))
        part = path.with_suffix(f".{os.getpid()}.png")
        Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)).save(part)
        part.replace(path)  # at once, because several processes may write it
    return str(path)


if __name__ == "__main__":
    try:
        fetch()
    except subprocess.CalledProcessError:
        sys.exit("transformers' common tests cannot be fetched from the package index")
