# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The scaling law: its runs and what they cost, its page, and the whole command on a few steps."""

import json

import pytest
import scaling_report
from PIL import Image
from scaling_law import (
    SIZES,
    ScalingArguments,
    command_of,
    make_runs,
    parse,
    read_recipe,
    results,
    run,
    settings_of,
    training_words,
)
from scaling_report import draw, gather, page, plan_of, tables, value_of

from modeling_mdm.planning.flops import Batch, sampling_flops, step_flops
from modeling_mdm.training import train

DIGITS = "examples/configs/digits.yaml"


@pytest.fixture
def digits(tmp_path):
    """Arguments of a few steps on the digits."""

    def make(**changes):
        values = {"recipe": DIGITS, "sizes": ["32x4", "64x4"], "budgets": [32, 48]}
        values |= {"batch_size": 16, "folder": str(tmp_path / "runs")}
        values |= {name: str(tmp_path / name) for name in ("output", "plot", "page")}
        return ScalingArguments(**{**values, **changes})

    return make


def runs_of(chosen):
    return make_runs(chosen, read_recipe(chosen))


# --- what is run ---


def test_the_sizes_are_about_as_large_as_they_are_called():
    chosen = ScalingArguments(budgets=[25_000])
    sizes = {(f"{one.width}x{one.blocks}", one.mixer): one for one in runs_of(chosen)}
    for size, weights in zip(SIZES, (0.1e6, 0.3e6, 1e6, 3e6), strict=True):
        ours, transformer = sizes[size, "mamba2"], sizes[size, "attention"]
        assert ours.weights == pytest.approx(weights, rel=0.25)
        assert transformer.weights == pytest.approx(ours.weights, rel=0.1)
        assert ours.blocks % len(ours.config.image_scans) == 0  # every scan is run


def test_budgets_are_whole_steps_and_the_middle_one_has_transformers():
    chosen = ScalingArguments(sizes=["32x4"], budgets=[400_000, 1000, 25_000], batch_size=128)
    found = [(one.mixer, one.steps, one.items) for one in runs_of(chosen)]
    assert sorted(found) == [
        ("attention", 195, 24_960),
        ("mamba2", 7, 896),
        ("mamba2", 195, 24_960),
        ("mamba2", 3125, 400_000),
    ]
    assert found[0][1] == 7 and found[-1][1] == 3125  # the cheapest first
    for items, names in ((0, []), (2560, ["attention-32x4-2560"])):
        chosen.transformer_items = items
        assert [one.name for one in runs_of(chosen) if one.mixer == "attention"] == names


def test_flops_are_those_of_the_plan():
    chosen = ScalingArguments(sizes=["32x4"], budgets=[640], transformer_items=0)
    (one,) = runs_of(chosen)
    assert one.flops() == 10 * step_flops(one.config, Batch(64, 12, 16)).model
    alone = sampling_flops(one.config, Batch(100, 12, 16), 1)
    guided = sampling_flops(one.config, Batch(7, 12, 16), 2)
    assert one.flops_of_figures(100, 0, 30) == alone
    assert one.flops_of_figures(100, 7, 30) == alone + 2 * 30 * guided


def test_every_run_trains_by_one_recipe():
    """Shares of warm-up and decay, the rule of the rate; examples/train.py reads these words."""
    chosen = ScalingArguments(recipe=DIGITS, sizes=["32x4", "96x4"], budgets=[6400], seed=3)
    recipe = read_recipe(chosen)
    for one in make_runs(chosen, recipe):
        words = training_words(chosen, recipe, one, "somewhere")
        model, data, args = train.parse([str(word) for word in words[1:]])
        assert (data.dataset, data.eval_split, data.eval_limit) == ("digits", "test", 2000)
        assert args.items_per_step * args.max_steps == 6400
        assert (args.warmup_steps, args.lr_scheduler_kwargs) == (5, {"num_decay_steps": 20})
        assert args.learning_rate == pytest.approx(1e-3 * (192 / one.width) ** 0.5)
        assert (args.seed, args.ema_decay, args.eval_steps) == (3, 0.9999, 100)
        assert f"hidden_size={one.width}" in model.config_overrides
        assert f'mixer="{one.mixer}"' in model.config_overrides


