# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The emoji world as it is written, from a few hand-made icons: splits, truth, files, endings."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny_emojis
from emoji_checks import check_no_leaks, check_truth, read, read_all, words
from PIL import Image

import emoji_world
from emojis.sources import read_sources
from emojis.writing import written_aside
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.talks import load_talks

for library in ("resvg_py", "inflect"):
    pytest.importorskip(library, reason='needs `pip install "modeling-mdm[emoji]"`')

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return read_sources(folder, *tiny_emojis.write_sources(folder))


@pytest.fixture(scope="module")
def wordnet_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet")
    tiny_emojis.write_wordnet(folder)
    return str(folder)


def make(sources, folder, **options):
    options = {"num_scenes": 160, "num_talks": 60, "num_edit_talks": 30, **options}
    arguments = emoji_world.EmojiArguments(str(folder), disable_tqdm=True, **options)
    return emoji_world.build(sources, arguments)


@pytest.fixture(scope="module")
def made(sources, wordnet_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "world"
    counts = make(sources, folder, wordnet_dir=wordnet_dir)
    return folder, counts


@pytest.fixture(scope="module")
def rows(made):
    return read_all(made[0])


def test_counts_are_those_of_the_files(made, rows):
    folder, counts = made
    assert json.loads((folder / "counts.json").read_text()) == counts
    for split, own in rows.items():
        single = sum(row["layout"] == "single" for row in own)
        assert (single, len(own) - single) == (counts[split]["single"], counts[split]["scenes"])
        assert counts[split]["captions"] == sum(len(row["captions"]) for row in own)
    assert counts["concepts"] == 33 and counts["styles"] == 4 and counts["held-out concepts"] > 3
    assert counts["train"]["scenes"] > counts["test"]["scenes"] > counts["held_out"]["scenes"] > 0
    kinds = {row["layout"] for own in rows.values() for row in own}
    assert kinds == {"single", "count", "beside", "stacked", "alone"}


def test_no_split_tells_of_another(made):
    check_no_leaks(made[0])


def test_drawings_that_are_alike_share_a_split(rows):
    """Plain and classic draw some concepts alike: where one is tested, neither is trained on."""
    train = {(o["name"], row["style"]) for row in rows["train"] for o in row["objects"]}
    for row in rows["test"]:
        if row["layout"] == "single" and row["objects"][0]["name"] in tiny_emojis.SAME_DRAWING:
            pair = {"plain", "classic"}
            assert (
                row["style"] not in pair
                or not {(row["objects"][0]["name"], s) for s in pair} & train
            )


def held_out_names(rows):
    single = (row for row in rows["held_out"] if row["layout"] == "single")
    return {row["objects"][0]["name"] for row in single}


def test_a_word_of_several_names_is_not_held_out(rows):
    names = {
        o["name"] for row in rows["held_out"] if row["layout"] == "single" for o in row["objects"]
    }
    assert names and not names & {"turtle", "turtle soup", "key", "old key", "cooking"}
    assert all(name.isalpha() for name in names)


def test_the_truth_is_what_is_drawn_and_said(made):
    check_truth(made[0])


def test_held_out_glosses_and_their_kin(made, rows):
    """A gloss that names a held-out thing is no training caption; "hammer" has none that fits."""
    lines = (made[0] / "definitions.jsonl").read_text().splitlines()
    definitions = [json.loads(line) for line in lines]
    held = {
        o["name"] for row in rows["held_out"] if row["layout"] == "single" for o in row["objects"]
    }
    for line in definitions:
        assert (line["split"] == "held_out") == (line["word"] in held)
        assert line["split"] != "train" or not held & words(line["gloss"])
    assert {line["word"] for line in definitions} <= {*tiny_emojis.GLOSSES} - {"hammer", "key"}


def test_the_same_bytes_again(made, sources, wordnet_dir, tmp_path):
    """And not those of another seed."""
    make(sources, tmp_path / "again", wordnet_dir=wordnet_dir)
    first, second = (contents(folder) for folder in (made[0], tmp_path / "again"))
    assert first.keys() == second.keys() and len(first) == 14
    assert [name for name in first if first[name] != second[name]] == []
    name = "data/train-00000-of-00001.parquet"
    make(sources, tmp_path / "other", wordnet_dir=wordnet_dir, seed=1)
    assert contents(tmp_path / "other")[name] != first[name]


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_smaller_picture_has_the_same_words_and_splits(rows, sources, wordnet_dir, tmp_path):
    make(sources, tmp_path / "small", wordnet_dir=wordnet_dir, size=32)
    for split, own in read_all(tmp_path / "small").items():
        for small, large in zip(own, rows[split], strict=True):
            assert (small["id"], small["captions"]) == (large["id"], large["captions"])
        for small, large in list(zip(own, rows[split], strict=True))[::20]:
            reduced = np.asarray(opened(large)).reshape(32, 2, 32, 2, 3).mean((1, 3))
            assert np.abs(np.asarray(opened(small)) - reduced).max() <= 1
            box, half = large["objects"][0]["boxes"][0], small["objects"][0]["boxes"][0]
            assert half == [side // 2 for side in box]


def opened(row):
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def test_the_loaders_of_training_read_it(made, rows):
    for split in rows:
        data = load_training_data(str(made[0]), split=split)
        assert len(data) == len(rows[split]) and data.labels is None
        assert data[0]["text"] == rows[split][0]["captions"][0]
        assert data[0]["image"].size == (64, 64) and not data.skipped
    talks = load_talks(str(made[0] / "talks"), "train")
    kinds = {row["kind"] for row in read(made[0] / "talks", "train", columns=["kind"])}
    assert kinds == {"questions", "describe", "draw", "edit", "define", "which word"}
    for number in range(len(talks)):
        messages = talks[number]["messages"]
        pieces = [piece for message in messages for piece in message["content"]]
        assert all(piece.get("text") or piece["image"].size == (64, 64) for piece in pieces)
    assert not talks.skipped and len(load_talks(str(made[0] / "talks"), "held_out"))


def test_what_is_made_anew_is_read_anew(sources, tmp_path):
    """Under a path where another set was: `datasets` keeps what it read."""
    for scenes in (20, 40):
        shutil.rmtree(tmp_path / "world", ignore_errors=True)
        make(sources, tmp_path / "world", num_scenes=scenes, num_talks=0, num_edit_talks=0)
        data = load_training_data(str(tmp_path / "world"))
        assert len(data) == len(read(tmp_path / "world", "train"))


def test_one_file_holds_all_but_the_conversations(made, tmp_path):
    with tarfile.open(made[0] / "emoji-world-64.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    packed, here = contents(tmp_path / "emoji-world-64"), contents(made[0])
    assert {**packed} == {
        name: content
        for name, content in here.items()
        if not name.startswith("talks") and not name.endswith(".tar")
    }
    assert len(load_training_data(str(tmp_path / "emoji-world-64"), split="test"))


def test_the_licences_are_told(made):
    text = (made[0] / "LICENSES.md").read_text()
    for style in tiny_emojis.WORDS:
        assert f"Who draws {style}" in text and f"https://example.org/{style}" in text
    for part in ("UNICODE LICENSE V3", "MIT License", "WordNet 3.0 Copyright 2006", "Apache-2.0"):
        assert part in text
    card = (made[0] / "README.md").read_text()
    assert "Who draws flat" in card and "WordNet" in card and "{" not in card.split("---")[2]


def test_without_wordnet(sources, tmp_path, capsys):
    counts = make(sources, tmp_path / "world", wordnet_dir=str(tmp_path / "none"), num_scenes=20)
    assert "holds no WordNet: there will be no glosses" in capsys.readouterr().err
    assert counts["train"]["definitions"] == 0 and not (tmp_path / "none").exists()
    assert "WordNet" not in (tmp_path / "world" / "LICENSES.md").read_text()


def with_bad_icons(sources, count):
    plain = sources.icon_sets["plain"]
    bad = [*plain.icons][:count]
    icons = {n: {**icon, "body": "<g"} if n in bad else icon for n, icon in plain.icons.items()}
    sets = {
        **sources.icon_sets,
        "plain": type(plain)(icons, plain.aliases, plain.chars, plain.info),
    }
    return type(sources)(sets, sources.names)


def test_icons_that_do_not_draw_are_counted(sources, tmp_path, capsys):
    counts = make(with_bad_icons(sources, 1), tmp_path / "one", num_scenes=20)
    assert counts["icons that do not draw"] == 1
    assert "left out, since plain lamp: it does not draw" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"2 of 132 icons do not draw, more than 1%"):
        make(with_bad_icons(sources, 2), tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_too_few_concepts_for_scenes(sources, tmp_path):
    with pytest.raises(ValueError, match=r"no scene of the split .* raise limit"):
        make(sources, tmp_path / "world", limit=2)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["resvg_py", "inflect"])
def test_a_missing_library_is_named(name, tmp_path, monkeypatch):
    folder = tmp_path / "sources"
    folder.mkdir()
    tiny_emojis.write_sources(folder)
    script = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "import emoji_world, emojis.sources, tiny_emojis\n"
        "from pathlib import Path\n"
        "from mdm_cli.endings import perform\n"
        f"given = tiny_emojis.write_sources(Path({str(folder)!r}))\n"
        f"read = lambda folder: emojis.sources.read_sources(Path({str(folder)!r}), *given)\n"
        "emoji_world.read_sources = read\n"
        "steps = lambda: (emoji_world.parse, emoji_world.run)\n"
        f"sys.exit(perform('emoji_world.py', steps, sys.argv[1:], 'train,emoji'))\n"
    )
    options = ["--output_dir", str(tmp_path / "world"), "--disable_tqdm", "true"]
    done = run_python(["-c", script, *options])
    assert done.returncode == 1, done.stderr
    assert 'pip install "modeling-mdm[train,emoji]"' in done.stderr.splitlines()[-1]
    assert not (tmp_path / "world").exists()


def run_python(words, **options):
    paths = [str(ROOT / part) for part in ("", "tests/support", "examples/data")]
    paths = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    options |= {"env": {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 48}, r"size=48 must be one of \(32, 64\)"),
        ({"num_backgrounds": 0}, "num_backgrounds=0 must be >= 1"),
        ({"limit": 0}, "limit=0 must be >= 1"),
        ({"num_scenes": -2}, "num_scenes=-2 must be >= 0"),
        ({"seed": -1}, "seed=-1 must be >= 0"),
    ],
)
def test_arguments_are_judged(options, said):
    with pytest.raises(ValueError, match=said):
        emoji_world.EmojiArguments("anywhere", **options)


