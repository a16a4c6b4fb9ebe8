# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Streams: mixtures by weight, tar shards, damaged samples, and going on in the middle."""

import io
import json
import shutil
import tarfile
from itertools import islice

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_digits import ROOT, load_script, save_config_folder

from modeling_mdm.data.stream_sources import read_recipe
from modeling_mdm.data.streams import MixedStream, StreamSource, crop_to_ratio

PICTURES, TEXTS = 30, 40


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """`datasets` waits ten seconds after every pass over Parquet, for Arrow's threads at exit."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def png(value, size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Tar shards of pictures with captions, two of them damaged, and a Parquet file of talks."""
    folder = tmp_path_factory.mktemp("streams")
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(shard * 10, shard * 10 + 10):
                image = b"damaged" if number in (4, 17) else png(number)
                for suffix, content in (("png", image), ("txt", f"picture {number}".encode())):
                    info = tarfile.TarInfo(f"{number:03}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    talks = [
        [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a" * (n % 7)}]
        for n in range(TEXTS)
    ]
    datasets.Dataset.from_dict({"messages": talks}).to_parquet(folder / "talks.parquet")
    pictures = StreamSource(
        "webdataset",
        weight=3.0,
        columns={"image": "png", "text": "txt"},
        data_files={"train": [str(folder / f"{shard}.tar") for shard in range(3)]},
    )
    texts = StreamSource(
        "parquet",
        columns={"messages": "messages"},
        data_files={"train": str(folder / "talks.parquet")},
    )
    return [pictures, texts]


def names(items):
    return [item["text"] if item["image"] else item["prompt"] for item in items]


def test_damaged_samples_are_skipped_counted_and_reported(sources, caplog):
    stream = MixedStream(sources[:1])
    items = list(stream)
    good = [n for n in range(PICTURES) if n not in (4, 17)]
    assert names(items) == [f"picture {n}" for n in good]
    assert [item["image"].getpixel((0, 0)) for item in items] == good
    assert stream.skipped == {"webdataset": 2}
    assert len({item["seed"] for item in items}) == len(items)
    stream.set_epoch(1)
    assert not {item["seed"] for item in items} & {item["seed"] for item in stream}


def test_sources_are_mixed_by_weight_without_repetition(sources):
    items = list(MixedStream(sources, seed=2))
    shown = names(items)
    assert len(set(shown)) == len(shown)
    assert 0.55 < np.mean([item["image"] is not None for item in items]) < 0.9  # 3 of 4
    assert {item["prompt"] for item in items if item["image"] is None} <= {
        f"q{n}" for n in range(TEXTS)
    }
    assert names(MixedStream(sources, seed=2)) == shown != names(MixedStream(sources, seed=3))


@pytest.mark.parametrize("buckets", [0, 3])
def test_a_stream_goes_on_where_it_was(sources, buckets):
    def make():
        return MixedStream(sources, seed=2, batch_size=2, buckets=buckets)

    whole = list(make())
    for place in (0, 1, 6, len(whole) - 1):
        first = make()
        before = list(islice(first, place))
        second = make()
        second.load_state_dict(first.state_dict())
        after = list(second)
        assert names([*before, *after]) == names(whole), place
        assert [i["seed"] for i in [*before, *after]] == [i["seed"] for i in whole]


def test_buckets_hold_items_of_like_length(sources):
    plain = list(MixedStream(sources[1:]))
    grouped = list(MixedStream(sources[1:], batch_size=4, buckets=5))
    assert sorted(names(plain)) == sorted(names(grouped)) and names(plain) != names(grouped)

    def spread(items):
        lengths = [len(item["prompt"]) + len(item["text"]) for item in items]
        return np.mean([np.ptp(lengths[n : n + 4]) for n in range(0, len(lengths), 4)])

    assert spread(grouped) < spread(plain) / 2


@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [((10, 30), (8, 8), (10, 10)), ((30, 10), (8, 8), (10, 10)), ((20, 20), (4, 8), (10, 20))],
)
def test_pictures_are_cut_and_not_stretched(shape, size, box):
    pixels = np.arange(shape[0] * shape[1]).reshape(shape) % 251
    cut = np.asarray(crop_to_ratio(Image.fromarray(pixels.astype(np.uint8)), size))
    assert cut.shape == box
    top, left = (shape[0] - box[0]) // 2, (shape[1] - box[1]) // 2
    assert (cut == pixels[top : top + box[0], left : left + box[1]]).all()


def test_pictures_of_a_stream_have_the_ratio_that_is_asked_for(sources):
    item = next(iter(MixedStream(sources[:1], size=(4, 8))))
    assert (item["image"].height, item["image"].width) == (4, 8)


@pytest.mark.timeout(400)
def test_a_run_on_streams_goes_on_as_if_it_had_not_stopped(sources, tmp_path):
    save_config_folder(tmp_path / "config")
    recipe = [
        {"path": s.path, "columns": dict(s.columns), "data_files": s.data_files} for s in sources
    ]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    script = load_script(ROOT / "examples" / "train.py")
    line = [
        *("--config", str(tmp_path / "config"), "--dataset", str(tmp_path / "recipe.yaml")),
        *("--per_device_train_batch_size", "2", "--max_steps", "8", "--save_steps", "4"),
        *("--logging_steps", "1", "--use_cpu", "true", "--report_to", "none", "--seed", "1"),
        *("--disable_tqdm", "true", "--truncation", "true"),
        *("--tasks", "joint=1", "text_to_image=1", "text_to_text=1", "text=1"),
    ]
    script.main([*line, "--output_dir", str(tmp_path / "whole")])
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "cut" / "checkpoint-4")
    script.main([*line, "--output_dir", str(tmp_path / "cut"), "--resume_from_checkpoint", "last"])

    def logged(name):
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return {h["step"]: h["loss"] for h in history if "loss" in h}, history

    (whole, history), (cut, _) = logged("whole"), logged("cut")
    assert len(whole) == 8 and cut == whole
    assert history[7]["skipped_samples"] > 0


def test_the_recipe_of_the_paper():
    recipe = read_recipe(ROOT / "configuration" / "data" / "paper.yaml")
    assert [source.path for source in recipe] == [
        "ILSVRC/imagenet-1k",
        "JourneyDB/JourneyDB",
        "HuggingFaceH4/ultrachat_200k",
    ]
    assert sum(source.weight for source in recipe) == pytest.approx(1)


def test_faults(sources, tmp_path):
    with pytest.raises(ValueError, match=r"weight=0 of 'a'"):
        StreamSource("a", weight=0)
    with pytest.raises(ValueError, match=r"roles \['sound'\]"):
        StreamSource("a", columns={"sound": "x"})
    with pytest.raises(ValueError, match="sources is empty"):
        MixedStream([])
    with pytest.raises(ValueError, match="batch_size=0"):
        MixedStream(sources, batch_size=0)
    (tmp_path / "a.yaml").write_text("- path: a\n  wieght: 1\n")
    with pytest.raises(ValueError, match=r"\['wieght'\]"):
        read_recipe(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("path: a\n")
    with pytest.raises(ValueError, match="a list of sources"):
        read_recipe(tmp_path / "a.yaml")
