# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Captions of the emoji world read back, what judges see of its pictures, and the whole command."""

import json
from types import SimpleNamespace

import datasets
import evaluate_emoji
import numpy as np
import pytest
import tiny_emojis
import torch
from emoji_figures import CATEGORIES, Eye, Wanted, is_changed, kept_error, shares, verdict
from emoji_reader import CaptionReader, Claims, Named
from emoji_selection import on_things, patches_on_things
from emoji_tasks import TASKS, Bench, frequent_singles, mixed, said_of, spread
from PIL import Image
from tiny_digits import ROOT

from judge_emoji import names_of
from judge_emoji_network import EmojiJudge, EmojiJudgeConfig
from modeling_mdm import MDMConfig, MDMForJointGeneration, MDMProcessor
from modeling_mdm.evaluation.sampling import Sampling

for library in ("resvg_py", "inflect", "pycocoevalcap"):
    pytest.importorskip(library, reason='needs `pip install "modeling-mdm[emoji,eval-text]"`')


def thing(concept, count=1, place="centre", colour=None):
    name = concept.split(" ", 1)[1]
    return {"concept": concept, "name": name, "count": count, "place": place, "colour": colour}


def row(layout, objects, style="flat", background="red", captions=()):
    told = {"layout": layout, "objects": objects, "style": style, "background": background}
    return told | {"captions": list(captions)}


ROWS = [
    row("single", [thing("an orange boat")], captions=["fruit, sea", "what floats"]),
    row("single", [thing("a boat", colour="blue")], captions=["a blue boat on a red background"]),
    row("single", [thing("a man and a woman")], style="outlined"),
    row("single", [thing("a house above a river")]),
]


@pytest.fixture(scope="module")
def reader():
    return CaptionReader(ROWS)


@pytest.mark.parametrize(
    ("caption", "things", "style", "background"),
    [
        ("a boat", [Named("a boat")], None, None),
        ("three boats", [Named("a boat", 3)], None, None),
        ("two blue boats", [Named("a boat", 2, colour="blue")], None, None),
        ("an orange boat", [Named("an orange boat")], None, None),  # a name before a colour
        ("a boat in the flat style", [Named("a boat")], "flat", None),
        ("a boat, drawn in the outlined style", [Named("a boat")], "outlined", None),
        ("a boat, flat style, on an orange background", [Named("a boat")], "flat", "orange"),
        ("a boat at the top", [Named("a boat", place="above")], None, None),
        ("a man and a woman", [Named("a man and a woman")], None, None),
        (
            "a boat and a man and a woman on a red background",
            [Named("a boat"), Named("a man and a woman")],
            *(None, "red"),
        ),
        (
            "a boat to the right of a man and a woman",
            [Named("a man and a woman", place="left"), Named("a boat", place="right")],
            *(None, None),
        ),
        (
            "a house above a river below a boat",
            [Named("a boat", place="above"), Named("a house above a river", place="below")],
            *(None, None),
        ),
        ("fruit, sea", [], None, None),
        ("what floats", [], None, None),
    ],
)
def test_a_caption_is_read(reader, caption, things, style, background):
    assert reader.read(caption) == Claims(tuple(things), style, background)


@pytest.mark.parametrize(
    "caption",
    ["", "boat", "a boat boat", "one boat", "five boats", "a boat, round style", "a fruit"],
)
def test_what_no_grammar_allows_is_not_read(reader, caption):
    assert reader.read(caption) is None


def test_words_are_known_or_not(reader):
    assert reader.has_known_words("a sea background") and not reader.has_known_words("a see")
    assert not reader.has_known_words("")


def test_every_caption_of_a_world_is_read_as_its_truth(world):
    """The real grammar, as the builder writes it."""
    data = datasets.load_dataset(str(world))
    reader = CaptionReader(data["train"])
    counted = 0
    for one in data["train"]:
        for n, caption in enumerate(one["captions"]):
            found = said_of(reader.read(caption), one)
            assert all(right for name, right in found.items() if name != "names things"), caption
            counted += found["names things"]
            assert n or {"style", "background", "concept", "count"} <= {*found}
    assert counted > 100