def test_places_are_judged_before_any_work(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for name in ("full", "full/file"):
        with pytest.raises(FileExistsError, match="name a new folder, or remove it"):
            emoji_world.run(emoji_world.EmojiArguments(str(tmp_path / name)))
    with pytest.raises(FileNotFoundError, match=r"sources_dir=.* is missing"):
        emoji_world.main(
            ["--output_dir", str(tmp_path / "new"), "--sources_dir", f"{tmp_path}/none"]
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="halfway"), written_aside(tmp_path / "world") as folder:
        (folder / "train.parquet").touch()
        assert not (tmp_path / "world").exists()
        raise RuntimeError("halfway")
    assert not [*tmp_path.iterdir()]


def test_a_killed_build_leaves_nothing_that_loads(tmp_path):
    script = (
        "import os, pathlib, sys\nfrom emojis.writing import written_aside\n"
        f"with written_aside(pathlib.Path({str(tmp_path / 'world')!r})) as folder:\n"
        "    (folder / 'train.parquet').touch()\n"
        f"    os.kill(os.getpid(), {signal.SIGKILL:d})\n"
    )
    assert run_python(["-c", script]).returncode == -signal.SIGKILL
    assert not (tmp_path / "world").exists()
    with pytest.raises(FileNotFoundError):
        load_training_data(str(tmp_path / "world"))
    with written_aside(tmp_path / "world") as folder:  # and the next one is not in its way
        (folder / "train.parquet").touch()
    assert [p.name for p in (tmp_path / "world").iterdir()] == ["train.parquet"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_the_command_builds_from_the_registry(tmp_path):
    """A part of the real set: every set of icons and names is fetched, drawn and checked."""
    script = str(ROOT / "examples" / "data" / "emoji_world.py")
    options = ["--output_dir", str(tmp_path / "world"), "--disable_tqdm", "true"]
    done = run_python([script, *options, "--limit", "150", "--num_scenes", "300"])
    if done.returncode and re.search(r"npm pack .*(ENOTFOUND|EAI_AGAIN|ECONNREFUSED)", done.stderr):
        pytest.skip(f"npm's registry cannot be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["concepts"] == 150 and counts["styles"] == 8
    assert counts["icons that do not draw"] == 0
    check_no_leaks(tmp_path / "world")
    check_truth(tmp_path / "world")
