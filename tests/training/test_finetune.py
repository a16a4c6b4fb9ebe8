# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The script of instruction tuning: what it writes, asks, refuses and goes on from."""

import json
import os
import re
import shlex
import signal

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from tiny_digits import ROOT, load_script, save_config_folder
from tiny_processor import MASK
from tiny_questions import make_questions, save_picture, talk
from tiny_talks import say, show, user

from modeling_mdm import MDMConfig, MDMForJointGeneration, MDMProcessor
from modeling_mdm.cli.export import export
from modeling_mdm.data.pictures import FASHION_MNIST_ID
from modeling_mdm.data.questions import GARMENTS
from modeling_mdm.training.trainer import MDMTrainer

# peft asks the model by transformers' old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    save_config_folder(folder)
    torch.manual_seed(0)
    MDMForJointGeneration(MDMConfig.from_pretrained(folder)).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talks")
    path = folder / "talks.jsonl"
    lines = []
    for number in range(4):
        Image.new("L", (8, 8), 60 * number).save(folder / f"{number}.png")
        shown = {"type": "image", "path": str(folder / f"{number}.png")}
        question = [shown, {"type": "text", "text": "a zero"}]
        answer = [{"type": "text", "text": "a one"}]
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n")
    return path


def script_arguments(trained, talks, output):
    return [
        *("--model", str(trained), "--dataset", str(talks), "--output_dir", str(output)),
        *("--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true", "--lora_rank", "2"),
        *("--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--save_steps", "2"),
    ]


def test_the_script_tunes_saves_merges_and_goes_on(trained, talks, tmp_path):
    script = load_script(ROOT / "examples" / "finetune.py")
    arguments = script_arguments(trained, talks, tmp_path)
    script.main([*arguments, "--max_steps", "2"])
    with pytest.raises(ValueError, match="--resume_from_checkpoint last"):
        script.main([*arguments, "--max_steps", "4"])
    script.main([*arguments, "--max_steps", "4", "--resume_from_checkpoint", "last"])
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    processor = MDMProcessor.from_pretrained(tmp_path)
    question = [user(show(Image.new("L", (8, 8))), say("a zero"))]
    inputs = processor.apply_chat_template(
        question,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        max_new_tokens=4,
    )
    assert MASK in inputs["input_ids"]
    base = MDMForJointGeneration.from_pretrained(trained)
    adapters = peft.PeftModel.from_pretrained(base, tmp_path)
    merged = MDMForJointGeneration.from_pretrained(tmp_path / "merged")
    estimates = []
    for model in (adapters, merged):
        torch.manual_seed(1)
        with torch.no_grad():
            estimates.append(model.eval()(**inputs, return_loss=False).logits)
    assert (estimates[0] - estimates[1]).abs().max() < 1e-5
    out = adapters.generate(**inputs, num_inference_steps=1, show_progress=False)
    assert isinstance(processor.post_process(out, inputs)[0].text, str)
    command = shlex.join([*arguments, "--max_steps", "4", "--resume_from_checkpoint", "last"])
    for folder, library in ((tmp_path, "peft"), (tmp_path / "merged", "transformers")):
        card = assert_filled(folder, trained, library)
        assert f"python examples/finetune.py {command}\n" in card
        assert f"`{talks}`" in card and str(trained) in card
    # A checkpoint holds adapters, no code, and no card of its own.
    names = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert "adapter_model.safetensors" in names and "README.md" not in names
    assert [name for name in names if name.endswith(".py")] == ["mdm_export_first.py"]
    assert (tmp_path / "processing_mdm.py").is_file()
    # Exported, they are the merged model.
    export(str(tmp_path / "checkpoint-4"), str(tmp_path / "hub"))
    ours, theirs = (
        MDMForJointGeneration.from_pretrained(tmp_path / name).state_dict()
        for name in ("hub", "merged")
    )
    assert set(ours) == set(theirs) and (tmp_path / "hub" / "modeling_mdm.py").is_file()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


def assert_filled(folder, base, library):
    """Read a card as the Hub does; its code runs as it is written."""
    card = ModelCard.load(folder / "README.md")
    assert "More Information Needed" not in card.content
    assert card.data.library_name == library and card.data.base_model == base.name
    assert {"mdm", "lora"} & set(card.data.tags) and card.data.license == "mit"
    code = re.search(r"```python\n(.*?)```", card.content, re.DOTALL)[1]
    found = {}
    exec(code, found)
    assert isinstance(found["processor"], MDMProcessor)
    assert isinstance(found["model"], peft.PeftModel if library == "peft" else torch.nn.Module)
    return card.content