class Sees:
    """A judge that sees what it is told to, by picture."""

    def __init__(self, **names):
        self.config = type("Shape", (), {"names": names})

    def probabilities(self, told):
        found = {}
        for head in ("style", "background", "count", "place"):
            names = self.config.names[head]
            found[head] = torch.stack(
                [torch.eye(len(names))[names.index(one[head])] for one in told]
            )
        concepts = self.config.names["concept"]
        found["concept"] = torch.stack([self.regions(one["concept"], concepts) for one in told])
        return found

    @staticmethod
    def regions(seen, concepts):
        table = 1e-6 * torch.arange(len(concepts)).repeat(5, 1)  # the last, where nothing is told
        for region, best in seen.items():
            for rank, concept in enumerate(best):
                table[region, concepts.index(concept)] = 1 / (rank + 1)
        return table


CONCEPTS = [f"a thing {letter}" for letter in "ABCDEFGH"]
JUDGE = Sees(
    style=["flat", "glossy"],
    background=["red", "white"],
    count=["1", "2", "3"],
    place=["centre", "beside", "stacked", "several"],
    concept=CONCEPTS,
)
A, B, C = CONCEPTS[:3]


def seen(regions, style="flat", background="red", count="1", place="centre"):
    told = {"style": style, "background": background, "count": count, "place": place}
    return Eye(JUDGE).see([told | {"concept": regions}])[0]


def test_a_verdict_on_one_thing():
    wanted = Wanted.of_row(row("single", [thing(B)]))
    assert verdict(seen({0: [A, B]}), wanted) == {
        "style": True,
        "background": True,
        "place": True,
        "count": True,
        "concept": False,
        "top 5": True,
    }
    far = verdict(seen({0: [A, C, *CONCEPTS[3:], B]}, "glossy", "white"), wanted)
    assert far["top 5"] is far["style"] is far["background"] is False
    assert verdict(seen({0: [A]}), Wanted((), style="flat")) == {"style": True}
    assert "concept" not in verdict(seen({0: [A]}), Wanted((Named("never seen"),)))


def test_two_things_are_where_the_words_put_them_or_anywhere():
    sides = seen({1: [A], 2: [B]}, count="2", place="beside")
    placed = Named(A, place="left"), Named(B, place="right")
    swapped = Named(A, place="right"), Named(B, place="left")
    assert verdict(sides, Wanted(placed))["concept"]
    assert not verdict(sides, Wanted(swapped))["concept"]
    assert verdict(sides, Wanted((Named(B), Named(A))))["concept"]
    assert not verdict(sides, Wanted((Named(B), Named(C))))["concept"]


def test_shares_are_over_what_was_judged():
    found = shares([{"style": True, "count": True}, {"style": False}, {"style": True}])
    assert found == {"style": {"share": 2 / 3, "of": 3}, "count": {"share": 1.0, "of": 1}}


def test_the_categories_ask_for_what_a_row_shows():
    read = CaptionReader(
        [*ROWS, row("single", [thing("a cat")]), row("single", [thing("a dog")])]
    ).read
    pair = [thing("a cat", place="left"), thing("a dog", place="right")]
    both = row(
        "beside", pair, captions=["a black cat to the left of a white dog on a red background"]
    )
    asked = {name: own.ask(both, read) for name, own in CATEGORIES.items()}
    assert asked["one object"] is asked["counting"] is asked["colours"] is None
    assert asked["two objects"][0] == "a cat and a dog"
    assert asked["two objects"][1].things == (Named("a cat"), Named("a dog"))
    prompt, wanted = asked["colour with object"]
    assert prompt == "a black cat to the left of a white dog"
    assert wanted.things[1] == Named("a dog", place="right", colour="white")
    plain = both | {"captions": ["a cat and a dog"]}
    assert CATEGORIES["colour with object"].ask(plain, read) is None
    assert CATEGORIES["position"].ask(plain, read)[0] == "a cat to the left of a dog"
    several = row("count", [thing("a cat", 3, "")])
    assert CATEGORIES["counting"].ask(several, read)[0] == "three cats"


