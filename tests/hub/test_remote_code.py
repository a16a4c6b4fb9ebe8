# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is saved loads in a clean process, from its own code, without this package."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny_digits import ROOT, load_script, make_processor
from tiny_model import make_model
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, pipeline

from mdm_cli.main import main as mdm
from modeling_mdm import MDMForJointGeneration, MDMProcessor
from modeling_mdm.cli import export
from modeling_mdm.hub import AUTO_MODELS
from modeling_mdm.training.checkpoints import find_fault
from modeling_mdm.training.trainer import MDMTrainer, MDMTrainingArguments

PACKAGE = ROOT / "modeling_mdm"
SHIPPED = ROOT / "examples" / "checkpoints" / "mdm-fashion"
QUIET = {"num_inference_steps": 2, "show_progress": False}
PROMPTS = ["one", "a seven"]


def sample(model, processor):
    """What a model writes for two prompts."""
    inputs = processor(text=PROMPTS, generate="joint", return_tensors="pt")
    out = model.generate(**inputs, generator=torch.Generator().manual_seed(0), **QUIET)
    texts = [item.text for item in processor.post_process(out)]
    return {"images": out.images, "sequences": out.sequences, "texts": texts}


def assert_same(ours, theirs):
    assert torch.equal(ours["images"], theirs["images"])
    assert torch.equal(ours["sequences"], theirs["sequences"])
    assert ours["texts"] == theirs["texts"]


PRELUDE = f"""
import sys

for name in ("modeling_mdm", "mamba_ssm"):
    sys.modules[name] = None  # as if neither were installed
import inspect
import torch
import transformers
from transformers import pipeline

REMOTE = dict(trust_remote_code=True)
QUIET, PROMPTS, AUTO_MODELS = {QUIET}, {PROMPTS}, {AUTO_MODELS}

"""

FIRST = """
saved, checkpoint, exported, again, results = sys.argv[1:]
found = {"models": {}, "checkpoint": {}, "types": {}, "refused": {}}
for name in ("AutoConfig", "AutoProcessor", "AutoImageProcessor", *AUTO_MODELS, "pipeline"):
    load = getattr(transformers, name)
    if name == "pipeline":
        load = lambda folder, **options: pipeline("any-to-any", model=folder, **options)
    else:
        load = load.from_pretrained
    for _ in range(2):  # a module whose import has failed must not pass for imported
        try:
            load(checkpoint, **REMOTE)
        except ImportError as error:
            found["refused"][name] = str(error)
        else:
            found["refused"][name] = "nothing"
config = transformers.AutoConfig.from_pretrained(saved, **REMOTE)
processor = transformers.AutoProcessor.from_pretrained(saved, **REMOTE)
tokenizer = transformers.AutoTokenizer.from_pretrained(saved, **REMOTE)
image_processor = transformers.AutoImageProcessor.from_pretrained(saved, **REMOTE)
pil = transformers.AutoImageProcessor.from_pretrained(saved, backend="pil", **REMOTE)
for part in (config, processor, tokenizer, image_processor, pil):
    found["types"][type(part).__name__] = type(part).__module__
found["tokens"] = tokenizer(PROMPTS)["input_ids"]
found["pixels"] = image_processor(torch.full((1, 8, 8), 0.5), return_tensors="pt")["pixel_values"]
for folder, loaded, names in (
    (saved, found["models"], AUTO_MODELS),
    (exported, found["checkpoint"], ["AutoModelForMultimodalLM"]),
):
    for name in names:
        auto = getattr(transformers, name)
        model = auto.from_pretrained(folder, **REMOTE)
        assert type(model.generation_config).__name__ == "MDMGenerationConfig"
        found["types"][name] = type(model).__module__
        loaded[name] = sample(model, processor)
        loaded[name]["weights"] = {k: v.clone() for k, v in model.state_dict().items()}
model(**processor(text=PROMPTS, return_tensors="pt")).loss.backward()
model = transformers.AutoModelForMultimodalLM.from_pretrained(saved, **REMOTE)
model.save_pretrained(again)
processor.save_pretrained(again)
torch.save(found, results)
"""

