# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which files travel with what is saved: the model's, the processor's, and no others."""

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_digits import ROOT, make_processor
from tiny_model import make_model
from transformers.dynamic_module_utils import get_imports, get_relative_imports

PACKAGE = ROOT / "modeling_mdm"
SHIPPED = {path.name: path for path in (*PACKAGE.glob("*.py"), *PACKAGE.glob("processor/*.py"))}
PROCESSOR_FILES = sorted(PACKAGE.glob("processor/*.py"))
ROOMS_AT_HOME = ("cli", "data", "display", "evaluation", "training")
CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a four?"}]},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "a two?"},
]


def use(processor):
    """What a processor makes of texts, pictures and a chat, and of what a model wrote."""
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    plain = processor(
        text=["a four", "a <mask>"], images=[picture, None], generate="text", return_tensors="pt"
    )
    chat = processor.apply_chat_template(
        CHAT,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"images": [picture], "generation_mode": "joint"},
    )
    (sample,) = processor.post_process(torch.tensor([[*plain["input_ids"][0].tolist()]]))
    drawn = processor.post_process(torch.zeros(1, 1, 8, 8))[0].image
    return dict(plain), dict(chat), sample.text, drawn.tobytes()


ALONE = f"""
import sys

for name in ("modeling_mdm", "mdm_cli", "mamba_ssm"):
    sys.modules[name] = None  # as if none were installed
import numpy as np
import torch
from transformers import AutoImageProcessor, AutoProcessor

CHAT = {CHAT}
folder, results = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
for loaded in (processor, image_processor):
    assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
"""


def save_processor(folder):
    processor = make_processor()
    processor.save_pretrained(folder)
    return processor


def test_a_processor_saved_alone_loads_and_works_alone(tmp_path):
    """In a process that finds neither this package nor a file of the model."""
    folder, results = tmp_path / "alone", tmp_path / "results.pt"
    processor = save_processor(folder)
    script = ALONE + inspect.getsource(use) + "torch.save(use(processor), results)\n"
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error::FutureWarning", "-c", script, folder, results],
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_HOME": str(tmp_path / "home"),
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = use(processor), torch.load(results)
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert set(mine) == set(other) and len(mine) > 4
        assert all(torch.equal(value, other[name]) for name, value in mine.items())
    assert ours[2:] == theirs[2:]


def test_a_processor_takes_its_own_files_and_none_of_the_models(tmp_path):
    save_processor(tmp_path)
    own = {path.name for path in PROCESSOR_FILES} - {"__init__.py"}
    assert {path.name for path in tmp_path.glob("*.py")} == own
    for path in tmp_path.glob("*.py"):
        assert path.read_bytes() == (PACKAGE / "processor" / path.name).read_bytes()


def test_no_file_that_stays_at_home_is_beside_a_saved_model(tmp_path):
    """Neither its name nor its content, and the two entry classes' files never share a name."""
    make_model(torch.float32).save_pretrained(tmp_path)
    models = {path.name for path in tmp_path.glob("*.py")}
    save_processor(tmp_path)
    code = {path.name: path.read_bytes() for path in tmp_path.glob("*.py")}
    assert {"modeling_mdm.py", "pipeline_mdm.py"} <= models
    assert not models & {path.name for path in PROCESSOR_FILES}
    assert all(content == SHIPPED[name].read_bytes() for name, content in code.items())
    at_home = [path for room in ROOMS_AT_HOME for path in (PACKAGE / room).rglob("*.py")]
    assert len(at_home) > 30 and {rooms_of(path)[0] for path in at_home} == set(ROOMS_AT_HOME)
    contents = {path.read_bytes() for path in at_home if path.name != "__init__.py"}
    assert not contents & set(code.values())
    named = {value for path in tmp_path.glob("*.json") for value in code_named_in(path)}
    assert named and {f"{name.split('.')[0]}.py" for name in named} <= set(code)


def rooms_of(path: Path) -> tuple[str, ...]:
    """Folders of the package that a file is in, the outer ones first."""
    return path.relative_to(PACKAGE).parent.parts


def code_named_in(path: Path) -> set[str]:
    """What the `auto_map`s and pipelines of a file of settings name, at any depth."""
    found: set[str] = set()

    def look(value, is_code=False):
        if isinstance(value, str) and is_code:
            found.add(value)
        elif isinstance(value, dict):
            for name, inner in value.items():
                look(inner, name in ("auto_map", "impl") or is_code)
        elif isinstance(value, list):
            for inner in value:
                look(inner, is_code)

    look(json.loads(path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("path", PROCESSOR_FILES, ids=lambda path: path.name)
def test_a_file_of_the_processor_imports_its_neighbours_alone(path):
    """Those by `from .name import X`, and what every user of transformers has."""
    names = {file.stem for file in PROCESSOR_FILES} - {"__init__"}
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            assert node.level == 1 and node.module is not None, ast.unparse(node)
            imported.add(node.module)
    assert imported <= names
    # The scanner is a regular expression over the text: a docstring line can fool it.
    assert set(get_relative_imports(path)) == imported
    allowed = {"torch", "torchvision", "transformers", "numpy", "PIL", "packaging"}
    assert set(get_imports(path)) <= allowed | set(sys.stdlib_module_names)