def test_the_colour_of_what_stands_out():
    pixels = np.empty((32, 32, 3), np.uint8)
    pixels[:] = (214, 48, 49)  # the red ground
    pixels[8:24, 4:14], pixels[8:24, 20:28] = (33, 150, 243), (253, 216, 53)
    eye = Eye(EmojiJudge(EmojiJudgeConfig(JUDGE.config.names, 32)))
    one = eye.see([Image.fromarray(pixels)])[0]
    object.__setattr__(one, "probabilities", {"background": torch.tensor([1.0, 0.0])})
    assert (one.colour("left"), one.colour("right")) == ("blue", "yellow")


def test_a_change_is_seen_where_it_should_be():
    before = row("beside", [thing(A, place="left"), thing(B, place="right")])
    after = row("beside", [thing(B, place="left"), thing(A, place="right")])
    both = {"count": "2", "place": "beside"}
    assert is_changed(seen({1: [B, A], 2: [A, B]}, **both), before, after)
    assert not is_changed(seen({1: [A, B], 2: [A, B]}, **both), before, after)
    ground = before | {"background": "white"}
    assert is_changed(seen({1: [C], 2: [C]}, background="white", **both), before, ground)
    assert not is_changed(seen({1: [A], 2: [B]}, **both), before, ground)
    alone = row("alone", [thing(A)])
    assert not is_changed(seen({0: [A]}, count="2"), before, alone)
    assert is_changed(seen({0: [A]}), before, alone)


def test_what_is_kept_is_measured_where_nothing_should_change():
    given, true, made = (np.zeros((4, 4, 3), np.uint8) for _ in range(3))
    true[:2], made[:2], made[3] = 255, 90, 51
    pictures = [Image.fromarray(one) for one in (made, given, true)]
    assert kept_error(*pictures) == pytest.approx(0.5 * 51 / 127.5)


def test_patches_lie_on_things_from_half_of_their_area():
    grid = (4, 4)
    assert patches_on_things([(0, 0, 32, 32)], 32, grid).all()
    assert not patches_on_things([], 32, grid).any()
    on = patches_on_things([(0, 0, 8, 8), (20, 8, 32, 16), (0, 27, 8, 32)], 32, grid)
    assert on.nonzero().flatten().tolist() == [0, 6, 7, 12]
    assert patches_on_things([(0, 0, 8, 8)], 64, grid).sum() == 0  # a quarter of a patch


def test_the_share_of_what_is_read_that_lies_on_things():
    is_on = torch.tensor([[True, False, False, True], [True, True, False, False]])
    read = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]])
    assert on_things(read, is_on) == (0.5, 0.0)
    share, error = on_things(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]]), is_on)
    assert share == 0.5 and error == pytest.approx(0.5)  # std of 1 and 0 is sqrt(1/2)


def test_rows_are_spread_and_repeated():
    assert spread([*range(10)], 5) == [0, 2, 4, 6, 8]
    assert spread([1, 2], 5) == [1, 2, 1, 2, 1] and spread([], 3) == []


