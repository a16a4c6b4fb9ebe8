# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`mdm evaluate --table` as a whole, on a tiny model that has learned nothing."""

import json
import sys

import pytest
import torch
from PIL import Image
from tiny_digits import make_config, make_processor
from tiny_text_sets import write_sets
from tiny_vision_sets import write_coco, write_imagenet, write_questions, write_vizwiz

from mdm_cli.main import main as mdm
from modeling_mdm.evaluation.judge_network import JudgeConfig, JudgeNetwork
from modeling_mdm.evaluation.tables import caption_measures, samples
from modeling_mdm.evaluation.tables.paper import TABLES
from modeling_mdm.evaluation.tables.processes import item_noise
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.processing_mdm import MDMProcessor


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, a judge, and data sets."""
    folder = tmp_path_factory.mktemp("tables")
    processor = make_processor()
    processor.num_classes = 10
    processor.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = make_config(len(processor.tokenizer))
    config.num_classes = 10
    MDMForJointGeneration(config).save_pretrained(folder / "model")
    JudgeNetwork(JudgeConfig(10, (8, 8), widths=(8,))).save_pretrained(folder / "judge")
    data = folder / "data"
    write_imagenet(data)
    write_coco(data)
    write_questions(data, "vqav2")
    write_vizwiz(data)
    return folder


def words(world, table, out, *more, **changed):
    chosen = {
        "checkpoint": world / "model",
        "table": table,
        "data_root": world / "data",
        "extractor_judge": world / "judge",
        "output_dir": out,
        "num_inference_steps": 2,
        "batch_size": 4,
        **changed,
    }
    pairs = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    return ["evaluate", *pairs, "--disable_tqdm", *more]


def content_of(out, table):
    return json.loads((out / f"table-{table}.json").read_text())


def test_pictures_of_classes_and_of_captions(world, tmp_path, capsys):
    out = tmp_path / "out"
    more = ("--columns", "FID", "IS", "Precision", "Recall", "COCO FID", "--limit", "6")
    assert mdm(words(world, 1, out, *more)) == 0
    printed = capsys.readouterr().out
    content = content_of(out, 1)
    assert set(content["columns"]) == {"FID", "IS", "Precision", "Recall", "COCO FID"}
    assert all(one["by"] == "mdm-judge" for one in content["columns"].values())
    assert content["columns"]["FID"]["estimate"]["num_items"] == 6
    assert content["columns"]["FID"]["details"]["effort"]["num_samples"] == 6
    low, high = content["columns"]["FID"]["estimate"]["interval"]
    assert low <= content["columns"]["FID"]["estimate"]["value"] <= high
    assert content["columns"]["COCO FID"]["details"]["num_prompts_cut"] >= 0
    assert content["settings"]["seed"] == 0 and content["versions"]["torch"] == torch.__version__
    assert "| DiT-XL/2 | Diff | 675M | 2.27 | 278.2 | 0.83 | 0.57 | - | - |" in printed
    assert "not comparable with the paper's, which is in Inception's features" in printed
    ours = next(line for line in printed.splitlines() if line.startswith("| model |"))
    assert ours.count("|") == 10 and ours.endswith("| - |")
    page = (out / "table-1.md").read_text()
    assert "![Samples of COCO FID](coco-fid.png)" in page and (out / "coco-fid.png").is_file()
    assert len(list((out / "samples" / "imagenet").glob("*.png"))) == 6
    assert (
        page.count("![Confusion of FID](fid-confusion.png)") == 1
        and (out / "fid-confusion.png").is_file()
    )
    share = content["columns"]["FID"]["plots"]["confusion"]["share_on_the_diagonal"]
    judge = JudgeNetwork.from_pretrained(world / "judge")
    made = [Image.open(out / "samples" / "imagenet" / f"{n:06d}.png") for n in range(6)]
    assert share == pytest.approx(sum(map(int.__eq__, judge.classify(made), range(6))) / 6)
    assert content["columns"]["COCO FID"]["plots"] == {}


def test_answers_to_questions(world, tmp_path, capsys):
    out = tmp_path / "out"
    more = ("--columns", "VQAv2", "VizWiz", "--max_new_tokens", "3", "--json")
    assert mdm(words(world, 2, out, *more)) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == content_of(out, 2)
    for column in ("VQAv2", "VizWiz"):
        assert content["columns"][column]["estimate"]["num_items"] == 10
        lines = (out / "answers" / f"{column}.0.jsonl").read_text().splitlines()
        assert len(lines) == 10 and all(isinstance(json.loads(one)["text"], str) for one in lines)
    page = (out / "table-2.md").read_text()
    assert "| credit | question | answer | one of people's |" in page
    assert "![Confusion of VizWiz](vizwiz-confusion.png)" in page
    assert (out / "vizwiz-confusion.png").is_file() and (out / "vqav2-confusion.png").is_file()


def candidates(folder, *answers):
    (folder / "candidates.txt").write_text("".join(f"{one}\n" for one in answers) + "\n")
    return folder / "candidates.txt"


def test_answers_are_the_likeliest_of_some(world, tmp_path):
    """However many choices are read at a time: by `score` of the whole conversation."""
    few = ("a dress", "one", "a bag of many words")
    more = ("--columns", "VizWiz", "--limit", "3", "--num_evaluations", "2")
    chosen = {"candidates": candidates(tmp_path, *few)}
    outs = [tmp_path / "one", tmp_path / "all"]
    assert mdm(words(world, 2, outs[0], *more, **chosen, batch_size=1)) == 0
    assert mdm(words(world, 2, outs[1], *more, **chosen)) == 0
    assert answers_of(outs[0], "VizWiz") == answers_of(outs[1], "VizWiz")
    model = MDMForJointGeneration.from_pretrained(world / "model").eval()
    processor = MDMProcessor.from_pretrained(world / "model")
    lines = (outs[1] / "answers" / "VizWiz.0.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        picture = Image.open(world / "data" / "vizwiz" / "val" / line["item"])
        asked = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
        talks = [
            [{"role": "user", "content": asked}, {"role": "assistant", "content": one}]
            for one in few
        ]
        inputs = processor.apply_chat_template(
            talks, tokenize=True, return_dict=True, return_tensors="pt"
        )
        noise = item_noise(0, "VizWiz", line["item"])
        scores = model.score(**inputs, content="text", num_evaluations=2, generator=noise)
        expected = scores.log_likelihood.double().softmax(0)
        assert line["text"] == few[int(expected.argmax())]
        assert line["confidence"] == pytest.approx(float(expected.max()), rel=1e-4)
        assert line["evaluations"] == 6
    found = content_of(outs[1], 2)["columns"]["VizWiz"]
    assert found["by"].endswith("answers ranked") and set(found["plots"]) == {
        "confusion",
        "calibration",
    }
    assert (outs[1] / "vizwiz-calibration.png").is_file()


@pytest.mark.parametrize(
    "answers, message",
    [((), "has 0 answers: write one a line"), (("yes", "yes"), "candidates has 'yes' more than")],
)
def test_candidates_that_are_none_are_refused(answers, message, world, tmp_path, capsys):
    more = ("--columns", "VizWiz", "--candidates", str(candidates(tmp_path, *answers)))
    assert mdm(words(world, 2, tmp_path / "out", *more)) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_candidates_are_other_settings(world, tmp_path, capsys):
    more = ("--columns", "VizWiz", "--limit", "1", "--num_evaluations", "1")
    for answers in (("yes", "no"), ("yes", "maybe")):
        chosen = {"candidates": candidates(tmp_path, *answers)}
        last = mdm(words(world, 2, tmp_path / "out", *more, **chosen))
    assert last == 1 and "candidates=['yes', 'no'], now ['yes', 'maybe']" in capsys.readouterr().err


def test_captions(world, tmp_path, monkeypatch):
    pytest.importorskip("pycocoevalcap", reason='needs `pip install "modeling-mdm[eval-text]"`')
    monkeypatch.setattr(caption_measures, "has_java", lambda: False)
    out = tmp_path / "out"
    assert mdm(words(world, 2, out, "--columns", "COCO")) == 0
    found = content_of(out, 2)["columns"]["COCO"]
    assert found["estimate"]["num_items"] == 9  # one of ten is of another split
    assert found["by"] == "CIDEr-D, words by python" and len(found["details"]["bleu"]) == 4


def answers_of(out, column):
    files = sorted((out / "answers").glob(f"{column}.*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {one["item"]: one["text"] for one in lines}


def test_a_killed_run_goes_on(world, tmp_path, monkeypatch):
    """Nothing is drawn twice, and everything is as in one run."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--columns", "VizWiz")
    assert mdm(words(world, 2, whole, *more)) == 0
    write, written = samples._write, []

    def write_and_die(bench, column, names, inputs):
        if len(written) == 4:
            raise RuntimeError("killed")
        written.extend(names)
        write(bench, column, names, inputs)

    monkeypatch.setattr(samples, "_write", write_and_die)
    assert mdm(words(world, 2, killed, *more)) == 1
    file = killed / "answers" / "VizWiz.0.jsonl"
    with file.open("a") as stream:
        stream.write('{"item": "VizWiz_val_0000000')  # torn by the kill
    written.clear()
    monkeypatch.setattr(samples, "_write", lambda *call: (written.extend(call[2]), write(*call)))
    assert mdm(words(world, 2, killed, *more)) == 0
    assert len(written) == 6
    torn, *_ = [line for line in file.read_text().splitlines() if not line.endswith("}")]
    file.write_text(file.read_text().replace(torn + "\n", ""))
    assert answers_of(killed, "VizWiz") == answers_of(whole, "VizWiz")
    values = [content_of(out, 2)["columns"]["VizWiz"]["estimate"] for out in (whole, killed)]
    assert values[0] == values[1]


