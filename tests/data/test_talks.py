# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""One's own conversations: where their pictures lie, and what is damaged in them."""

import io
import json
import tarfile

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


# Parts by the pictures that are shown


def shown(count, answer="so", **columns):
    """A conversation of a question with so many pictures; the answer is words."""
    pieces = [{"type": "image", "image": "a.png"}] * count + [{"type": "text", "text": "why?"}]
    said = [{"role": "user", "content": pieces}, {"role": "assistant", "content": answer}]
    return {"messages": said, **columns}


def save_talks(folder, talks):
    save_picture(folder / "a.png", 70)
    (folder / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    return folder / "talks.jsonl"


KINDS = [("ask", 1)] * 4 + [("edit", 2)] * 3 + [("define", 0)] * 2 + [("ask", 2), ("define", 0)]


def counted(part):
    pieces = [m["content"] for n in range(len(part)) for m in part[n]["messages"][:1]]
    return {sum(piece["type"] == "image" for piece in own) for own in pieces}


def test_conversations_are_parted_by_the_pictures_that_they_show(tmp_path):
    path = save_talks(tmp_path, [shown(count, kind=kind) for kind, count in KINDS])
    parts = load_talks(str(path)).parts()
    found = {counted(part).pop(): (len(part), share) for part, share in parts}
    assert all(len(counted(part)) == 1 for part, _ in parts) and len(parts) == 3
    assert {number: size for number, (size, _) in found.items()} == {0: 3, 1: 4, 2: 4}
    shares = {number: share / sum(s for _, s in parts) for number, (_, share) in found.items()}
    assert shares == pytest.approx({0: 3 / 11, 1: 4 / 11, 2: 4 / 11})


def test_kinds_are_drawn_as_often_as_they_are_weighed(tmp_path):
    path = save_talks(tmp_path, [shown(count, kind=kind) for kind, count in KINDS])
    parts = load_talks(str(path)).parts({"ask": 2, "edit": 0.5, "define": 0})
    assert sorted((len(part), share) for part, share in parts) == [
        (1, pytest.approx(2 * 1 / 5)),  # "ask" about two pictures
        (3, pytest.approx(0.5)),
        (4, pytest.approx(2 * 4 / 5)),
    ]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            {"asks": 1},
            r"weights names \['asks'\]: the kinds of .* are ask, define, edit",
        ),
        ({"ask": -1}, r"must be numbers >= 0"),
        ({"ask": float("nan")}, r"must be numbers >= 0"),
        ({"ask": "often"}, r"must be numbers >= 0"),
        ({"ask": 0}, r"must hold one above 0"),
    ],
)
def test_wrong_weights_of_kinds_are_named(weights, said, tmp_path):
    talks = load_talks(str(save_talks(tmp_path, [shown(n, kind=kind) for kind, n in KINDS])))
    with pytest.raises(ValueError, match=said):
        talks.parts(weights)


def test_kinds_without_a_column(tmp_path):
    talks = load_talks(str(save_talks(tmp_path, [shown(1)])))
    with pytest.raises(ValueError, match="are none: there is no column `kind`"):
        talks.parts({"ask": 1})


def test_what_is_damaged_is_parted_too(tmp_path, caplog):
    """It is reported when it is drawn, and another one of the most frequent part stands in."""
    path = save_talks(tmp_path, [shown(1), shown(1), {"messages": 5}, shown(0)])
    parts = [part for part, _ in load_talks(str(path), max_skipped=0.5).parts()]
    assert sorted(map(len, parts)) == [1, 3] and not caplog.text
    assert all(len(counted(part)) == 1 for part in parts) and "line 3" in caplog.text


def test_conversations_with_long_answers_are_left_out(tmp_path):
    talks = load_talks(str(save_talks(tmp_path, [shown(1, "a"), shown(1, "bb"), shown(0, "cc")])))
    left = talks.without({"bb", "no answer"})
    assert [words for _, words in left.answers()] == ["a", "cc"]
    assert [name.rsplit(" ", 1)[1] for name, _ in left.answers()] == ["1", "3"]
    with pytest.raises(ValueError, match="there are no conversations"):
        talks.without({"a", "bb", "cc"}).parts()


def test_conversations_in_one_tar_file(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    save_talks(tmp_path / "talks", [shown(1), shown(0)])
    with tarfile.open(tmp_path / "talks.tar", "w") as tar:
        tar.add(tmp_path / "talks", "talks")
    assert [len(part) for part, _ in load_talks(str(tmp_path / "talks.tar")).parts()] == [1, 1]
