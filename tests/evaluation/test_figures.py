# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The figures, on a model whose mistakes are planned: every share is known beforehand.

The stand-in model draws a picture of one grey level, 20 * class, and the stand-in judge reads it.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_digits import load_script
from transformers import BatchFeature

from mdm_cli.main import main as mdm
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import PictureDataset, Source
from modeling_mdm.evaluation import evaluate
from modeling_mdm.evaluation.figures import (
    Sampling,
    captioning_figures,
    joint_figures,
    text_to_image_figures,
)
from modeling_mdm.evaluation.judge import JudgeConfig, JudgeNetwork
from modeling_mdm.evaluation.panel import Comparison, Panel
from modeling_mdm.precision import describe_processor

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TABLE = CaptionTable(
    labels=(("a cat", "a tom"), ("a dog", "a hound"), ("a cow", "an ox"), ("an ant", "a bee")),
    templates=("a photo of {}", "this is {}"),
)
ALL = TABLE.all_captions()
QUIET = {"disable_tqdm": True}


class LevelProcessor:
    """Encodes a caption as its number in the table and a picture as its level."""

    calls: list

    def __init__(self):
        self.calls = []

    @classmethod
    def from_pretrained(cls, folder):
        return cls()

    def __call__(self, text=None, images=None, generation_mode=None, return_tensors=None):
        assert return_tensors == "pt"
        self.calls.append((text, images, generation_mode))
        if generation_mode == "image":
            assert images is None
            return BatchFeature({"input_ids": torch.tensor([[ALL.index(t)] for t in text])})
        if generation_mode == "text":
            assert text is None
            levels = [np.asarray(i)[0, 0] // 20 for i in images]
            return BatchFeature({"pixel_values": torch.tensor(levels)[:, None]})
        assert generation_mode == "joint" and text is None and images is None
        return BatchFeature({"input_ids": torch.zeros(1, 1)})

    def post_process(self, out):
        return [SimpleNamespace(text=t, image=i) for t, i in out.samples]


class LevelModel(torch.nn.Module):
    """Draws and says what it is told, but where `errs(kind, count so far)` gives a value, that."""

    device = torch.device("cpu")
    config = None

    def __init__(self, errs=lambda kind, n: None):
        super().__init__()
        self.errs, self.calls, self.count = errs, [], 0

    @classmethod
    def from_pretrained(cls, folder, dtype=None):
        return cls()

    def generate(self, input_ids=None, pixel_values=None, num_return_sequences=1, **options):
        assert not self.training and not torch.is_grad_enabled()
        self.calls.append(options)
        rows = input_ids if pixel_values is None else pixel_values
        samples = []
        for row in rows.repeat_interleave(num_return_sequences, 0):
            n, self.count = self.count, self.count + 1
            if pixel_values is not None:
                label = int(row)
            elif num_return_sequences == 1 and "guidance_scale" in options:
                label = TABLE.label_of(ALL[int(row)])
            else:
                label = int(torch.randint(0, 4, (), generator=options["generator"]))
            seen = self.errs("image", n)
            said = self.errs("text", n)
            picture = Image.new("L", (6, 6), 20 * (label if seen is None else seen))
            samples.append((TABLE.captions_of(label)[0] if said is None else said, picture))
        evaluations = 3 if pixel_values is None else 5
        return SimpleNamespace(samples=samples, num_evaluations=evaluations)


class LevelJudge:
    config = JudgeConfig(4, image_size=(6, 6), widths=(4,))

    def classify(self, pictures, batch_size=250):
        return [int(np.asarray(p)[0, 0]) // 20 for p in pictures]


def test_text_to_image():
    # Every fourth sample asks for class 3; of these the first two of each scale become class 1.
    model = LevelModel(lambda kind, n: 1 if kind == "image" and n % 20 in (3, 7) else None).train()
    processor = LevelProcessor()
    one, two = text_to_image_figures(
        model, processor, LevelJudge(), TABLE, 20, (1.0, 2.5), Sampling(12, 6, **QUIET)
    )
    assert model.training
    assert (one.guidance_scale, two.guidance_scale) == (1.0, 2.5)
    assert one.mean_evaluations == 3.0
    assert one.num_samples == 20 and one.share_right == pytest.approx(18 / 20)
    assert one.share_right_by_class == pytest.approx([1, 1, 1, 3 / 5])
    assert one.confusion == [[5, 0, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0], [0, 2, 0, 3]]
    assert two.confusion == one.confusion
    assert [c["guidance_scale"] for c in model.calls] == [1.0] * 4 + [2.5] * 4
    assert {c["num_inference_steps"] for c in model.calls} == {12}
    texts = [t for call in processor.calls for t in call[0]]
    assert [len(call[0]) for call in processor.calls] == [6, 6, 6, 2] * 2
    assert [TABLE.label_of(t) for t in texts] == [0, 1, 2, 3] * 10
    assert texts[:20] == texts[20:] and len(set(texts[:20])) > 4
    assert json.loads(one.to_json())["confusion"] == one.confusion


def test_a_class_without_samples_has_no_share():
    (one,) = text_to_image_figures(
        LevelModel(), LevelProcessor(), LevelJudge(), TABLE, 3, (1.0,), Sampling(**QUIET)
    )
    assert one.share_right_by_class == [1.0, 1.0, 1.0, None]


def levels(labels):
    images = np.stack([np.full((6, 6), 20 * label, dtype=np.uint8) for label in labels])
    return PictureDataset(Source(images, labels=labels), TABLE)


def test_captioning():
    said = {1: "nonsense", 2: "this is a cat", 5: "  THIS IS A HOUND ", 6: ""}
    model = LevelModel(lambda kind, n: said.get(n) if kind == "text" else None)
    data = levels([0, 0, 1, 1, 1, 1, 2, 2])
    figures = captioning_figures(
        model, LevelProcessor(), TABLE, data, sampling=Sampling(7, 3, **QUIET)
    )
    assert figures.num_samples == 8
    assert figures.share_well_formed == pytest.approx(6 / 8)
    assert figures.share_right == pytest.approx(5 / 8)
    assert figures.share_right_by_class == [1 / 2, 3 / 4, 1 / 2, None]
    assert figures.ill_formed == ["nonsense", ""]
    assert figures.mean_evaluations == 5.0
    assert len(model.calls) == 3 and {c["num_inference_steps"] for c in model.calls} == {7}
    assert all("guidance_scale" not in c for c in model.calls)
    model.count = 0
    first = captioning_figures(
        model, LevelProcessor(), TABLE, data, num_samples=2, sampling=Sampling(**QUIET)
    )
    assert (first.num_samples, first.share_right) == (2, 0.5)
    assert first.share_right_by_class == [0.5, None, None, None]
    model.count = 0
    one = captioning_figures(model, LevelProcessor(), TABLE, data, 1, Sampling(**QUIET))
    assert one.mean_evaluations == 5.0


def test_joint():
    said = {0: "not a caption", 4: "a photo of a"}
    model = LevelModel(lambda kind, n: said.get(n) if kind == "text" else (3 if n == 7 else None))
    drawn = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(5)).tolist()
    figures = joint_figures(
        model, LevelProcessor(), LevelJudge(), TABLE, 50, Sampling(9, 8, 5, **QUIET)
    )
    assert drawn[7] != 3  # or the planned mistake would be none
    assert figures.share_well_formed == pytest.approx(48 / 50)
    assert figures.share_agreeing == pytest.approx(47 / 50)
    named = [label for n, label in enumerate(drawn) if n not in said]
    seen = [3 if n == 7 else label for n, label in enumerate(drawn)]
    assert figures.histogram == pytest.approx([named.count(c) / 50 for c in range(4)])
    assert figures.histogram_of_pictures == pytest.approx([seen.count(c) / 50 for c in range(4)])
    assert figures.ill_formed == ["not a caption", "a photo of a"]


class SecondJudge(LevelJudge):
    """Takes the first picture of every four for class 3."""

    def classify(self, pictures, batch_size=250):
        seen = super().classify(pictures)
        return [3 if n % 4 == 0 else label for n, label in enumerate(seen)]


class Darkest:
    """A measure: the lowest level of all pictures."""

    def __init__(self, level):
        self.level = level

    def comparison(self):
        return Comparison("darkest", f"{self.level}", "5", self.level / 5)


PANEL = Panel(
    SecondJudge(), {"darkest": lambda some: Darkest(min(int(np.asarray(p).min()) for p in some))}
)


def test_a_second_judge_and_measures_see_the_same_pictures():
    arguments = LevelModel(), LevelProcessor(), LevelJudge(), TABLE
    one, two = text_to_image_figures(*arguments, 8, (1.0, 2.0), Sampling(**QUIET), PANEL)
    assert one.share_right == 1.0 and one.second_judge.share_right == 6 / 8
    assert one.second_judge.share_right_by_class == [0, 1, 1, 1]
    assert one.second_judge.confusion[0] == [0, 0, 0, 2] == two.second_judge.confusion[0]
    assert one.measures["darkest"].level == 0
    row = ("text to image, guidance 1", "8", "-", "100.0% / 75.0%", "w 100.0%")
    assert one.rows(["w", "x", "y", "z"]) == [row]
    assert one.comparisons() == [(one.task, Comparison("darkest", "0", "5", 0.0))]

    joint = joint_figures(*arguments, 50, Sampling(**QUIET), PANEL)
    drawn = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    right = [n % 4 != 0 or label == 3 for n, label in enumerate(drawn)]
    assert joint.share_agreeing == 1.0
    assert joint.second_judge.share_agreeing == pytest.approx(np.mean(right))
    assert joint.second_judge.histogram_of_pictures[3] >= 13 / 50
    assert joint.rows("wxyz")[0][3] == f"100.0% / {np.mean(right):.1%} (judge agrees)"
    assert joint.comparisons()[0][0] == "joint"


def test_seeds_and_options():
    def run(**sampling):
        model = LevelModel()
        figures = joint_figures(
            model, LevelProcessor(), LevelJudge(), TABLE, 30, Sampling(**sampling, **QUIET)
        )
        return model, {**figures.to_dict(), "seconds": 0}

    model, first = run(options={"solver": {"text": "ddim"}})
    assert model.calls[0]["solver"] == {"text": "ddim"}
    assert model.calls[0]["show_progress"] is False
    assert run()[1] == run(batch_size=7)[1] == first
    assert run(seed=1)[1] != first


def test_errors():
    judge = SimpleNamespace(config=JudgeConfig(10))
    with pytest.raises(ValueError, match="judge knows 10 classes and captions names 4"):
        joint_figures(LevelModel(), LevelProcessor(), judge, TABLE)
    with pytest.raises(ValueError, match="second_judge knows 10 classes"):
        joint_figures(LevelModel(), LevelProcessor(), LevelJudge(), TABLE, panel=Panel(judge))
    with pytest.raises(ValueError, match="num_samples=0"):
        joint_figures(LevelModel(), LevelProcessor(), LevelJudge(), TABLE, 0)
    with pytest.raises(ValueError, match="without a label"):
        unlabelled = PictureDataset(Source(np.zeros((2, 6, 6), np.uint8), labels=[0, None]))
        captioning_figures(LevelModel(), LevelProcessor(), TABLE, unlabelled)
    with pytest.raises(ValueError, match="batch_size=0"):
        Sampling(batch_size=0)
    with pytest.raises(ValueError, match="num_inference_steps=0"):
        Sampling(num_inference_steps=0)


# The script


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(evaluate, "MDMForJointGeneration", LevelModel)
    monkeypatch.setattr(evaluate, "check_processor", lambda processor, config: None)
    monkeypatch.setattr(evaluate, "MDMProcessor", LevelProcessor)
    return load_script(EXAMPLES / "evaluate.py")


@pytest.fixture
def folder(tmp_path):
    judge = JudgeNetwork(LevelJudge.config)
    judge.description = {"test": {"accuracy": 0.5}}
    judge.save_pretrained(tmp_path / "judge")
    (tmp_path / "table.json").write_text(json.dumps(TABLE.to_dict()))
    for number, label in enumerate([0, 1, 2, 3, 3]):
        path = tmp_path / "set" / "test" / f"class{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 6), 20 * label).save(path)
    return tmp_path


def options(folder, **more):
    return {
        "dataset": str(folder / "set"),
        "captions": str(folder / "table.json"),
        "judge": str(folder / "judge"),
        "num_samples": 9,
        "guidance_scale": [1, 2.5],
        "output": str(folder / "out" / "figures.json"),
        "disable_tqdm": True,
        **more,
    }


def as_command(chosen):
    words = []
    for name, value in chosen.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def test_the_script_writes_figures_and_prints_a_table(script, folder, monkeypatch, capsys):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    command = as_command(options(folder, generation_options='{"solver": "ddpm"}'))
    content = script.main(command)
    assert json.loads((folder / "out" / "figures.json").read_text()) == content
    assert not list((folder / "out").glob("*.partial"))
    figures = content["figures"]
    assert figures["captioning"]["share_right"] == 1.0
    assert figures["captioning"]["num_samples"] == 5
    assert [f["guidance_scale"] for f in figures["text_to_image"]] == [1.0, 2.5]
    assert figures["joint"]["num_samples"] == 9
    assert content["versions"]["torch"] == torch.__version__
    machine = {"processor": describe_processor(), "dtype": "float32"}
    assert content["machine"] == {**machine, "threads": torch.get_num_threads()}
    assert "--generation_options" in content["command"]
    assert content["judge_test_accuracy"] == 0.5
    printed = capsys.readouterr().out
    assert "| captioning | 5 | 100.0% | 100.0% | a cat 100.0% |" in printed
    assert printed.count("text to image, guidance") == 2


def test_the_script_reads_yaml(script, folder):
    (folder / "o.yaml").write_text(
        json.dumps(options(folder, tasks=["joint"], generation_options={"solver": "ddim"}))
    )
    content = script.main([str(folder / "o.yaml")])
    assert list(content["figures"]) == ["joint"]


def test_a_folder_of_captions_holds_the_table_of_the_set(script, folder):
    (folder / "tables").mkdir()
    (folder / "table.json").rename(folder / "tables" / "levels.json")
    changed = {"dataset": "levels", "captions": str(folder / "tables"), "tasks": ["joint"]}
    assert list(script.main(as_command(options(folder, **changed)))["figures"]) == ["joint"]


def test_the_command_mdm_evaluate_prints_json_on_request(script, folder, capsys):
    command = as_command(options(folder, tasks=["joint"], checkpoint="anywhere"))
    assert mdm(["evaluate", *command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "out" / "figures.json").read_text()) == content
    assert content["command"].startswith("mdm evaluate --dataset ")
    assert content["figures"]["joint"]["num_samples"] == 9
    assert mdm(["evaluate", *command]) == 0
    assert capsys.readouterr().out.startswith("| task | samples |")


def test_the_script_refuses_unknown_options(script, folder):
    with pytest.raises(ValueError, match="some_option"):
        script.main([*as_command(options(folder)), "--some_option", "1"])
    (folder / "o.yaml").write_text(json.dumps(options(folder, some_option=1)))
    with pytest.raises(ValueError, match="some_option"):
        script.main([str(folder / "o.yaml")])
    with pytest.raises(ValueError, match=r"tasks=\['drawing'\]"):
        script.main(as_command(options(folder, tasks=["drawing"])))
    with pytest.raises(ValueError, match=r"measures=\['beauty'\] are unknown: .*'frechet'"):
        script.main(as_command(options(folder, measures=["beauty"])))
    with pytest.raises(ValueError, match=r"measures=\['borders'\] are of the pictures of joint"):
        script.main(as_command(options(folder, measures=["borders"], tasks=["captioning"])))
    with pytest.raises(ValueError, match="is not JSON"):
        script.main(as_command(options(folder, generation_options="solver=ddim")))
    with pytest.raises(ValueError, match="must hold names with values"):
        script.main(as_command(options(folder, generation_options="[1, 2]")))
