# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What cannot be read is skipped, counted, named and warned of; too much of it stops the run."""

import io
import json
import re
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_digits import ROOT, load_script, make_processor, save_config_folder

from modeling_mdm.data.damage import TooManySkippedError
from modeling_mdm.data.pictures import PictureDataset, Source, load_training_data
from modeling_mdm.data.streams import MixedStream, StreamSource

ITEMS, BAD = 20, 7  # of each set; the one that is damaged


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """`datasets` waits ten seconds after every pass over Parquet, for Arrow's threads at exit."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def png(level, size=(8, 8)):
    file = io.BytesIO()
    Image.new("L", size, level).save(file, "PNG")
    return file.getvalue()


def gif():
    file = io.BytesIO()
    frames = [Image.new("L", (8, 8), level) for level in (0, 200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


PICTURES = {
    "truncated": png(9)[:-30],
    "empty": b"",
    "no-picture": b"<html>not found</html>",
    "animated": gif(),
}


def write_tar(path, samples):
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def tar_samples(damage=None, names=("png", "txt")):
    samples = [
        (f"{n:03}", {names[0]: png(10 + n), names[1]: f"text {n}".encode()}) for n in range(ITEMS)
    ]
    samples[BAD][1].update(damage or {})
    return samples


def tar(folder, damage):
    write_tar(folder / "train.tar", tar_samples(damage))
    return "webdataset", {"image": "png", "text": "txt"}, folder / "train.tar", f"{BAD:03}"


def tar_with_json(folder, damage):
    samples = tar_samples(names=("png", "json"))
    for number, (_, files) in enumerate(samples):
        files["json"] = json.dumps(f"text {number}").encode()
    samples[BAD][1].update(damage)
    write_tar(folder / "train.tar", samples)
    return "webdataset", {"image": "png", "text": "json"}, folder / "train.tar", f"{BAD:03}"


def picture_folder(folder, damage):
    lines = []
    for n in range(ITEMS):
        (folder / f"{n:03}.png").write_bytes(png(10 + n))
        lines.append(json.dumps({"file_name": f"{n:03}.png", "text": f"text {n}"}).encode())
    if "line" in damage:
        lines[BAD] = damage["line"]
    elif damage.get("png") is None:
        (folder / f"{BAD:03}.png").unlink()
    else:
        (folder / f"{BAD:03}.png").write_bytes(damage["png"])
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    name = f"line {BAD + 1}" if "line" in damage else f"{BAD:03}.png"
    return "imagefolder", {"image": "image", "text": "text"}, None, name


def class_folder(folder, damage):
    for n in range(ITEMS):
        (folder / f"{n % 2}").mkdir(exist_ok=True)
        content = damage["png"] if n == BAD else png(10 + n)
        (folder / f"{n % 2}" / f"{n:03}.png").write_bytes(content)
    return "imagefolder", {"image": "image", "label": "label"}, None, f"{BAD:03}.png"


def json_lines(folder, damage):
    lines = []
    for n in range(ITEMS):
        (folder / f"{n:03}.png").write_bytes(png(10 + n))
        lines.append(json.dumps({"image": f"{n:03}.png", "text": f"text {n}"}).encode())
    lines[BAD] = damage["line"]
    (folder / "train.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return "json", {"image": "image", "text": "text"}, folder / "train.jsonl", f"line {BAD + 1}"


def parquet(folder, damage):
    pictures = [png(10 + n) for n in range(ITEMS)]
    pictures[BAD] = damage.get("png", pictures[BAD])
    texts = [f"text {n}".encode() for n in range(ITEMS)]
    texts[BAD] = damage.get("txt", texts[BAD])
    images = pa.array([{"bytes": b, "path": f"{n:03}.png"} for n, b in enumerate(pictures)])
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    strings = pa.StringArray.from_buffers(
        ITEMS, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(texts))
    )
    pq.write_table(pa.table({"image": images, "text": strings}), folder / "train.parquet")
    columns = {"image": "image", "text": "text"}
    return "parquet", columns, folder / "train.parquet", f"{BAD:03}.png"


def csv_folder(folder, damage):
    lines = [b"file_name,text,size"]
    for n in range(ITEMS):
        (folder / f"{n:03}.png").write_bytes(png(10 + n))
        lines.append(f'{n:03}.png,"text {n}, and more",{n}'.encode())
    lines[BAD + 1] = damage["line"]
    (folder / "metadata.csv").write_bytes(b"\n".join(lines) + b"\n")
    return "imagefolder", {"image": "image", "text": "text"}, None, f"line {BAD + 2}"


def csv_table(folder, damage):
    csv_folder(folder, damage)
    text = (folder / "metadata.csv").read_bytes().replace(b"file_name", b"image")
    (folder / "metadata.csv").unlink()
    (folder / "train.csv").write_bytes(text)
    return "csv", {"image": "image", "text": "text"}, folder / "train.csv", f"line {BAD + 2}"


LATIN = "caf\u00e9".encode("latin-1")
CASES = {
    **{f"tar-{name}": (tar, {"png": content}) for name, content in PICTURES.items()},
    "tar-not-utf8": (tar, {"txt": LATIN}),
    "tar-empty-text": (tar, {"txt": b""}),
    "tar-json-broken": (tar_with_json, {"json": b'{"a": '}),
    "tar-json-not-utf8": (tar_with_json, {"json": b'"' + LATIN + b'"'}),
    "tar-json-number": (tar_with_json, {"json": b"5"}),
    **{f"folder-{name}": (picture_folder, {"png": content}) for name, content in PICTURES.items()},
    "folder-missing": (picture_folder, {"png": None}),
    "folder-broken-line": (picture_folder, {"line": b'{"file_name": "007.png", "te'}),
    "folder-not-utf8": (
        picture_folder,
        {"line": b'{"file_name": "007.png", "text": "' + LATIN + b'"}'},
    ),
    "folder-number": (picture_folder, {"line": b'{"file_name": "007.png", "text": 5}'}),
    "folder-outside": (picture_folder, {"line": b'{"file_name": "../007.png", "text": "a"}'}),
    "classes": (class_folder, {"png": PICTURES["truncated"]}),
    "json-broken-line": (json_lines, {"line": b'{"image": "007.png", "te'}),
    "json-not-utf8": (json_lines, {"line": b'{"image": "007.png", "text": "' + LATIN + b'"}'}),
    "json-number": (json_lines, {"line": b'{"image": "007.png", "text": 5}'}),
    "json-list": (json_lines, {"line": b'{"image": "007.png", "text": ["a", "b"]}'}),
    "json-no-object": (json_lines, {"line": b"7"}),
    "json-missing-picture": (json_lines, {"line": b'{"image": "none.png", "text": "a"}'}),
    "csv-folder-not-utf8": (csv_folder, {"line": b"007.png," + LATIN + b",7"}),
    "csv-folder-long": (csv_folder, {"line": b"007.png,a,7,b"}),
    "csv-not-utf8": (csv_table, {"line": b"007.png," + LATIN + b",7"}),
    "csv-missing": (csv_table, {"line": b"none.png,a,7"}),
    **{f"parquet-{name}": (parquet, {"png": content}) for name, content in PICTURES.items()},
    "parquet-not-utf8": (parquet, {"txt": LATIN}),
}


def warned(caplog, name):
    return [r.getMessage() for r in caplog.records if name in r.getMessage()]


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


# Items without a part


def mixed_kinds(folder):
    samples = tar_samples()
    for n in (2, 9, 13):  # the ninth lies behind what is peeked at
        samples[n][1]["jpg"] = samples[n][1].pop("png")
    write_tar(folder / "train.tar", samples)


@pytest.mark.parametrize("columns", ["png;jpg", ["png", "jpg"], "PNG ; JPG"])
def test_pictures_of_two_kinds(columns, tmp_path, caplog):
    mixed_kinds(tmp_path)
    if columns == "PNG ; JPG":
        columns = columns.lower()
    roles = {"image": columns, "text": "txt"}
    where = {"data_files": {"train": str(tmp_path / "train.tar")}}
    stream = MixedStream([StreamSource("webdataset", 1.0, roles, **where)])
    data = load_training_data(str(tmp_path), columns=roles)
    for items in (list(stream), [data[n] for n in range(ITEMS)]):
        assert [item["image"].getpixel((0, 0)) for item in items] == list(range(10, 10 + ITEMS))
    assert not stream.lacking and not caplog.records


def test_kinds_of_pictures_are_found(tmp_path):
    mixed_kinds(tmp_path)
    data = load_training_data(str(tmp_path))
    shown = [data[n]["image"].getpixel((0, 0)) for n in range(ITEMS)]
    assert shown == list(range(10, 10 + ITEMS)) and data[3]["text"] == "text 3"


def test_pictures_that_no_role_names_are_counted_and_warned_of(tmp_path, caplog):
    mixed_kinds(tmp_path)
    roles = {"image": "png", "text": "txt"}
    where = {"data_files": {"train": str(tmp_path / "train.tar")}}
    stream = MixedStream([StreamSource("webdataset", 1.0, roles, **where)])
    assert [n for n, item in enumerate(stream) if item["image"] is None] == [2, 9, 13]
    assert stream.lacking == {"image": 3}
    (message,) = warned(caplog, "has no image")
    assert f"{tmp_path / 'train.tar'}: 002" in message and "jpg" in message
    caplog.clear()
    load_training_data(str(tmp_path), columns=roles)
    (message,) = warned(caplog, "no picture")
    assert "3 of 20" in message and "002" in message


def test_absent_columns_are_named(tmp_path):
    write_tar(tmp_path / "train.tar", tar_samples())
    where = {"data_files": {"train": str(tmp_path / "train.tar")}}
    with pytest.raises(ValueError, match=r"\['webp', 'bmp'\] as its image.*\['png', 'txt'\]"):
        next(iter(MixedStream([StreamSource("webdataset", 1.0, {"image": "webp;bmp"}, **where)])))
    with pytest.raises(ValueError, match=r"'webp'\} is absent"):
        load_training_data(str(tmp_path), columns={"image": "webp"})


# The training script


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


# Texts that are too long


def test_long_texts_are_found_before_the_first_step(tmp_path):
    save_config_folder(tmp_path / "config")
    (tmp_path / "data").mkdir()
    picture_folder(tmp_path / "data", {"png": png(10 + BAD)})
    lines = [json.loads(x) for x in (tmp_path / "data" / "metadata.jsonl").read_text().splitlines()]
    for n, row in enumerate(lines):
        row["text"] = "one " * (30 if n == 5 else 12) if n in (5, 11, 18) else "one"
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    script = load_script(ROOT / "examples" / "train.py")
    line = [
        *("--config", str(tmp_path / "config"), "--dataset", str(tmp_path / "data")),
        *("--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--use_cpu", "true"),
        *("--report_to", "none", "--disable_tqdm", "true", "--tasks", "text_to_image=1"),
    ]
    message = r"3 of 20 texts are too long. The longest, item 5, .*line 6.*--truncation true"
    with pytest.raises(ValueError, match=message):
        script.main(line)
    assert not (tmp_path / "out").exists()
    script.main([*line, "--truncation", "true"])


def test_long_texts_of_a_stream_are_skipped_and_counted(tmp_path, caplog):
    from functools import partial

    from modeling_mdm.data.lengths import check_text

    texts = ["one " * 30 if n == 4 else "one" for n in range(12)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source = StreamSource(
        "json", 1.0, {"text": "text"}, data_files={"train": str(tmp_path / "a.jsonl")}
    )
    stream = MixedStream([source], check_text=partial(check_text, make_processor()))
    assert len(list(stream)) == 11
    (message,) = warned(caplog, "a.jsonl, line 5")
    assert "--truncation true" in message


def test_long_captions_of_a_table_are_found(tmp_path):
    from modeling_mdm.data.captions import CaptionTable
    from modeling_mdm.data.lengths import check_texts

    table = CaptionTable.from_names(["one", "two " * 20])
    data = PictureDataset(Source(np.zeros((2, 8, 8), np.uint8), labels=[0, 1]), table)
    with pytest.raises(ValueError, match=r"4 of 8 texts are too long.*the caption table"):
        check_texts(make_processor(), data)


def test_sources_of_one_kind_have_roles_of_their_own(tmp_path, caplog):
    write_tar(tmp_path / "a.tar", tar_samples())
    write_tar(tmp_path / "b.tar", [(f"b{n}", {"txt": b"two"}) for n in range(ITEMS)])
    roles = ({"image": "png", "text": "txt"}, {"text": "txt"})
    sources = [
        StreamSource("webdataset", 1.0, columns, data_files={"train": str(tmp_path / f"{n}.tar")})
        for n, columns in zip("ab", roles, strict=True)
    ]
    stream = MixedStream(sources)
    items = list(stream)
    assert any(item["image"] is None for item in items) and not stream.lacking
    assert all((item["image"] is None) == (item["text"] == "two") for item in items)
    assert not caplog.records


def test_a_list_that_is_no_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a"},')
    where = {"data_files": {"train": str(tmp_path / "a.json")}}
    with pytest.raises(ValueError, match=r"a\.json is no JSON list"):
        list(MixedStream([StreamSource("json", 1.0, {"text": "text"}, **where)]))


def test_slices_of_splits(tmp_path):
    write_tar(tmp_path / "train.tar", tar_samples())
    write_tar(tmp_path / "test.tar", tar_samples()[:4])

    def texts(split):
        data = load_training_data(str(tmp_path), split=split)
        return [data[n]["text"] for n in range(len(data))]

    assert texts("train[5:8]") == ["text 5", "text 6", "text 7"]
    assert texts("test[50%:]+train[:1]") == ["text 2", "text 3", "text 0"]
    with pytest.raises(ValueError, match=r"split='valid'.*'train'"):
        texts("valid")
