# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The README's Python runs as it stands, with the shipped checkpoint."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_mdm import MDMProcessor
from modeling_mdm.data.conversations import ConversationCollator
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.talks import load_talks

ROOT = Path(__file__).resolve().parents[2]


# accelerate warns of a parameter that lies directly in a module which it splits.
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")
@pytest.mark.parametrize("page", ["README.md", "model_card.md"])
def test_python_of_the_page_runs(page, monkeypatch, tmp_path):
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for name in ("examples", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    if page == "README.md":
        assert len(names["samples"]) == 4
        assert all(sample.text and sample.image.size == (28, 28) for sample in names["samples"])
        for picture in (names["dress"].image, names["boot"].image, names["classified"]):
            assert picture.size == (28, 28)
        assert names["fitting"] == "a photo of an ankle boot"
        given = names["picture"].crop((0, 0, 28, 14))
        assert names["repainted"].crop((0, 0, 28, 14)).tobytes() == given.tobytes()
        assert [item[0]["image"].size for item in names["drawn"]] == [(28, 28)] * 2
        assert names["caption"][0]["generated_text"]
        assert names["described"][0]["generated_text"]
        assert (tmp_path / "my-mdm" / "modeling_mdm.py").is_file()
        weight = names["quantized"].decoder.layers[0].mixer.in_proj.weight
        assert type(weight) is not torch.nn.Parameter
        assert set(names["offloaded"].hf_device_map.values()) == {"cpu", "disk"}
        for drawn in (names["small"], names["large"]):
            assert drawn.images.shape == (1, 1, 28, 28)
    else:
        assert (tmp_path / "dress.png").is_file()


def test_the_schemas_of_ones_own_data(tmp_path):
    """Lines of JSON on the page are read as they stand."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures, talks = re.findall(r"```jsonl\n(.*?)```", text, re.DOTALL)
    for name in re.findall(r'"([^"]+\.(?:png|jpg))"', pictures + talks):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (28, 28), 90).save(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text(pictures, encoding="utf-8")
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks" / "talk.jsonl").write_text(talks, encoding="utf-8")
    (tmp_path / "pictures").rename(tmp_path / "talks" / "pictures")
    data = load_training_data(str(tmp_path))
    assert [data[n]["text"] for n in range(2)] == ["a red scarf", "two gloves on a table"]
    assert all(data[n]["image"].size == (28, 28) for n in range(2)) and not data.skipped
    talks = load_talks(str(tmp_path / "talks" / "talk.jsonl"))
    processor = MDMProcessor.from_pretrained(ROOT / "examples" / "checkpoints" / "mdm-fashion")
    batch = ConversationCollator(processor, 32)([talks[n] for n in range(2)])
    assert not talks.skipped and batch["pixel_values"].shape == (2, 1, 1, 28, 28)


def blocks_that_stand_alone():
    """Python of the README that imports what it uses, and is not said to go on from above."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"### (Pipelines)\n\n```python\n(.*?)```", text, re.DOTALL)
    return blocks + re.findall(r"## (Use it)\n\n```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("title", ["Pipelines", pytest.param("Use it", marks=pytest.mark.slow)])
def test_a_block_runs_as_a_process_of_its_own(title, tmp_path):
    """As a newcomer pastes it: nothing has imported the package before."""
    (block,) = [block for of, block in blocks_that_stand_alone() if of == title]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = tmp_path / "block.py"
    script.write_text(block.replace("num_inference_steps=30", "num_inference_steps=2"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "is not supported" not in done.stderr


def test_pictures_and_files_that_pages_name_exist():
    for page in ("README.md", "model_card.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("http"):
                assert (ROOT / target).exists(), f"{page} names {target}"


def test_the_shipped_card_is_the_model_card():
    shipped = ROOT / "examples" / "checkpoints" / "mdm-fashion" / "README.md"
    assert shipped.read_bytes() == (ROOT / "model_card.md").read_bytes()
