# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The pages' Python runs as it stands, with the shipped checkpoint, and their links hold."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from pages import ROOT, blocks, log_pages, pages, text_of
from PIL import Image

from modeling_mdm import MDMProcessor
from modeling_mdm.data.conversations import ConversationCollator
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.talks import load_talks

FASHION = ROOT / "examples" / "checkpoints" / "mdm-fashion"
# Pages with Python, whose blocks go on from each other, and what their names must hold at the end.
CHECKS = {}


def check(page):
    def add(function):
        CHECKS[page] = function
        return function

    return add


@check("README.md")
def check_readme(names, folder):
    assert names["both"].text and names["both"].image.size == (28, 28)
    assert names["dress"].image.size == (28, 28) and names["caption"].text
    assert names["fitting"] == "a photo of an ankle boot"
    given = names["picture"].crop((0, 0, 28, 14))
    assert names["repainted"].image.crop((0, 0, 28, 14)).tobytes() == given.tobytes()


@check("model_card.md")
def check_card(names, folder):
    assert (folder / "dress.png").is_file()


@check("docs/answer.md")
def check_answer(names, folder):
    assert names["model"].active_adapters == ["default"]


@check("docs/tasks.md")
def check_tasks(names, folder):
    assert len(names["samples"]) == 4
    assert all(sample.text and sample.image.size == (28, 28) for sample in names["samples"])
    for picture in (names["dress"].image, names["boot"].image, names["classified"]):
        assert picture.size == (28, 28)
    assert names["fitting"] == "a photo of an ankle boot"
    given = names["picture"].crop((0, 0, 28, 14))
    assert names["repainted"].crop((0, 0, 28, 14)).tobytes() == given.tobytes()
    assert names["filled"].startswith("a photo of a ")
    assert [item[0]["image"].size for item in names["drawn"]] == [(28, 28)] * 2
    assert names["said"][0]["generated_text"] and names["described"][0]["generated_text"]
    with Image.open(folder / "dress.gif") as film:
        assert film.n_frames > 1
    assert (folder / "selection.png").is_file()


@check("docs/load.md")
def check_load(names, folder):
    assert (folder / "my-mdm" / "modeling_mdm.py").is_file()
    weight = names["quantized"].decoder.layers[0].mixer.in_proj.weight
    assert type(weight) is not torch.nn.Parameter
    assert set(names["offloaded"].hf_device_map.values()) == {"cpu", "disk"}
    for drawn in (names["small"], names["large"]):
        assert drawn.images.shape == (1, 1, 28, 28)


def test_every_page_with_python_is_run():
    assert {page for page in pages() if blocks(page, "python")} == set(CHECKS)


def run_python(page, folder, monkeypatch, shortened):
    """Run a page's blocks in a folder, one after another, and check what they leave."""
    for name in ("examples", "docs"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    names: dict = {}
    for block in blocks(page, "python"):
        text = re.sub(r"num_inference_steps(\W+)\d+", r"num_inference_steps\g<1>4", block)
        exec(compile(text if shortened else block, page, "exec"), names)
    CHECKS[page](names, folder)


# accelerate warns of a parameter that lies directly in a module which it splits.
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")
# peft asks the model by transformers' old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("page", CHECKS)
def test_python_of_the_page_runs(page, monkeypatch, tmp_path):
    """As it stands, but for the longest page, which samples in two steps here."""
    run_python(page, tmp_path, monkeypatch, shortened=page == "docs/tasks.md")


@pytest.mark.slow
def test_python_of_the_longest_page_runs_as_it_stands(monkeypatch, tmp_path):
    run_python("docs/tasks.md", tmp_path, monkeypatch, shortened=False)


def test_the_schemas_of_ones_own_data(tmp_path):
    """Lines of JSON on the pages are read as they stand."""
    pictures, several = blocks("docs/own_pictures.md", "jsonl")
    (talks,) = blocks("docs/answer.md", "jsonl")
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
    (tmp_path / "metadata.jsonl").write_text(several, encoding="utf-8")
    data = load_training_data(str(tmp_path))
    assert [text for _, text in data.texts()] == json.loads(several)["captions"]
    talks = load_talks(str(tmp_path / "talks" / "talk.jsonl"))
    processor = MDMProcessor.from_pretrained(FASHION)
    batch = ConversationCollator(processor, 32)([talks[n] for n in range(2)])
    assert not talks.skipped and batch["pixel_values"].shape == (2, 1, 1, 28, 28)


def pipelines_block():
    (block,) = (b for b in blocks("docs/tasks.md", "python") if "import pipeline" in b)
    return block


@pytest.mark.parametrize("block", ["pipelines", pytest.param("README", marks=pytest.mark.slow)])
def test_a_block_runs_as_a_process_of_its_own(block, tmp_path):
    """As a newcomer pastes it: nothing has imported the package before."""
    text = pipelines_block() if block == "pipelines" else blocks("README.md", "python")[0]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = tmp_path / "block.py"
    script.write_text(re.sub(r"(num_inference_steps\W+)10", r"\g<1>2", text))
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


def anchors(page):
    """Where links into a page may lead: its headings, as GitHub and the site spell them."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*pages(), *log_pages()])
def test_links_of_the_page_hold(page):
    """In a checkout; `make docs` sees that they do in the site."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text_of(page)):
        if target.startswith("http"):
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page} names {target}"
        if anchor and not anchor.startswith("modeling_mdm."):  # of the API: made at building
            there = os.path.relpath(file, ROOT)
            assert anchor in anchors(there), f"{page} names #{anchor} of {there}"


def test_the_log_has_a_row_for_each_page():
    rows = re.findall(r"^\| (\S+) \| \[[^\]]+\]\(docs/log/([^)]+)\) \|", text_of("LOG.md"), re.M)
    assert sorted(name for _, name in rows) == [
        page.removeprefix("docs/log/") for page in log_pages()
    ]
    assert all(name.startswith(date) for date, name in rows)
    assert [date for date, _ in rows] == sorted((date for date, _ in rows), reverse=True)


def test_the_readme_is_one_page_long():
    assert len(text_of("README.md").splitlines()) <= 130


def test_the_shipped_card_is_the_model_card():
    assert (FASHION / "README.md").read_bytes() == (ROOT / "model_card.md").read_bytes()


@pytest.mark.skipif(find_spec("mkdocs") is None, reason='mkdocs is of the extra "docs"')
@pytest.mark.slow
def test_the_pages_build_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file() and (tmp_path / "equations.html").is_file()
    assert "modeling_mdm.MDMConfig" in (tmp_path / "api.html").read_text(encoding="utf-8")


def test_pages_of_the_site_lead_to_pages_and_pictures_of_it(monkeypatch):
    """Else `make docs`, which CI does not run, fails: a link to a file that the site lacks."""
    for name in ("config.defaults", "structure.files", "structure.pages"):  # used as types
        monkeypatch.setitem(sys.modules, f"mkdocs.{name}", MagicMock())
    spec = spec_from_file_location("site_pages", ROOT / "docs" / "pages.py")
    site = module_from_spec(spec)
    spec.loader.exec_module(site)
    shown = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in site.PAGES)]
    shown += [page for folder in site.SHOWN for page in (ROOT / folder).glob("*.md")]
    lost = []
    for page in shown:
        for _, link, _ in site.TARGET.findall(page.read_text(encoding="utf-8")):
            file = Path(os.path.normpath(page.parent / link))
            if file.is_file() and file.suffix in (".md", ".png") and site.place_of(file) is None:
                lost.append(f"{page.relative_to(ROOT)}: {link}")
    assert not lost
