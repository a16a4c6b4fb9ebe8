# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What may know of what: the rooms of the package, the arrows between them, and no circle.

Every import counts, those within functions and for type checkers too.
"""

from fnmatch import fnmatch
from pathlib import Path

import pytest
from imports import circles, imports_of_all
from transformers.dynamic_module_utils import get_imports

ROOT = Path(__file__).resolve().parents[2]

# Files of the package itself by room; a folder is a room of its own.
ROOMS = {
    "entrance": "__init__",
    "ground": (
        "configuration_mdm version hub pipeline_mdm matching checks distributed context_parallel"
    ),
    "mathematics": (
        "diffusion score_entropy solvers likelihood ssd* convolution* triton_support matmul "
        "scan_orders selection precision"
    ),
    "network": (
        "network decoder block attention vae inputs content sequence cache past_turns scan_pass "
        "loss training_step draws"
    ),
    "generation": "generation_*",
    "model": "modeling_mdm scoring",
}

# What a room may know beside itself. Files that travel to the Hub come first: below `model` each
# knows what is below it alone, and a processor's nothing at all, since it travels without a model.
SHIPPED = ("ground", "mathematics", "network", "generation", "model")
PACKAGE = (*SHIPPED, "processor", "display", "entrance")
MAY_KNOW = {
    "mathematics": (),
    "ground": (),
    "network": ("ground", "mathematics"),
    "generation": ("ground", "mathematics", "network"),
    "model": ("ground", "mathematics", "network", "generation"),
    "processor": (),
    "display": ("processor", "generation"),
    "entrance": (*SHIPPED, "processor", "display"),
    "mdm_cli": (),
    "data": ("processor", "mdm_cli"),
    "planning": SHIPPED,
    "training": (*PACKAGE, "data", "planning", "mdm_cli"),
    "evaluation": (*PACKAGE, "data", "training", "mdm_cli"),
    "cli": (*PACKAGE, "data", "planning", "training", "evaluation", "mdm_cli"),
    "benchmarks": (*SHIPPED, "planning"),
    "processing": (*PACKAGE, "data", "training", "mdm_cli"),
    "configuration": (*PACKAGE, "mdm_cli"),
    "examples": (*PACKAGE, "data", "planning", "training", "evaluation", "cli", "mdm_cli"),
}

# Each of the two loads the other where it is asked for it, so that a saved one takes both along.
IMAGE_PROCESSORS = [
    "modeling_mdm/processor/image_processing_mdm.py",
    "modeling_mdm/processor/image_processing_pil_mdm.py",
]


def room_of(file):
    package, *folders, name = Path(file).parts
    if package != "modeling_mdm":
        return package
    if folders:
        return folders[0]
    rooms = [
        room
        for room, patterns in ROOMS.items()
        if any(fnmatch(name, f"{pattern}.py") for pattern in patterns.split())
    ]
    assert len(rooms) == 1, f"{file} has {len(rooms)} rooms: give it one in ROOMS of {__file__}"
    return rooms[0]


def forbidden(imports):
    """The arrows that may not be, each as (file, file)."""
    return [
        (file, other)
        for file, others in imports.items()
        for other in sorted(others)
        if room_of(other) not in (room_of(file), *MAY_KNOW[room_of(file)])
    ]


def circles_of(imports):
    return [group for group in circles(imports) if group != IMAGE_PROCESSORS]


@pytest.fixture(scope="module")
def imports():
    return imports_of_all(ROOT)


def test_every_room_is_there(imports):
    found = {room_of(file) for file in imports}
    assert found == set(MAY_KNOW)
    assert {room for rooms in MAY_KNOW.values() for room in rooms} <= found


def test_no_room_knows_what_it_may_not(imports):
    found = forbidden(imports)
    assert not found, "\n".join(f"{file} imports {other}" for file, other in found)


def test_mathematics_knows_nothing_of_the_model(imports):
    """Nor of transformers, whose types a model is made of."""
    for file in imports:
        if room_of(file) == "mathematics" and file != "modeling_mdm/precision.py":
            assert "transformers" not in get_imports(ROOT / file), file


def test_no_imports_run_in_a_circle(imports):
    found = circles_of(imports)
    assert not found, "\n".join(" - ".join(group) for group in found)


def test_the_image_processors_take_each_other_along(imports):
    first, second = IMAGE_PROCESSORS
    assert second in imports[first] and first in imports[second]


PLANTED = {
    "mathematics knows the model": ("solvers.py", "from .modeling_mdm import MDMOutput"),
    "mathematics knows the configuration": ("ssd.py", "from .configuration_mdm import MDMConfig"),
    "in a function": ("block.py", "def f():\n    from .generation_mdm import MDMGenerationMixin"),
    "for type checkers": (
        "decoder.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import generation_mdm",
    ),
    "a shipped file knows data": ("inputs.py", "from .data.captions import CaptionTable"),
    "a shipped file knows the display": ("scoring.py", "import modeling_mdm.display.streamer"),
    "a shipped file knows the command line": ("hub.py", "from mdm_cli.places import is_hub_id"),
    "a shipped file knows the entrance": ("loss.py", "from modeling_mdm import MDMConfig"),
    "a processor knows the model": ("processor/chat.py", "from ..hub import JOINT_TASK"),
    "training knows evaluation": ("training/ema.py", "from ..evaluation import judge"),
    "planning knows training": ("planning/flops.py", "from modeling_mdm.training import train"),
    "data knows training": ("data/idx.py", "from modeling_mdm.training import train"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_arrow_is_found(case, imports, tmp_path):
    name, line = PLANTED[case]
    for file in imports:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "modeling_mdm" / name).write_text(line)
    ((file, _),) = forbidden(imports_of_all(tmp_path))
    assert file == f"modeling_mdm/{name}"


def test_planted_circles_are_found():
    three = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f"}, "f": {"e"}}
    assert circles(three) == [["a", "b", "c"], ["e", "f"]]
    first, second = IMAGE_PROCESSORS
    known = {first: {second}, second: {first}}
    assert circles_of(known) == []
    assert circles_of({**known, second: {first, "c"}, "c": {first}})
