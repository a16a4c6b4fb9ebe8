# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What cannot be read is skipped, counted, named and warned of; too much of it stops the run."""

import json
import re
import tracemalloc

import pytest
import torch
from damaged_sets import (
    BAD,
    CASES,
    ITEMS,
    LATIN,
    PICTURES,
    picture_folder,
    png,
    tar_samples,
    warned,
    write_tar,
)
from PIL import Image
from tiny_digits import ROOT, load_script, save_config_folder

from modeling_mdm.data.damage import StandIns, TooManySkippedError
from modeling_mdm.data.pictures import PictureDataset, Source, load_training_data
from modeling_mdm.data.streams import MixedStream, StreamSource


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_sample_of_a_stream(case, tmp_path, caplog):
    write, damage = CASES[case]
    path, columns, file, name = write(tmp_path, damage)
    where = {"data_files": {"train": str(file)}} if file else {}
    stream = MixedStream([StreamSource(path if file else str(tmp_path), 1.0, columns, **where)])
    items = list(stream)
    expected = [10 + n for n in range(ITEMS) if n != BAD]
    shown = [item["image"].getpixel((0, 0)) for item in items]
    assert sorted(shown) == expected
    assert sum(stream.skipped.values()) == 1 and not stream.lacking
    assert len(warned(caplog, name)) == 1 and "is skipped" in warned(caplog, name)[0]


def test_an_item_is_found_without_a_list_of_all():
    class Numbers(StandIns):
        def _read(self, index):
            return index

    numbers = Numbers(10**7, 0.01)
    tracemalloc.start()
    assert numbers._read_near(5) == (5, 5)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10**5


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_item_of_a_set(case, tmp_path, caplog):
    write, damage = CASES[case]
    _, columns, file, name = write(tmp_path, damage)
    if file is None or file.suffix == ".parquet":
        columns = None
    data = load_training_data(str(tmp_path), columns=columns)
    assert len(data) == ITEMS and data.skipped == 0
    shown = [data[n]["image"].getpixel((0, 0)) - 10 for n in range(ITEMS)]
    assert data.skipped == 1
    place = shown.index(min(set(range(ITEMS)) & {*shown}, key=lambda n: (shown.count(n) < 2, n)))
    assert shown[place] == shown[place + 1]  # the next one stands in for it
    assert sorted({*shown}) == [n for n in range(ITEMS) if n != BAD]
    assert [data[n]["image"].getpixel((0, 0)) - 10 for n in range(ITEMS)] == shown
    assert len(warned(caplog, name)) == 1 and "is skipped" in warned(caplog, name)[0]


def test_numbers_are_texts_where_they_are_strings(tmp_path):
    (tmp_path / "0.png").write_bytes(png(3))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "7", "size": 8}\n')
    assert load_training_data(str(tmp_path))[0]["text"] == "7"
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,size,title\n0.png,8,seven\n")
    assert load_training_data(str(tmp_path))[0]["text"] == "seven"


def test_the_last_item_is_replaced_by_the_first():
    pixels = [Image.new("L", (2, 2), n) for n in range(3)]
    pixels[2] = {"bytes": b"", "path": "a.png"}
    data = PictureDataset(Source(pixels, texts=["a", "b", "c"]))
    assert [data[n]["text"] for n in range(3)] == ["a", "b", "a"]


@pytest.mark.parametrize("form", ["cut", "header"])
def test_a_shard_whose_rest_is_lost(form, tmp_path, caplog):
    write_tar(tmp_path / "a.tar", tar_samples())
    content = bytearray((tmp_path / "a.tar").read_bytes())
    start = content.index(b"012.txt")
    if form == "cut":
        del content[start + 515 :]
    else:
        content[start : start + 400] = b"x" * 400
    (tmp_path / "a.tar").write_bytes(content)
    write_tar(tmp_path / "b.tar", [("020", {"png": png(30), "txt": b"text 20"})])
    columns = {"image": "png", "text": "txt"}
    files = [str(tmp_path / f"{name}.tar") for name in "ab"]
    stream = MixedStream([StreamSource("webdataset", 1.0, columns, data_files={"train": files})])
    expected = [f"text {n}" for n in (*range(12), 20)]
    assert [item["text"] for item in stream] == expected
    assert warned(caplog, f"{tmp_path / 'a.tar'}")
    data = load_training_data(str(tmp_path), columns=columns)
    assert [data[n]["text"] for n in range(12)] == expected[:12] and data.skipped == 0
    assert data[12]["text"] == "text 20" and data.skipped == 1