SECOND = """
again, piped, results = sys.argv[1:]
processor = transformers.AutoProcessor.from_pretrained(again, **REMOTE)
model = transformers.AutoModelForImageTextToText.from_pretrained(again, **REMOTE)
found = {"again": sample(model, processor)}
joint = pipeline("mdm-joint-generation", model=again, **REMOTE)
joint.save_pretrained(piped)
for name, folder in (("joint", again), ("joint again", piped)):
    joint = pipeline("mdm-joint-generation", model=folder, **REMOTE)
    generator = torch.Generator().manual_seed(0)
    items = joint(PROMPTS, generator=generator, num_return_sequences=2, **QUIET)
    found[name] = [[(s["text"], s["image"].tobytes()) for s in item] for item in items]
any_to_any = pipeline("any-to-any", model=piped, **REMOTE)
torch.manual_seed(0)
found["any to any"] = any_to_any(PROMPTS, generate_kwargs=QUIET)
describe = pipeline("image-text-to-text", model=piped, **REMOTE)
torch.manual_seed(0)
found["image text to text"] = describe(PROMPTS, generate_kwargs=QUIET)
torch.save(found, results)
"""

EXPORTED = """
folder, picture, results = sys.argv[1:]
found = {}
for task in ("any-to-any", "image-text-to-text"):
    pipe = pipeline(task, model=folder, **REMOTE)
    torch.manual_seed(0)
    found[task] = pipe(text="", images=picture, generate_kwargs=dict(QUIET))[0]["generated_text"]
joint = pipeline("mdm-joint-generation", model=folder, **REMOTE)
generator = torch.Generator().manual_seed(0)
(drawn,) = joint("a photo of a bag", generate="image", generator=generator, **QUIET)
found["joint"] = drawn["image"].tobytes()
torch.save(found, results)
"""


