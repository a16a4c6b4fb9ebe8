# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A processor is saved, and loads where the package or torchvision is absent."""

import json
import os
import subprocess
import sys

import pytest
from tiny_processor import make_processor, picture

# Saving and loading

LOAD = """
import sys
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

folder, copy = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__name__ == "MDMProcessor"
assert type(processor.image_processor).__name__ == "MDMImageProcessor"
settings = processor.patch_size, processor.max_text_length, processor.num_classes
assert settings == (4, 10, 3), settings
assert processor.chat_template == "{{ messages }}"
inputs = processor(text="a <mask> <pad>", generate="joint", return_tensors="pt")
print(inputs["input_ids"].tolist(), list(inputs["pixel_values"].shape))
pil = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, backend="pil")
assert type(pil).__name__ == "MDMImageProcessorPil"
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer("<pad>")["input_ids"] != [tokenizer.pad_token_id]
processor.save_pretrained(copy)
assert "modeling_mdm" not in sys.modules
"""


@pytest.mark.slow  # in the fast lane test_remote_code.py loads a model with its processor so
def test_loads_where_the_package_is_not_installed(tmp_path):
    processor = make_processor(chat_template="{{ messages }}")
    processor.save_pretrained(tmp_path / "saved")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    result = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "saved", tmp_path / "copy"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    inputs = processor(text="a <mask> <pad>", generate="joint")
    assert json.loads(result.stdout.split("]] ")[0] + "]]") == inputs["input_ids"]
    assert "[1, 1, 8, 8]" in result.stdout
    copied = sorted(path.name for path in (tmp_path / "copy").iterdir())
    assert copied == sorted(path.name for path in (tmp_path / "saved").iterdir())
    for name in set(copied) - {"tokenizer_config.json"}:  # transformers notes there whence it came
        assert (tmp_path / "copy" / name).read_text() == (tmp_path / "saved" / name).read_text()


WITHOUT_TORCHVISION = """
import sys

sys.modules["torchvision"] = None
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(processor.image_processor).__name__ == "MDMImageProcessorPil"
image = sys.argv[2]
inputs = processor(images=image, generate="text", return_tensors="pt")
assert list(inputs["pixel_values"].shape) == [1, 1, 8, 8]
"""


@pytest.mark.slow
def test_loads_without_torchvision(tmp_path):
    make_processor().save_pretrained(tmp_path)
    picture(shape=(20, 30)).save(tmp_path / "a.png")
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCHVISION, tmp_path, tmp_path / "a.png"],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_saved_files(tmp_path):
    make_processor().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config["auto_map"] == {"AutoProcessor": "processing_mdm.MDMProcessor"}
    assert config["image_processor"]["auto_map"]["AutoImageProcessor"] == [
        "image_processing_pil_mdm.MDMImageProcessorPil",
        "image_processing_mdm.MDMImageProcessor",
    ]
    # A plain fast tokenizer: no code of ours is needed to load it alone.
    assert "AutoTokenizer" not in (tmp_path / "tokenizer_config.json").read_text()