def test_the_command_is_named_as_it_makes_all_runs():
    named = command_of(ScalingArguments(data_dir="somewhere"))
    assert named == "python examples/scaling_law.py --data_dir FOLDER"
    chosen = ScalingArguments(recipe=DIGITS, sizes=["32x4"], budgets=[640, 6400])
    options = f"--recipe {DIGITS} --sizes 32x4 --budgets 640 6400"
    assert command_of(chosen) == f"python examples/scaling_law.py {options}"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": ["3M"]}, "sizes=3M is no size: write WIDTHxBLOCKS, as in 96x8"),
        ({"sizes": ["32x0"]}, "sizes=32x0 is no size"),
        ({"sizes": ["100x4"]}, "sizes=100x4: the width must be a multiple of 32"),
        ({"sizes": ["32x4", "32x4"]}, "sizes=.* each once"),
        ({"budgets": []}, r"budgets=\[\]: name at least one"),
        ({"budgets": [100]}, "budgets=100 is less than two steps of batch_size=64: .* 128"),
        ({"budgets": [1000, 1001]}, r"budgets=\[1000, 1001\] are \[15, 15\] steps"),
        ({"transformer_items": 5}, "5 is less than two steps"),
        ({"warmup_share": 0.9}, "warmup_share=0.9 and decay_share=0.2 .* at most 1 together"),
        ({"batch_size": 0}, "batch_size=0 must be >= 1"),
        ({"num_judged": -1}, "num_judged=-1 must be >= 0; 0 judges nothing"),
        ({"flops_per_second": 0.0}, "flops_per_second=0.0 must be more than 0"),
        ({"draws": 1}, "draws=1 make no interval"),
    ],
)
def test_bad_input_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        ScalingArguments(**wrong)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("dataset: digits\neval_split: test\ncaptions: c", "has no config: add it"),
        ("config: a\ndataset: b", "holds no items out: add `eval_split: NAME`"),
        ("config: a\ndataset: b\neval_split: test", "has no `captions` .* --num_judged 0"),
    ],
)
def test_recipes_that_cannot_be_measured_are_named(tmp_path, lines, message):
    (tmp_path / "recipe.yaml").write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_recipe(ScalingArguments(recipe=str(tmp_path / "recipe.yaml")))
    with pytest.raises(FileNotFoundError, match="is missing: name an existing file"):
        read_recipe(ScalingArguments(recipe="nowhere.yaml"))


def test_a_dry_run_says_what_and_how_long_and_writes_nothing(digits, tmp_path, capsys):
    done = tmp_path / "runs" / "mamba2-32x4-32"
    chosen = digits(dry_run=True, flops_per_second=1e9)
    done.mkdir(parents=True)
    settings = settings_of(chosen, read_recipe(chosen))
    (done / "settings.json").write_text(json.dumps(settings))
    (done / "result.json").write_text(json.dumps(made_up()[0]))
    assert run(chosen) == {}
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if "x4-" in line]
    assert len(rows) == 6 and [row[0] for row in rows if row[-1] == "yes |"] == [f"| {done.name}"]
    one = runs_of(chosen)[0]
    flops = one.flops() + one.flops_of_figures(2000, 500, 30)
    cheapest = next(row for row in rows if row[0] == f"| {one.name}")
    assert float(cheapest[-2]) == pytest.approx(flops / 1e9 / 3600, rel=0.01)
    assert "hours left at 1e+09 flop/s" in lines[-1]
    assert not (tmp_path / "output").exists() and not (tmp_path / "page").exists()


def test_results_of_other_settings_are_refused(digits, tmp_path):
    chosen = digits()
    settings = settings_of(chosen, read_recipe(chosen))
    folder = tmp_path / "runs" / "mamba2-32x4-32"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({**settings, "seed": 7}))
    with pytest.raises(ValueError, match=r"\(mamba2-32x4-32: seed=7\): use these, or another"):
        run(chosen)
    (folder / "settings.json").write_text(json.dumps(settings))
    assert results(tmp_path / "runs", settings) == []  # begun, not measured


# --- what they say: numbers made up ---


def made_up(budgets=(25_000, 100_000, 400_000), judged=True):
    """Runs that follow a law, and Transformers."""
    runs = []
    for size, weights in zip(SIZES, (1.2e5, 3.4e5, 9.1e5, 3.1e6), strict=True):
        for mixer, items in [*(("mamba2", n) for n in budgets), ("attention", budgets[0])]:
            loss = 0.8 + 60 * weights**-0.45 + 90 * items**-0.5
            share = {"share_right": 1 - 20 * items**-0.4, "num_samples": 500}
            one = {"mixer": mixer, "size": size, "weights": int(weights), "items": items}
            one |= {"flops": 8 * weights * items, "losses": {"loss_se_image": loss}}
            one["losses"]["loss_se_text"] = 2 * loss
            one["judged"] = {"text_to_image": share, "captions": share} if judged else None
            runs.append(one)
    return runs


@pytest.fixture(scope="module")
def content():
    settings = {"recipe": {"dataset": "made up"}, "seed": 0, "eval_limit": 2000, "num_judged": 500}
    with pytest.MonkeyPatch.context() as patched:
        made = {"weights": 10**9, "gpus": 8, "gpu": "h100", "utilisation": 0.35, "fits": True}
        made |= {"name": "all", "items": 5e6, "days": 1.25, "gpu_hours": 240.0}
        patched.setattr(scaling_report, "plan_of", lambda name, gpus: {**made, "gpus": gpus})
        found = gather(made_up(), settings, "python the_command.py", draws=4)
    return json.loads(json.dumps(found, allow_nan=False))