def run_alone(script, folder, *arguments):
    """Run a script in a process that finds no package of ours and no module of an earlier run."""
    results = folder / "results.pt"
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-W", "error::FutureWarning", "-c"),
            PRELUDE + inspect.getsource(sample) + script,
            *map(str, (*arguments, results)),
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "is not supported for any-to-any" not in done.stderr
    return torch.load(results)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with its processor, and the folder that they are in."""
    processor = make_processor()
    model = make_model(
        torch.float32,
        vocab_size=len(processor.tokenizer),
        max_text_length=processor.max_text_length,
        num_classes=10,
    )
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


@pytest.fixture(scope="module")
def checkpoint(saved, tmp_path_factory):
    """A checkpoint that the Trainer wrote: (folder, the model in it)."""
    _, processor, folder = saved
    run = tmp_path_factory.mktemp("run")
    args = MDMTrainingArguments(
        output_dir=str(run),
        use_cpu=True,
        max_steps=1,
        per_device_train_batch_size=2,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = MDMTrainer(
        MDMForJointGeneration.from_pretrained(folder),
        args,
        train_dataset=[{"text": text} for text in PROMPTS],
        data_collator=lambda items: processor(
            text=[item["text"] for item in items], return_tensors="pt"
        ),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    return run / "checkpoint-1", trainer.model.eval()


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """What `mdm export` made of the checkpoint."""
    folder = tmp_path_factory.mktemp("exported")
    assert mdm(["export", "--checkpoint", str(checkpoint[0]), "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def first(saved, checkpoint, exported, tmp_path_factory):
    """What a clean process found, and the folder that it saved to."""
    alone = tmp_path_factory.mktemp("first")
    folders = (saved[2], checkpoint[0], exported, alone / "again")
    return run_alone(FIRST, alone, *folders), alone / "again"


@pytest.fixture(scope="module")
def second(first, tmp_path_factory):
    """What another clean process found in the folder that the first one saved."""
    alone = tmp_path_factory.mktemp("second")
    return run_alone(SECOND, alone, first[1], alone / "piped")


@pytest.mark.parametrize("name", AUTO_MODELS)
def test_every_auto_class_gives_equal_weights_and_samples(name, saved, first):
    model, processor, _ = saved
    theirs = first[0]["models"][name]
    assert all(torch.equal(value, theirs["weights"][k]) for k, value in model.state_dict().items())
    assert_same(sample(model, processor), theirs)


def test_processor_tokenizer_and_image_processor_are_equal(saved, first):
    _, processor, _ = saved
    assert processor.tokenizer(PROMPTS)["input_ids"] == first[0]["tokens"]
    assert first[0]["pixels"].shape == (1, 1, 8, 8) and not first[0]["pixels"].any()


def test_the_classes_come_from_the_folder(first):
    own = {name for name, module in first[0]["types"].items() if "transformers_modules" in module}
    images = {"MDMImageProcessor", "MDMImageProcessorPil"}
    assert own == {"MDMConfig", "MDMProcessor", *images, *AUTO_MODELS}


def test_a_checkpoint_carries_no_code_but_a_signpost(checkpoint, first):
    """Whatever is to be run from its folder, the error names the command that helps."""
    folder, model = checkpoint
    (signpost,) = folder.glob("*.py")
    assert len(signpost.read_text().splitlines()) < 10 and not (folder / "README.md").exists()
    names = {"AutoConfig", "AutoProcessor", "AutoImageProcessor", *AUTO_MODELS, "pipeline"}
    assert set(first[0]["refused"]) == names
    for message in first[0]["refused"].values():
        assert f"mdm export --checkpoint {folder} --output_dir" in message
    assert find_fault(folder) is None
    # With the package imported, as here, it loads by every class.
    for options in ({}, {"trust_remote_code": True}):
        loaded = AutoModel.from_pretrained(folder, **options).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
        assert type(AutoProcessor.from_pretrained(folder, **options)) is MDMProcessor
        image_processor = AutoImageProcessor.from_pretrained(folder, **options)
        assert type(image_processor).__module__.startswith("modeling_mdm.")


def test_the_final_folder_of_a_run_carries_its_code(checkpoint, saved):
    run = checkpoint[0].parent
    code = {path.name: path.read_bytes() for path in saved[2].glob("*.py")}
    assert {path.name: path.read_bytes() for path in run.glob("*.py")} == code
    assert named_code(run) == named_code(saved[2])


def test_an_exported_checkpoint_loads_anywhere(checkpoint, exported, saved, first):
    """With the averaged weights, which are those that the run left in its own folder."""
    assert named_code(exported) == named_code(saved[2])
    folder, model = checkpoint
    theirs = first[0]["checkpoint"]["AutoModelForMultimodalLM"]
    averaged = MDMForJointGeneration.from_pretrained(folder.parent).eval()
    weights = averaged.state_dict()
    assert all(torch.equal(value, theirs["weights"][key]) for key, value in weights.items())
    assert any(not torch.equal(value, weights[k]) for k, value in saved[0].state_dict().items())
    assert any(not torch.equal(value, weights[k]) for k, value in model.state_dict().items())
    assert_same(sample(averaged, saved[1]), theirs)


def test_what_was_loaded_saves_with_its_code_and_loads_again(saved, first, second):
    model, processor, folder = saved
    code = {path.name: path.read_bytes() for path in folder.glob("*.py")}
    assert {"modeling_mdm.py", "processing_mdm.py", "pipeline_mdm.py", "solvers.py"} <= set(code)
    assert {path.name: path.read_bytes() for path in first[1].glob("*.py")} == code
    assert_same(sample(model, processor), second["again"])


def test_pipelines_run_and_survive_saving(saved, second):
    model, processor, _ = saved
    inputs = processor(text=PROMPTS, generate="joint", return_tensors="pt")
    generator = torch.Generator().manual_seed(0)
    out = model.generate(**inputs, generator=generator, num_return_sequences=2, **QUIET)
    expected = [(item.text, item.image.tobytes()) for item in processor.post_process(out)]
    assert second["joint"] == second["joint again"] == [expected[:2], expected[2:]]
    assert [record["input_text"] for record in second["any to any"]] == PROMPTS
    described = [record for (record,) in second["image text to text"]]
    for record in second["any to any"] + described:
        assert len(record["generated_text"]) > len(record["input_text"])


def test_saved_code_is_the_code_that_ran(saved, exported):
    """Flat files, as they are, and a map from the Auto classes to them."""
    _, _, folder = saved
    code = {path.name: path.read_bytes() for path in folder.glob("*.py")}
    for name, content in code.items():
        (path,) = (
            room / name for room in (PACKAGE, PACKAGE / "processor") if (room / name).exists()
        )
        assert content == path.read_bytes()
    assert {path.name: path.read_bytes() for path in exported.glob("*.py")} == code
    stored = json.loads((folder / "config.json").read_text())
    assert stored["auto_map"] == {
        "AutoConfig": "configuration_mdm.MDMConfig",
        "AutoModel": "modeling_mdm.MDMForJointGeneration",
        "AutoModelForMultimodalLM": "modeling_mdm.MDMForJointGeneration",
        "AutoModelForImageTextToText": "modeling_mdm.MDMForJointGeneration",
    }
    assert set(stored["custom_pipelines"]) == {"mdm-joint-generation"}


def test_a_card_is_written_once(saved, tmp_path):
    model, _, folder = saved
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card and "pipeline_tag: any-to-any" in card
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


# --- the Hub


def test_push_to_hub_uploads_everything(saved):
    """Uploads are replaced by a list of what would go up."""
    model, processor, folder = saved
    uploaded = {}

    def commit(repo_id, operations, **kwargs):
        for operation in operations:
            with operation.as_file() as file:
                uploaded[operation.path_in_repo] = file.read()

    api = mock.Mock()
    api.create_repo.return_value.repo_id = "me/mine"
    api.create_commit.side_effect = commit
    card = mock.Mock()
    card.save.side_effect = lambda path: Path(path).write_text("the card of the Hub")
    with (
        mock.patch("transformers.utils.hub.hf_api", return_value=api),
        mock.patch("transformers.utils.hub.create_and_tag_model_card", return_value=card) as tagged,
    ):
        model.push_to_hub("me/mine")
        processor.push_to_hub("me/mine")
    assert set(uploaded) == {path.name for path in folder.iterdir()}
    assert "mdm" in tagged.call_args_list[0].args[1]
    for name, content in uploaded.items():
        if name != "README.md":
            assert content == (folder / name).read_bytes(), name


# --- the checkpoint in this repository


def named_code(folder):
    """Files that the settings of a folder name as code."""
    found = set()
    for path in folder.glob("*config.json"):
        settings = json.loads(path.read_text())
        for part in (settings, settings.get("image_processor", {})):
            for value in part.get("auto_map", {}).values():
                classes = value if isinstance(value, list) else [value]
                found |= {name.split(".")[0] + ".py" for name in classes}
            for task in part.get("custom_pipelines", {}).values():
                found.add(task["impl"].split(".")[0] + ".py")
    return found


def test_the_shipped_checkpoint_holds_no_code_and_names_none():
    """Its code is this package, and a copy would grow old: see `export.py --code false`."""
    assert not list(SHIPPED.glob("*.py")) and not named_code(SHIPPED)


def test_export_writes_a_repository_of_the_hub(tmp_path, monkeypatch, capsys):
    out = tmp_path / "hub"
    arguments = ["--checkpoint", str(SHIPPED), "--output_dir", str(out)]
    api = mock.Mock()
    api.create_repo.return_value.repo_id = "me/mine"
    monkeypatch.setattr(export, "HfApi", lambda: api)
    load_script(ROOT / "examples" / "export.py").main([*arguments, "--push_to_hub", "me/mine"])
    api.upload_folder.assert_called_once_with(folder_path=out, repo_id="me/mine")
    assert "modeling_mdm.py" in capsys.readouterr().out
    code = {path.name for path in out.glob("*.py")}
    assert len(named_code(out)) == 6 and named_code(out) <= code
    for name in ("README.md", "model.safetensors", "tokenizer.json"):
        assert (out / name).read_bytes() == (SHIPPED / name).read_bytes(), name
    for name in ("config.json", "generation_config.json", "processor_config.json"):
        assert (out / name).is_file()


def test_export_without_code_gives_the_shipped_form(tmp_path, capsys):
    out = tmp_path / "plain"
    arguments = ["--checkpoint", str(SHIPPED), "--output_dir", str(out), "--code", "false"]
    assert mdm(["export", *arguments, "--json"]) == 0
    files = sorted(path.name for path in out.iterdir())
    written = {"folder": str(out), "files": files, "uploaded": None}
    assert json.loads(capsys.readouterr().out) == written
    assert {path.name for path in out.iterdir()} == {path.name for path in SHIPPED.iterdir()}
    assert not named_code(out)
    processor = MDMProcessor.from_pretrained(out)
    assert processor.num_classes == 10


@pytest.mark.slow
def test_an_exported_folder_runs_where_the_package_is_not_installed(tmp_path):
    """Every pipeline gives what it gives here."""
    out, picture = tmp_path / "hub", ROOT / "examples" / "pictures" / "fashion_mnist"
    picture = picture / "9_ankle_boot.png"
    arguments = ["--checkpoint", str(SHIPPED), "--output_dir", str(out)]
    load_script(ROOT / "examples" / "export.py").main(arguments)
    there = run_alone(EXPORTED, tmp_path, out, picture)
    for task in ("any-to-any", "image-text-to-text"):
        pipe = pipeline(task, model=str(SHIPPED))
        torch.manual_seed(0)
        (record,) = pipe(text="", images=str(picture), generate_kwargs=dict(QUIET))
        assert record["generated_text"] == there[task]
    joint = pipeline("mdm-joint-generation", model=str(SHIPPED))
    generator = torch.Generator().manual_seed(0)
    (drawn,) = joint("a photo of a bag", generate="image", generator=generator, **QUIET)
    assert drawn["image"].tobytes() == there["joint"]