def test_too_much_damage_stops_with_the_list(tmp_path):
    samples = [(f"{n:04}", {"png": png(n % 250), "txt": b"a"}) for n in range(300)]
    for n in (3, 250, 260, 270):
        samples[n][1]["txt"] = LATIN
    write_tar(tmp_path / "train.tar", samples)
    columns = {"image": "png", "text": "txt"}
    where = {"data_files": {"train": str(tmp_path / "train.tar")}}
    source = StreamSource("webdataset", 1.0, columns, **where)
    assert len(list(MixedStream([source], max_skipped=0.02))) == 296
    with pytest.raises(TooManySkippedError, match=r"3 of 261 .*max_skipped=0\.01") as raised:
        list(MixedStream([source], max_skipped=0.01))
    for n in (3, 250, 260):
        assert f"{tmp_path / 'train.tar'}: {n:04}" in str(raised.value)
    with pytest.raises(TooManySkippedError, match="1 of"):
        list(MixedStream([source], max_skipped=0.0))

    def read(**options):
        data = load_training_data(str(tmp_path), columns=columns, **options)
        return [data[n]["text"] for n in range(len(data))]

    assert len(read(max_skipped=0.02)) == 300
    with pytest.raises(TooManySkippedError, match=r"4 of 300 .*--max_skipped") as raised:
        read()
    assert all(f"{n:04}" in str(raised.value) for n in (3, 250, 260, 270))
    with pytest.raises(TooManySkippedError, match="1 of 300"):
        read(max_skipped=0)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="max_skipped="):
            read(max_skipped=share)


def test_a_short_stream_is_judged_at_its_end(tmp_path):
    write_tar(tmp_path / "a.tar", [(str(n), {"txt": LATIN if n < 2 else b"a"}) for n in range(9)])
    where = {"data_files": {"train": str(tmp_path / "a.tar")}}
    stream = MixedStream(
        [StreamSource("webdataset", 1.0, {"text": "txt"}, **where)], max_skipped=0.01
    )
    with pytest.raises(TooManySkippedError, match="2 of 9"):
        list(stream)


def test_nothing_can_be_read():
    data = PictureDataset(Source([{"bytes": b"", "path": None}] * 3), max_skipped=1.0)
    with pytest.raises(TooManySkippedError, match="none of the 3"):
        data[1]


def test_workers_count_together(tmp_path):
    picture_folder(tmp_path, {"png": PICTURES["truncated"]})
    (tmp_path / "012.png").write_bytes(b"")
    data = load_training_data(str(tmp_path), max_skipped=0.2)
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2)
    assert len(list(loader)) == ITEMS and data.skipped == 2
    data.max_skipped = 0.01
    with pytest.raises(TooManySkippedError, match=r"2 of 20(.|\n)*007(.|\n)*012"):
        data[BAD]


def test_counts_go_on_with_the_stream(tmp_path):
    write_tar(tmp_path / "a.tar", tar_samples({"txt": LATIN}))
    where = {"data_files": {"train": str(tmp_path / "a.tar")}}

    def make():
        return MixedStream([StreamSource("webdataset", 1.0, {"text": "txt"}, **where)])

    first = make()
    rows = iter(first)
    texts = [next(rows)["text"] for _ in range(12)]
    second = make()
    second.load_state_dict(first.state_dict())
    assert texts + [item["text"] for item in second] == [
        f"text {n}" for n in range(ITEMS) if n != BAD
    ]
    assert second.skipped == {"webdataset": 1}


def test_the_training_script(tmp_path, caplog):
    save_config_folder(tmp_path / "config")
    (tmp_path / "train").mkdir()
    (tmp_path / "validation").mkdir()
    for split in ("train", "validation"):
        picture_folder(tmp_path / split, {"png": PICTURES["truncated"]})
        lines = (tmp_path / split / "metadata.jsonl").read_text()
        (tmp_path / split / "metadata.jsonl").write_text(re.sub(r"text \d+", "one", lines))
    script = load_script(ROOT / "examples" / "train.py")
    line = [
        *("--config", str(tmp_path / "config"), "--dataset", str(tmp_path)),
        *("--output_dir", str(tmp_path / "out"), "--per_device_train_batch_size", "5"),
        *("--num_train_epochs", "1", "--logging_steps", "4", "--use_cpu", "true"),
        *("--eval_split", "validation", "--eval_strategy", "steps", "--eval_steps", "4"),
        *("--report_to", "none", "--num_samples", "0", "--disable_tqdm", "true"),
        *("--tasks", "text_to_image=1", "--save_strategy", "no"),
    ]
    script.main(line)
    for split in ("train", "validation"):
        assert len(warned(caplog, f"{split}/metadata.jsonl, line {BAD + 1}")) == 1
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [log["skipped_samples"] for log in state if "loss" in log] == [1]
    assert [log["eval_skipped_samples"] for log in state if "eval_loss" in log] == [1]
    with pytest.raises(TooManySkippedError, match="1 of 20"):
        script.main([*line, "--max_skipped", "0"])


def test_a_list_that_is_no_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a"},')
    where = {"data_files": {"train": str(tmp_path / "a.json")}}
    with pytest.raises(ValueError, match=r"a\.json is no JSON list"):
        list(MixedStream([StreamSource("json", 1.0, {"text": "text"}, **where)]))
