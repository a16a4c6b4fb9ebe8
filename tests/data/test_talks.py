# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""One's own conversations: where their pictures lie, and what is damaged in them."""

import io
import json

import datasets
import pytest
from PIL import Image
from tiny_questions import save_picture, talk

from modeling_mdm.data.talks import load_talks


def level(item):
    return item["messages"][0]["content"][0]["image"].getpixel((0, 0))


PICTURES = {
    "image": lambda folder: talk({"type": "image", "image": "pictures/a.png"}),
    "path": lambda folder: talk({"type": "image", "path": "pictures/a.png"}),
    "url": lambda folder: talk({"type": "image", "url": "pictures/a.png"}),
    "absolute": lambda folder: talk({"type": "image", "image": str(folder / "pictures/a.png")}),
    "column": lambda folder: talk({"type": "image"}, ["pictures/a.png"]),
    "column-absolute": lambda folder: talk({"type": "image"}, [str(folder / "pictures/a.png")]),
}


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "folder"])
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_lie_beside_the_file_that_names_them(kind, form, tmp_path, monkeypatch):
    own, elsewhere = tmp_path / "talks", tmp_path / "elsewhere"
    save_picture(own / "pictures" / "a.png", 70)
    save_picture(elsewhere / "pictures" / "a.png", 200)  # of the working directory: not meant
    monkeypatch.chdir(elsewhere)
    rows = [PICTURES[kind](own)] * 2
    path = own / ("talks.jsonl" if form == "folder" else f"talks.{form}")
    if form == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        text = json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows))
        path.write_text(text)
    if form == "folder":
        (own / "data").mkdir()
        for name in ("talks.jsonl", "pictures"):
            (own / name).rename(own / "data" / name)
        if "absolute" in kind:
            pytest.skip("its pictures have moved")
        data = load_talks("../talks/data")
    else:
        data = load_talks(f"../talks/{path.name}")
    assert [level(data[n]) for n in range(len(data))] == [70, 70]


def test_embedded_and_remote_pictures_stay(tmp_path):
    file = io.BytesIO()
    Image.new("L", (8, 8), 90).save(file, "PNG")
    features = datasets.Features(
        {
            "messages": [
                {"role": datasets.Value("string"), "content": [{"type": datasets.Value("string")}]}
            ],
            "images": [datasets.Image()],
        }
    )
    messages = [{"role": role, "content": [{"type": "image"}]} for role in ("user", "assistant")]
    row = {"messages": messages, "images": [{"bytes": file.getvalue(), "path": "a.png"}] * 2}
    datasets.Dataset.from_list([row], features).to_parquet(tmp_path / "a.parquet")
    assert level(load_talks(str(tmp_path / "a.parquet"))[0]) == 90
    for value in ("https://x/a.png", "data:image/png;base64,iVBO", "iVBORw0KGgo"):
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(talk({"type": "image", "image": value})))
        (part, _) = load_talks(str(path))[0]["messages"][0]["content"]
        assert part["image"] == value


def test_damaged_conversations_are_skipped_and_named(tmp_path, caplog):
    save_picture(tmp_path / "a.png", 70)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    good = json.dumps(talk({"type": "image", "image": "a.png"}))
    damaged = [
        json.dumps(talk({"type": "image", "image": "b.png"})),
        '{"messages": [',
        json.dumps({"messages": [{"role": "user", "content": "a"}]}),
        json.dumps(talk({"type": "image"}, [])),
        json.dumps({"messages": 5}),
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join([good, *damaged, good]))
    data = load_talks(str(path), max_skipped=0.9)
    assert [level(data[n]) for n in range(7)] == [70] * 7 and data.skipped == 5
    for line in range(2, 7):
        assert f"{path}, line {line}" in caplog.text
    with pytest.raises(ValueError, match=r"2 of 7 .*--max_skipped"):
        load_talks(str(path))[1]
