# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sets of pictures and texts in every form that is read, one item of each damaged."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ITEMS, BAD = 20, 7  # of each set; the one that is damaged


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
    "json-list": (json_lines, {"line": b'{"image": "007.png", "text": ["a", 5]}'}),
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
