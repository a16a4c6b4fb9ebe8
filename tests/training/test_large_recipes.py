# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The recipes of the large presets: each is read by its own parser, its plan beside it is fresh."""

import json
import shlex

import pytest
import yaml
from tiny_digits import ROOT, load_script

from mdm_cli.main import MODULES
from modeling_mdm import MDMConfig
from modeling_mdm.cli import encode, plan
from modeling_mdm.data.stream_sources import read_recipe
from modeling_mdm.training import train
from modeling_mdm.training.command_line import pairs

CONFIGS = ROOT / "examples" / "configs"
CPU = ["--use_cpu", "true", "--bf16", "false"]
GPUS = {"mdm_300m_1xh100": 1, "mdm_1b_8xh100": 8, "mdm_7b_64xh100": 64}


def commands(name):
    """The commands in a recipe's comment."""
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [shlex.split(line[1:]) for line in lines if line.startswith("#     ")]


def planned(name):
    return next(words for words in commands(name) if words[:2] == ["mdm", "plan"])


@pytest.mark.parametrize("name", GPUS)
def test_the_recipe_is_read_and_agrees_with_its_plan(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    model_args, data_args, args = train.parse([f"examples/configs/{name}.yaml", *CPU])
    assert bool(args.fsdp) == (GPUS[name] > 1)
    request, chosen = plan.parse(planned(name)[2:])
    assert chosen.output == f"examples/configs/{name}.plan.json"
    assert request.gpus == GPUS[name] and request.gpu.name.lower() == "h100"
    each, batches = args.per_device_train_batch_size, args.gradient_accumulation_steps
    assert (request.batch, request.accumulation) == (each * batches * GPUS[name], batches)
    assert request.checkpointing == values.get("activation_checkpointing", False)
    assert request.average == (args.ema_decay > 0)
    config = MDMConfig.from_pretrained(model_args.config)
    assert chosen.config == model_args.config and config.vq_config is not None
    assert model_args.vq_model == "deepseek-community/Janus-Pro-1B"
    items = f"{request.batch:,} items a step"
    tokens = request.batch * (config.max_text_length + (config.image_size // 16) ** 2)
    said = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    assert items in said and f"{tokens:,} tokens" in said
    assert read_recipe(data_args.dataset)[0].path == "ILSVRC/imagenet-1k"
    assert sum(pairs("tasks", data_args.tasks).values()) == pytest.approx(1)
    assert 0 < args.warmup_steps < args.max_steps and args.save_steps and args.eval_steps
    train.make_collator(data_args, None, 0)  # refuses unknown tasks


@pytest.mark.parametrize("name", GPUS)
def test_every_command_of_the_recipe_is_read(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(commands(name)) == 4
    for words in commands(name):
        program, *rest = words
        if program == "mdm":
            assert rest[0] in MODULES
            {"plan": plan, "encode": encode}[rest[0]].parse(rest[1:])
        elif program in ("bash", "sbatch"):
            assert all((ROOT / word).is_file() for word in rest if "/" in word)
            assert int(rest[1]) * 8 == GPUS[name] if program == "sbatch" else GPUS[name] == 8
        else:
            script, *options = rest
            load_script(ROOT / script).parse(
                [*options, *(CPU if script == "examples/train.py" else [])]
            )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", GPUS)
def test_the_plan_beside_it_is_what_is_planned_now(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = planned(name)[2:]
    words[words.index("--output") + 1] = str(tmp_path / "plan.json")
    plan.run(*plan.parse(words))
    fresh = json.loads((tmp_path / "plan.json").read_text())
    beside = json.loads((CONFIGS / f"{name}.plan.json").read_text())
    assert beside["fits"] is True
    assert fresh == beside