def test_chance_is_not_of_neighbours():
    """Rows stand by their concept: the next one mostly shows the same."""
    rows = [n // 10 for n in range(200)]
    other = mixed(rows)
    assert sorted(other) == rows and other == mixed(rows)
    assert sum(one == two for one, two in zip(rows, other, strict=True)) < 30


def test_things_alone_are_of_training_where_the_test_split_has_none():
    def row(layout, concept, text="a key"):
        return {"layout": layout, "objects": [{"concept": concept}], "text": text}

    rows = {
        "train": [row("single", "a key"), row("count", "a key"), row("single", "a rare thing")],
        "test": [row("count", "a key"), row("single", "a rare thing")],
    }
    rows["test"].append(row("single", "a key", "a key of so many words"))
    bench = SimpleNamespace(rows=rows.get, frequent={"a key"}, num_samples=2, place="here")
    bench.fits = lambda text: text == "a key"
    assert frequent_singles(bench) == ([row("single", "a key")] * 2, "train")
    rows["test"].append(row("single", "a key"))
    assert frequent_singles(bench) == ([row("single", "a key")] * 2, "test")
    bench.frequent = {"a lock"}
    with pytest.raises(ValueError, match="dataset=here"):
        frequent_singles(bench)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
        yield tiny_emojis.build(tmp_path_factory.mktemp("world"))


def write_untaught(world, tmp_path):
    """Write a judge and a model that know nothing; give the beginning of the command's line."""
    train = datasets.load_dataset(str(world), split="train")
    EmojiJudge(EmojiJudgeConfig(names_of(train), 32)).save_pretrained(tmp_path / "judge")
    folder = ROOT / "processing" / "mdm-emoji"
    MDMProcessor.from_pretrained(folder).save_pretrained(tmp_path / "model")
    config = MDMConfig.from_pretrained(ROOT / "configuration" / "mdm-emoji")
    config.update({"hidden_size": 32, "num_hidden_layers": 1, "head_dim": 16, "state_size": 8})
    config.update({"vae_hidden_size": 16, "latent_dim": 8})
    torch.manual_seed(0)
    MDMForJointGeneration(config).save_pretrained(tmp_path / "model")
    line = f"--checkpoint {tmp_path / 'model'} --judge {tmp_path / 'judge'} --dataset {world} "
    line += f"--output {tmp_path / 'figures.json'} --num_inference_steps 1 --disable_tqdm true "
    return line + "--bf16 false --num_samples "


def test_a_task_that_fails_loses_none_before_it(world, tmp_path, monkeypatch):
    def fail(bench):
        raise RuntimeError("no")

    monkeypatch.setattr(evaluate_emoji, "TASKS", {"captioning": TASKS["captioning"], "fail": fail})
    with pytest.raises(RuntimeError, match="no"):
        evaluate_emoji.main((write_untaught(world, tmp_path) + "2").split())
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["captioning"]["made"] and [*figures] == ["captioning"]


def test_what_the_model_cannot_read_whole_is_not_asked_of_it(world, tmp_path):
    processor = MDMProcessor.from_pretrained(ROOT / "processing" / "mdm-emoji")
    bench = Bench(None, processor, {}, str(world), Sampling(), 12)
    assert bench.fits("an apple on a red background")
    assert not bench.fits("an articulated lorry, detailed style, on a purple background")


def test_the_command_measures_every_task(world, tmp_path):
    """With a judge and a model that know nothing: what is made is of every kind, and written."""
    line = write_untaught(world, tmp_path) + f"12 --samples_dir {tmp_path / 'sheets'}"
    found = evaluate_emoji.main(line.split())
    assert json.loads((tmp_path / "figures.json").read_text())["figures"] == found["figures"]
    figures = found["figures"]
    assert [*figures] == [*TASKS]
    drawn = figures["text_to_image"]["judge"]
    assert drawn["made"]["style"]["of"] == 12 and {"made", "real", "chance"} == {*drawn}
    assert figures["text_to_image"]["rows"] == figures["words"]["rows"] == "test"
    assert figures["edits"]["judge"]["real"]["changed"]["of"] == 12
    assert figures["joint"]["from half a caption"]["well formed"] >= 0
    assert {*figures["geneval"]} - {"seconds"} <= {*CATEGORIES}
    names = {path.stem for path in (tmp_path / "sheets").glob("*.png")}
    assert {"text_to_image", "held_out", "captioning", "joint", "edits"} <= names


def test_bad_input_is_named(tmp_path):
    line = ["--checkpoint", "a", "--judge", "b", "--dataset", "c"]
    for words, message in (
        (["--tasks", "juggling"], "juggling"),
        (["--num_samples", "1"], "num_samples=1"),
        (["--generation_options", "{"], "not JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_emoji.parse([*line, *words])