def test_the_script_asks_before_and_after(trained, tmp_path, monkeypatch):
    script = load_script(ROOT / "examples" / "finetune.py")
    questions = make_questions(seed=1)
    monkeypatch.setattr(script, "load_training_data", lambda *args, **kwargs: questions.pictures)
    arguments = script_arguments(trained, "fashion_questions", tmp_path)
    captions = str(ROOT / "examples" / "captions" / "fashion_mnist.json")
    options = ["--test_questions", "3", "--max_new_tokens", "40", "--captions", captions]
    options += ["--mode_head", "true", "--weights", "1", "1", "2", "--late", "0.5"]
    results = script.main(
        [*arguments, *options, "--max_steps", "1", "--merge", "false", "--logging_steps", "1"]
    )
    assert json.loads((tmp_path / "answers.json").read_text()) == results
    card = assert_filled(tmp_path, trained, "peft")
    shares = f"{results['before']['all']:.1%} | {results['after']['all']:.1%}"
    assert f"| all | {shares} |" in card and "use_mode_head=True" in card
    assert ModelCard.load(tmp_path / "README.md").data.datasets == [FASHION_MNIST_ID]
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert any("loss_mode" in entry for entry in state["log_history"])
    assert set(results) == {"before", "after"} and 0 <= results["after"]["all"] <= 1
    assert not (tmp_path / "merged").exists()


def test_an_interrupt_says_how_to_go_on(trained, talks, tmp_path, monkeypatch):
    script = load_script(ROOT / "examples" / "finetune.py")
    compute_loss = MDMTrainer.compute_loss

    def interrupted_loss(self, *args, **kwargs):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(MDMTrainer, "compute_loss", interrupted_loss)
    arguments = script_arguments(trained, talks, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt, match=r"checkpoint-2: .*--resume_from_checkpoint last"):
        script.main([*arguments, "--max_steps", "9"])


def test_a_set_without_messages_is_refused(trained, tmp_path):
    script = load_script(ROOT / "examples" / "finetune.py")
    (tmp_path / "no.jsonl").write_text('{"text": "a"}\n')
    arguments = script_arguments(trained, tmp_path / "no.jsonl", tmp_path / "run")
    with pytest.raises(ValueError, match="it needs `messages`"):
        script.main([*arguments, "--max_steps", "1"])


def test_the_shipped_file_of_questions(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    script = load_script(ROOT / "examples" / "finetune.py")
    adapters, data, args = script.parse(["examples/configs/fashion_questions.yaml", "--seed", "3"])
    assert (data.dataset, args.seed) == ("fashion_questions", 3) and args.max_steps > 0
    assert data.weights is None and data.late > 0  # all kinds alike
    tokenizer = MDMProcessor.from_pretrained(adapters.model).tokenizer
    answers = ["yes", "no", "first", "second", *GARMENTS]
    longest = max(map(len, tokenizer(answers, add_special_tokens=False)["input_ids"]))
    assert longest + 1 <= data.max_new_tokens
    (tmp_path / "wrong.yaml").write_text("modle: x\n")
    with pytest.raises(ValueError, match=r"\['modle'\]"):
        script.parse([str(tmp_path / "wrong.yaml")])


def test_missing_pictures_are_named_with_their_lines(tmp_path, trained):
    save_picture(tmp_path / "a.png", 70)
    rows = [talk({"type": "image", "image": name}) for name in ("a.png", "b.png", "a.png")]
    rows.append(talk({"type": "image"}, ["c.png"]))
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    script = load_script(ROOT / "examples" / "finetune.py")
    with pytest.raises(ValueError, match="2 pictures are missing") as raised:
        script.main([*script_arguments(trained, path, tmp_path / "run"), "--max_steps", "1"])
    for line, name in ((2, "b.png"), (4, "c.png")):
        assert f"{path}, line {line}: {tmp_path / name}" in str(raised.value)


def test_long_answers_are_found_before_the_first_step(tmp_path, trained):
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]}
        for answer in ("one", "one " * 12, "one", "one " * 30)
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    script = load_script(ROOT / "examples" / "finetune.py")
    message = r"2 of 4 answers are too long. The longest, .*talks.jsonl, line 4, .*--max_new_tokens"
    with pytest.raises(ValueError, match=message):
        script.main([*script_arguments(trained, path, tmp_path / "run"), "--max_steps", "1"])
