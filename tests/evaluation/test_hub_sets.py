# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sets that `datasets` reads: copies on disk laid out as the Hub's, and a Hub out of reach."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from test_tables import answers_of, content_of, mdm, words
from test_tables import world as world_of_files  # noqa: F401  a fixture
from tiny_text_sets import SETS
from tiny_vision_sets import FILES, NAMES

from modeling_mdm.evaluation.tables.hub import hub_captions, hub_classes, hub_ids, hub_questions
from modeling_mdm.evaluation.tables.paper import TABLES
from modeling_mdm.evaluation.tables.text_columns import TEXT_COLUMNS, Source, load_tasks, num_items

datasets = pytest.importorskip("datasets", reason='needs `pip install "modeling-mdm[eval]"`')
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
NEEDS_LM_EVAL = 'needs `pip install "modeling-mdm[eval-text]"`'


@pytest.fixture(name="world")
def the_world(world_of_files, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return world_of_files


def write(root, split, rows, **features):
    """A repository of one split, as `push_to_hub` lays it out."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    if rows and "image" in rows[0]:
        features["image"] = datasets.Image()
    made = datasets.Dataset.from_list(rows)
    for name, feature in features.items():
        made = made.cast_column(name, feature)
    made.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return str(root)


def questions(count=10):
    return [
        {
            "question_id": 1000 + n,
            "question": "What is this?",
            "image": str(FILES[n]),
            "answers": [{"answer": NAMES[n] if k < 8 else "thing"} for k in range(10)],
        }
        for n in range(count)
    ]


def test_questions_are_those_of_the_rows(tmp_path):
    name = write(tmp_path, "validation", questions())
    found = hub_questions("VQAv2", name)
    assert len(found) == 10 and found[8].name == "1008" and found[8].question == "What is this?"
    assert found[8].answers == ("a bag",) * 8 + ("thing",) * 2
    assert found[8].picture.open().tobytes() == Image.open(FILES[8]).tobytes()


def test_answers_may_be_words_alone(tmp_path):
    rows = [{**one, "answers": [a["answer"] for a in one["answers"]]} for one in questions(3)]
    found = hub_questions("OKVQA", write(tmp_path, "val2014", rows))
    assert found[2].answers == (NAMES[2],) * 8 + ("thing",) * 2


@pytest.mark.parametrize("column, split", [("COCO FID", "val"), ("Flickr30K", "test")])
def test_captions_are_those_of_the_rows(column, split, tmp_path):
    said, key = ("answer", "question_id") if column == "COCO FID" else ("caption", "filename")
    rows = [
        {key: f"{n}.jpg", "image": str(FILES[n]), said: [f"a photo of {NAMES[n]}", NAMES[n]]}
        for n in range(4)
    ]
    found = hub_captions(column, write(tmp_path, split, rows))
    assert [one.name for one in found] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert found[3].captions == (f"a photo of {NAMES[3]}", NAMES[3])


def test_classes_are_in_the_order_of_labels(tmp_path):
    rows = [{"image": str(FILES[n]), "label": n % 3} for n in (2, 0, 1, 5, 4)]
    label = datasets.ClassLabel(names=["coat", "bag", "dress"])
    found = hub_classes(write(tmp_path, "train", rows, label=label))
    assert {name: len(some) for name, some in found.items()} == {"coat": 1, "bag": 2, "dress": 2}
    assert found["bag"][0].open().tobytes() == Image.open(FILES[1]).tobytes()
    more = datasets.ClassLabel(names=["coat", "bag", "dress", "hat"])
    with pytest.raises(ValueError, match="has no pictures of class 'hat'"):
        hub_classes(write(tmp_path / "more", "train", rows, label=more))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows[3].update(question_id=1000), "has '1000' more than once"),
        (lambda rows: rows[3].update(answers=[]), "'1003' has no answers"),
        (
            lambda rows: [one.pop("question") for one in rows],
            r"it has the columns .* and none of \['question'\]",
        ),
    ],
)
def test_rows_that_contradict_themselves_are_named(change, message, tmp_path):
    rows = questions()
    change(rows)
    with pytest.raises((ValueError, OSError), match=message):
        hub_questions("VQAv2", write(tmp_path, "validation", rows))


def test_another_split_is_named(tmp_path):
    name = write(tmp_path, "train", questions())
    with pytest.raises(OSError, match=r"from_hub='VQAv2=.*could not be read \(.*validation"):
        hub_questions("VQAv2", name)


def test_what_from_hub_says():
    columns, texts = TABLES[2].columns, tuple(TEXT_COLUMNS)
    found = hub_ids(["VQAv2", "PIQA", "MMLU=some/set", "COCO=x=y"], columns, texts)
    assert found == {
        "VQAv2": "lmms-lab-encoder/VQAv2",
        "PIQA": None,
        "MMLU": "some/set",
        "COCO": "x=y",
    }
    for said, message in (
        (["GenEval"], "from_hub='GenEval' is none that can be read so: use"),
        (["FID"], "from_hub='FID' is none that"),
        (["PIQA", "PIQA=x"], "from_hub has 'PIQA' more than once"),
        (["COCO"], "from_hub='COCO' has no id: name a set as COCO=ID"),
        (["PIQA="], "from_hub='PIQA' has no id"),
    ):
        with pytest.raises(ValueError, match=message):
            hub_ids(said, columns, texts)


def write_texts(root, name, config):
    make, splits = SETS[name]
    for split, count in splits.items():
        folder = root / config
        folder.mkdir(parents=True, exist_ok=True)
        table = pyarrow.Table.from_pylist([make(n) for n in range(count)])
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    files = [{"split": s, "path": f"{config}/{s}-*.parquet"} for s in splits]
    configs = json.dumps([{"config_name": config, "data_files": files}])
    (root / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
    return str(root)


def test_texts_are_of_lm_evals_own_configuration(tmp_path):
    pytest.importorskip("lm_eval", reason=NEEDS_LM_EVAL)
    source = Source("ARC-C", None, write_texts(tmp_path, "arc_challenge", "ARC-Challenge"))
    (task,) = load_tasks(source, tmp_path / "tasks")["tasks"].values()
    assert [doc["question"] for doc in task.eval_docs] == [f"What is photo {n}?" for n in range(10)]
    assert num_items(source, None) == 10 and num_items(source, 4) == 4
    other = Source("ARC-E", None, str(tmp_path))  # which is of another configuration
    with pytest.raises(OSError, match=r"from_hub='ARC-E=.*' could not be read"):
        load_tasks(other, tmp_path / "tasks")


def test_a_table_of_rows_is_that_of_files(world, tmp_path):
    """The questions of VizWiz's files as rows: the same items have the same answers."""
    files, rows = tmp_path / "files", tmp_path / "rows"
    assert mdm(words(world, 2, files, "--columns", "VizWiz")) == 0
    items = json.loads((world / "data" / "vizwiz" / "val.json").read_text())
    name = write(
        tmp_path / "set",
        "val",
        [
            {
                "question_id": one["image"],
                "question": one["question"],
                "answers": [answer["answer"] for answer in one["answers"]],
                "image": str(world / "data" / "vizwiz" / "val" / one["image"]),
            }
            for one in items
        ],
    )
    argv = words(world, 2, rows, "--columns", "VizWiz", "--from_hub", f"VizWiz={name}")
    at = argv.index("--data_root")
    assert mdm(argv[:at] + argv[at + 2 :]) == 0
    assert answers_of(rows, "VizWiz") == answers_of(files, "VizWiz")
    found = [content_of(out, 2)["columns"]["VizWiz"]["estimate"] for out in (files, rows)]
    assert found[0] == found[1]
    assert content_of(rows, 2)["settings"]["from_hub"] == [f"VizWiz={name}"]


def test_pictures_of_rows_are_real_ones(world, tmp_path):
    rows = [{"image": str(FILES[n]), "label": n} for n in range(10)]
    name = write(tmp_path / "set", "train", rows)
    more = ("--columns", "FID", "Recall", "--from_hub", f"FID={name}", "--limit", "6")
    argv = words(world, 1, tmp_path / "out", *more)
    at = argv.index("--data_root")
    assert mdm(argv[:at] + argv[at + 2 :]) == 0
    by_files = words(world, 1, tmp_path / "files", "--columns", "FID", "Recall", "--limit", "6")
    assert mdm(by_files) == 0
    found = [
        content_of(tmp_path / out, 1)["columns"]["FID"]["estimate"] for out in ("out", "files")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("column", ["VQAv2", "PIQA"])
def test_a_hub_out_of_reach_is_named_before_anything_is_made(column, world, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason=NEEDS_LM_EVAL)
    argv = words(world, 2, tmp_path / "out", "--columns", column, "--from_hub", column)
    assert mdm(argv) == 1
    said = capsys.readouterr().err
    assert f"from_hub='{column}" in said and "could not be read" in said
    assert f"name a copy on disk ({column}=FOLDER)" in said
    assert not (tmp_path / "out" / "answers").exists()


def test_a_folder_is_asked_for_where_it_is_needed(world, tmp_path, capsys):
    argv = words(world, 2, tmp_path, "--columns", "VQAv2", "PIQA", "--from_hub", "PIQA")
    at = argv.index("--data_root")
    with pytest.raises(SystemExit):
        mdm(argv[:at] + argv[at + 2 :])
    assert "data_root is missing: name the folder that has the sets of ['VQAv2']" in (
        capsys.readouterr().err
    )