def test_the_laws_of_all_quantities_come_back(content):
    numbers = content["laws"]["image"]["numbers"]
    assert numbers["a"]["value"] == pytest.approx(0.45, rel=0.01)
    assert content["laws"]["words"]["numbers"]["E"]["value"] == pytest.approx(1.6, rel=0.01)
    assert content["laws"]["captions"]["numbers"]["b"]["value"] == pytest.approx(0.4, rel=0.05)
    share = content["laws"]["image"]["share_of_weights"]["value"]
    assert share == pytest.approx(0.5 / 0.95, rel=0.01)
    ahead = content["ahead"]["image"]["7 B"]["of_the_papers_items"]["value"]
    items = 1_281_167 + 4_189_737 + 207_865
    assert ahead == pytest.approx(0.8 + 60 * 7e9**-0.45 + 90 * items**-0.5, rel=1e-3)
    assert content["flops_of_a_weight_and_item"] == pytest.approx(8)


def test_the_page_says_what_is_measured_and_what_is_not(content):
    text = page(content, "scaling_law.png")
    assert "![Each quantity against items, a colour for each size](scaling_law.png)" in text
    runs, rest = text.split("## Laws")
    laws, ahead = rest.split("## Extrapolation: not measured")
    assert runs.count("\n| mamba2 |") == 12 and runs.count("\n| attention |") == 4
    assert "```bash\npython the_command.py\n```" in runs
    assert "120,000 to 3,100,000 weights" in runs and "`made up`" in runs
    assert "What these runs cannot tell:" in laws and "captions, share wrong, a" in laws
    assert "**Nobody has trained these models.**" in ahead and "| EXTRAPOLATED |" in ahead
    assert "97 to 2,258 times more weights" in ahead
    assert "| mdm-7b | 1,000,000,000 | 64 x h100 | 5,000,000 | 1.2 | 240 | yes |" in ahead
    # Nothing tells weights from judged captions: so nothing is said of the best use of flops.
    row = next(line for line in ahead.splitlines() if line.startswith("| captions, share wrong |"))
    assert row.split(" | ")[2:5] == ["-", "-", "-"]


def test_too_few_runs_give_tables_and_no_law(content):
    found = gather(
        made_up((25_000, 100_000), judged=False), content["settings"], "make it", draws=4
    )
    assert found["laws"] == {} and found["plans"] == {}
    text = page(found, "plot.png")
    assert "None is fitted: runs=8 of sizes=4 and budgets=2 cannot tell five numbers" in text
    assert tables(found)[-1].startswith("No law: runs=8")
    assert "Extrapolation" not in text and "| - | - |" in text


def test_no_wrong_sample_counts_as_half_of_one():
    one = made_up()[0]
    one["judged"]["captions"] = {"share_right": 1.0, "num_samples": 500}
    assert value_of(one, "captions") == 0.001


def test_plots_are_drawn(content, tmp_path):
    draw(content, tmp_path / "plots" / "law.png")
    with Image.open(tmp_path / "plots" / "law.png") as image:
        assert image.format == "PNG" and image.width > 3 * image.height
    draw({**content, "runs": made_up(judged=False), "laws": {}}, tmp_path / "two.png")
    with Image.open(tmp_path / "two.png") as image:
        assert image.width < 3 * image.height


@pytest.mark.slow
def test_plans_are_those_of_the_command():
    one = plan_of("mdm-digits", 1)
    assert one["weights"] == 573_665 and one["fits"] and one["gpu_hours"] > 0
    assert one["items"] == 1_281_167 + 4_189_737 + 207_865


@pytest.mark.slow
def test_the_whole_command(tmp_path, capfd):
    words = ["--recipe", DIGITS, "--sizes", "32x4", "64x4", "--budgets", "32", "48"]
    words += ["--batch_size", "16", "--num_judged", "10", "--num_inference_steps", "2"]
    words += ["--eval_limit", "20", "--judge_epochs", "1", "--folder", str(tmp_path / "runs")]
    words += ["--transformer_items", "48"]
    for name in ("output", "plot", "page"):
        words += [f"--{name}", str(tmp_path / name)]
    run(*parse([*words, "--sizes", "32x4", "--budgets", "32"]))  # a part of it first
    run(*parse(words))
    content = json.loads((tmp_path / "output").read_text())
    found = [(one["mixer"], one["size"], one["items"]) for one in content["runs"]]
    assert found == [
        *(("mamba2", size, items) for size in ("32x4", "64x4") for items in (32, 48)),
        *(("attention", size, 48) for size in ("32x4", "64x4")),
    ]
    for one in content["runs"]:
        assert 0 < one["losses"]["loss_se_image"] < 1e3 and one["losses"]["loss_se_text"] > 0
        assert one["judged"]["captions"]["num_samples"] == 10
    assert "None is fitted: runs=4" in (tmp_path / "page").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("trainer_state.json")}
    capfd.readouterr()
    run(*parse(words))  # everything is there
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert json.loads((tmp_path / "output").read_text()) == content
    assert "No law: runs=4" in capfd.readouterr().out