def test_two_processes_make_the_samples_of_one(world, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    more = ("--columns", "VizWiz")
    assert mdm(words(world, 2, one, *more)) == 0
    monkeypatch.setattr("modeling_mdm.evaluation.tables.samples.wait_for_all", lambda: None)
    monkeypatch.setattr("modeling_mdm.evaluation.tables.answers.wait_for_all", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):  # the first one measures, when the other has answered
        monkeypatch.setenv("RANK", rank)
        assert mdm(words(world, 2, two, *more)) == 0
        assert (two / "table-2.json").is_file() == (rank == "0")
    shares = [len((two / "answers" / f"VizWiz.{n}.jsonl").read_text().splitlines()) for n in (0, 1)]
    assert shares == [5, 5]
    assert answers_of(one, "VizWiz") == answers_of(two, "VizWiz")


def test_a_folder_of_other_settings_is_refused(world, tmp_path, capsys):
    out = tmp_path / "out"
    more = ("--columns", "VizWiz", "--limit", "2")
    assert mdm(words(world, 2, out, *more)) == 0
    assert mdm(words(world, 2, out, *more, seed=3)) == 1
    assert (
        "holds answers of other settings (seed=0, now 3): name another" in capsys.readouterr().err
    )


def test_an_earlier_run_is_compared(world, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    more = ("--columns", "VizWiz")
    assert mdm(words(world, 2, first, *more)) == 0
    old = content_of(first, 2)
    old["columns"]["VizWiz"]["estimate"] |= {"value": 40.0, "standard_error": 3.0}
    (first / "old.json").write_text(json.dumps(old))
    capsys.readouterr()
    assert mdm(words(world, 2, second, *more, compare=first / "old.json")) == 0
    found = content_of(second, 2)["columns"]["VizWiz"]["estimate"]
    error = (found["standard_error"] ** 2 + 9) ** 0.5
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("| VizWiz | "))
    assert row.endswith(f"| 40 ± 3 | {found['value'] - 40:.4g} ± {error:.2g} |")


def test_what_is_missing_is_named_before_anything_is_made(world, tmp_path, capsys):
    out = tmp_path / "out"
    assert mdm(words(world, 2, out)) == 1
    said = capsys.readouterr().err
    assert "flickr30k/dataset_flickr30k.json" in said and "leave their columns out" in said
    assert not out.exists()


def test_a_dry_run_says_what_it_would_take(world, tmp_path, capsys):
    out = tmp_path / "out"
    assert mdm(words(world, 1, out, "--dry_run")) == 0
    said = capsys.readouterr().out.splitlines()
    assert any(x.startswith("| FID, IS, Precision, Recall | 50000 | 100000 | ") for x in said)
    assert any(x.startswith("| COCO FID | 20 | 40 | ") for x in said)
    assert any("missing: " in x and "geneval/evaluation_metadata.jsonl" in x for x in said)
    assert not out.exists()


@pytest.mark.parametrize("column, library", [("COCO", "pycocoevalcap"), ("PIQA", "lm-eval")])
def test_a_missing_library_is_named_before_anything_is_made(
    column, library, world, tmp_path, monkeypatch, capsys
):
    write_sets(world / "data", "piqa")
    for module in ("lm_eval", "pycocoevalcap.cider.cider"):
        monkeypatch.setitem(sys.modules, module, None)
    assert mdm(words(world, 2, tmp_path, "--columns", column)) == 1
    said = capsys.readouterr().err
    assert f"{library}, which comes with the extra `eval-text`: pip install" in said
    assert 'modeling-mdm[eval-text]"' in said and not (tmp_path / "answers").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_merged(world, tmp_path):
    peft = pytest.importorskip("peft", reason='needs `pip install "modeling-mdm[train]"`')
    model = MDMForJointGeneration.from_pretrained(world / "model")
    linear = [n for n, one in model.named_modules() if isinstance(one, torch.nn.Linear)]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=linear))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    more = ("--columns", "VizWiz")
    outs = [tmp_path / "plain", tmp_path / "adapted"]
    assert mdm(words(world, 2, outs[0], *more)) == 0
    assert mdm(words(world, 2, outs[1], *more, adapter=tmp_path / "adapter")) == 0
    assert "| model + adapter | " in (outs[1] / "table-2.md").read_text()
    assert answers_of(outs[0], "VizWiz") != answers_of(outs[1], "VizWiz")
    prints = [content_of(out, 2)["settings"]["weights"] for out in outs]
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    "more, message",
    [
        (("--columns", "FiD"), r"columns=['FiD'] are none of table 1: use some of ['FID', 'IS'"),
        (("--table", "4"), "table=4 must be one of 1, 2, 3"),
        (("--limit", "0"), "limit=0 must be >= 1"),
    ],
)
def test_what_makes_no_sense_is_not_understood(more, message, world, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        mdm([*words(world, 1, tmp_path), *more])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_model_of_other_classes_is_refused(world, tmp_path, capsys):
    data = tmp_path / "data"
    write_imagenet(data, num_classes=3)
    more = ("--columns", "FID")
    assert mdm(words(world, 1, tmp_path / "out", *more, data_root=data)) == 1
    assert "are of 3 classes and the model's num_classes is 10" in capsys.readouterr().err


def test_table_3_measures_speed_too(world, tmp_path):
    assert mdm(words(world, 3, tmp_path, "--limit", "4")) == 0
    found = content_of(tmp_path, 3)["columns"]
    assert list(found) == ["FPS, log scale", "FID"]
    seconds = found["FID"]["details"]["effort"]["seconds"]
    speed = found["FPS, log scale"]["estimate"]["value"]
    assert 10**speed == pytest.approx(4 / seconds)


def test_a_yaml_file_may_name_the_table(world, tmp_path):
    argv = words(world, 3, tmp_path, limit=4)[1:]
    argv.remove("--disable_tqdm")
    pairs = dict(zip(argv[::2], argv[1::2], strict=True))
    lines = [f"{name.removeprefix('--')}: {value}" for name, value in pairs.items()]
    file = tmp_path / "table.yaml"
    file.write_text("\n".join([*lines, "disable_tqdm: true"]))
    assert mdm(["evaluate", str(file)]) == 0 and (tmp_path / "table-3.json").is_file()


def test_the_papers_tables_are_whole():
    for table in TABLES.values():
        width = len(table.about) + len(table.columns)
        assert {len(row) for row in table.rows} == {width}
        for row in table.rows:
            for cell in row[len(table.about) :]:
                assert cell == "-" or float(cell) > 0
    assert " ".join(TABLES[1].rows[-1]) == "MDM Diff 7B 2.49 281.4 0.86 0.59 5.91 0.68"
    assert len(TABLES[2].rows) == 20 and TABLES[2].rows[-1][0] == "InstructMDM (7B)"
