# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Instruction tuning: answers are the noisy region; every adapter learns on every back-end."""

import io
import json
import os
import re
import shlex
import signal

import datasets
import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from PIL import Image
from test_chat import assistant, say, show, user
from test_processing import DRESS, END, GOWN, MASK, PAD, A, make_processor, picture, pixels
from tiny_digits import ROOT, load_script, save_config_folder
from tiny_model import MIXERS, make_model, mixed_batch

import modeling_mdm.block
from modeling_mdm import MDMConfig, MDMForJointGeneration, MDMProcessor, modeling_mdm
from modeling_mdm.cli.export import export
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.conversations import (
    LATE,
    ConversationCollator,
    adapter_targets,
    draw_embeddings,
    place_images,
    unseen_words,
)
from modeling_mdm.data.pictures import FASHION_MNIST_ID, PictureDataset, Source
from modeling_mdm.data.questions import DRAWING, GARMENTS, KINDS, WHICH, FashionQuestions
from modeling_mdm.data.talks import load_talks
from modeling_mdm.evaluation.questions import answer_accuracy
from modeling_mdm.ssd import BACKENDS, ssd_reference
from modeling_mdm.training.trainer import MDMTrainer

# peft asks the model by transformers' old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

CPU_BACKENDS = [name for name in BACKENDS if name not in ("triton", "mamba_ssm")]
TALK = [
    user(show(picture(1)), say("a dress")),
    assistant(say("a gown")),
    user(say("a")),
    assistant(say("a dress")),
]


# Batches


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def test_the_answer_is_the_noisy_region_and_all_before_it_is_given(processor):
    collate = ConversationCollator(processor, max_new_tokens=4)
    (batch,) = [collate([{"messages": TALK[:2], "seed": 0}])]
    assert batch["input_ids"].tolist() == [[A, DRESS, END, A, GOWN, END, PAD]]
    assert batch["text_given"].tolist() == [[True] * 3 + [False] * 4]
    assert batch["attention_mask"].tolist() == [[1] * 7]  # <pad> after <end> is learned, too
    assert batch["turn_ids"].tolist() == [[0] * 3 + [1] * 4]
    assert batch["image_given"].all() and batch["image_turn_ids"].tolist() == [[0]]
    torch.testing.assert_close(batch["pixel_values"][0, 0, 0], pixels(picture(1)))


def test_every_answer_of_a_conversation_is_taught_in_time(processor):
    collate = ConversationCollator(processor, max_new_tokens=4)
    lengths = []
    for seed in range(20):
        batch = collate([{"messages": TALK, "seed": seed}])
        again = collate([{"messages": TALK, "seed": seed}])
        assert all(torch.equal(value, again[name]) for name, value in batch.items())
        # What comes after the answer is not there at all.
        assert batch["text_given"].int().diff().sum() == -1 and not batch["text_given"][0, -1]
        lengths.append(batch["input_ids"].shape[1])
    assert set(lengths) == {7, 12}


def test_most_words_can_be_noised_so_far_that_only_the_question_tells_them(processor):
    items = [{"messages": TALK, "seed": seed} for seed in range(400)]
    plain = ConversationCollator(processor, 4)(items)
    assert "times" not in plain  # the model draws them
    batch = ConversationCollator(processor, 4, late=0.5)(items)
    times = batch.pop("times")["text"]
    assert all(torch.equal(value, plain[name]) for name, value in batch.items())
    assert times.shape == (400,) and 0 <= times.min() < 0.1 and 0.99 < times.max() <= 1
    # Half of [0, 1] above LATE already: 1/2 + 1/2 * 0.2 of all.
    assert 0.53 < (times > LATE).float().mean() < 0.67
    always = ConversationCollator(processor, 4, late=1.0)(items[7:8])["times"]["text"]
    again = ConversationCollator(processor, 4, late=1.0)(items[7:8])["times"]["text"]
    assert torch.equal(always, again) and always >= LATE


@pytest.mark.parametrize("late", [-0.1, 1.1])
def test_a_share_of_late_times_lies_between_0_and_1(processor, late):
    with pytest.raises(ValueError, match=f"late={late} must"):
        ConversationCollator(processor, late=late)


def test_the_loss_is_taken_at_late_times(processor, monkeypatch):
    items = [{"messages": TALK, "seed": seed} for seed in range(4)]
    batch = ConversationCollator(processor, 4, late=1.0)(items)
    model = MDMForJointGeneration(tiny(processor)).train()
    seen = {}
    usual = modeling_mdm.noise_inputs

    def noise_inputs(network, encoded, drawn):
        seen.update(drawn.times)
        return usual(network, encoded, drawn)

    monkeypatch.setattr(modeling_mdm, "noise_inputs", noise_inputs)
    assert model(**batch).loss.isfinite()
    assert torch.equal(seen["text"], batch["times"]["text"]) and "image" in seen


def test_an_answer_is_plain_words_whatever_it_looks_like(processor):
    """As questions are: only the collator's own `<end>` is one, on any tokenizer."""
    tokenizer = processor.tokenizer
    typed = tokenizer("a <end>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert END not in typed
    default, tokenizer.split_special_tokens = tokenizer.split_special_tokens, False
    try:
        assert END in tokenizer("a <end>", add_special_tokens=False)["input_ids"]
        talk = [user(say("a dress")), assistant(say("a <end>"))]
        collate = ConversationCollator(processor, len(typed) + 1)
        batch = collate([{"messages": talk, "seed": 0}])
    finally:
        tokenizer.split_special_tokens = default
    assert batch["input_ids"][~batch["text_given"]].tolist() == [*typed, END]


def test_answers_of_all_kinds_in_one_batch(processor):
    talks = [
        TALK[:2],
        [user(say("a gown")), assistant(show(picture(2)))],
        [user(say("a")), assistant(say("a gown"), show(picture(3)))],
        [user(say("a gown"), show(picture(4)), show(picture(5))), assistant(say("a"))],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a gown"}],
    ]
    collate = ConversationCollator(processor, max_new_tokens=3)
    batch = collate([{"messages": talk, "seed": 0} for talk in talks])
    noisy_words = (batch["attention_mask"].bool() & ~batch["text_given"]).sum(1)
    assert noisy_words.tolist() == [3, 0, 3, 3, 3]
    present = batch["pixel_attention_mask"].flatten(2).any(-1)
    noisy = present & ~batch["image_given"].flatten(2).any(-1)
    assert present.sum(1).tolist() == [1, 1, 1, 2, 0]
    assert noisy.sum(1).tolist() == [0, 1, 1, 0, 0]
    torch.testing.assert_close(batch["pixel_values"][1, 0, 0], pixels(picture(2)))
    torch.testing.assert_close(batch["pixel_values"][2, 0, 0], pixels(picture(3)))
    assert batch["image_turn_ids"][:, 0].tolist() == [0, 0, 1, 0, 0]
    model = MDMForJointGeneration(tiny(processor)).train()
    loss = model(**batch).loss
    assert loss.isfinite()


def test_the_loss_is_on_answers_only(processor):
    batch = ConversationCollator(processor, 4)([{"messages": TALK[:2], "seed": 0}])
    model = MDMForJointGeneration(tiny(processor)).eval()
    out = model(**batch)
    assert out.loss_se_image == 0  # the picture is given
    shown = model(**{**batch, "text_given": torch.ones_like(batch["text_given"])})
    assert shown.loss_se == 0 and out.loss_se_text > 0


def test_pictures_beside_the_messages_are_placed_in_order():
    messages = [user({"type": "image", "text": None}, say("a")), assistant({"type": "image"})]
    one, two = picture(1), picture(2)
    placed = place_images(messages, [one, two])
    assert placed[0]["content"][0]["image"] is one and placed[1]["content"][0]["image"] is two
    assert "image" not in messages[1]["content"][0]
    with pytest.raises(ValueError, match="images has 1 pictures, fewer"):
        place_images(messages, [one])
    with pytest.raises(ValueError, match="images has 1 pictures more"):
        place_images(messages, [one, two, one])


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([user(say("a"))], "no answer of the assistant"),
        ([user(say("a")), assistant(say("a gown a gown"))], "more than max_new_tokens=3"),
        ([user(say("a")), assistant(show(picture()), show(picture()))], "has 2 pictures"),
    ],
)
def test_faults_of_conversations(processor, talk, message):
    with pytest.raises(ValueError, match=message):
        ConversationCollator(processor, 3)([{"messages": talk, "seed": 0}])


# Questions


def make_questions(**kwargs):
    labels = np.arange(200) % 10
    images = np.broadcast_to(labels[:, None, None] * 20, (200, 8, 8)).astype(np.uint8)
    return FashionQuestions(PictureDataset(Source(images, labels=labels)), **kwargs)


def label_of(part):
    return int(np.asarray(part["image"])[0, 0]) // 20


def test_questions_are_answered_by_the_labels():
    questions = make_questions(seed=3)
    counts = dict.fromkeys(KINDS, 0)
    said_yes, asked_for = [], set()
    for index in range(len(questions)):
        item = questions[index]
        counts[item["kind"]] += 1
        *pictures, question = item["messages"][0]["content"]
        answer = item["messages"][1]["content"][0]["text"]
        labels = [label_of(part) for part in pictures]
        if item["kind"] == "yes or no":
            said_yes.append(answer == "yes")
            asked_for.add(question["text"])
            # Sandal, sneaker and ankle boot are footwear; else one class is asked for.
            (name,) = re.fullmatch(r"is this (.*)\?", question["text"]).groups()
            fits = {5, 7, 9} if name == "footwear" else {GARMENTS.index(name)}
            assert (answer == "yes") == (labels[0] in fits)
        elif item["kind"] == "what":
            assert answer == GARMENTS[labels[0]]
        else:
            asked = labels[("first", "second").index(answer)]
            assert question["text"] == WHICH.format(GARMENTS[asked])
            assert labels[0] != labels[1]
    assert min(counts.values()) > 40
    assert 0.3 < np.mean(said_yes) < 0.7
    assert asked_for == {"is this footwear?", *(f"is this {name}?" for name in GARMENTS)}


def test_some_kinds_can_be_asked_more_often():
    asked = [make_questions(seed=3, weights=[1, 0, 3])[n]["kind"] for n in range(200)]
    assert "what" not in asked and 0.65 < asked.count("which") / 200 < 0.85
    only = make_questions(weights=[0.0, 0.0, 0.1])
    assert {only[n]["kind"] for n in range(50)} == {"which"}


def test_questions_depend_on_seed_epoch_and_index_alone():
    one, two = make_questions(seed=3), make_questions(seed=3)
    assert [one[n]["messages"] for n in (5, 7)] != [one[n]["messages"] for n in (7, 5)]
    shown = [str(one[n]["messages"][0]["content"][-1]) for n in range(50)]
    assert shown[::-1] == [str(two[n]["messages"][0]["content"][-1]) for n in range(49, -1, -1)]
    two.set_epoch(1)
    assert shown != [str(two[n]["messages"][0]["content"][-1]) for n in range(50)]


def test_some_items_ask_for_a_picture():
    table = CaptionTable(labels=tuple((f"thing {n}",) for n in range(10)), templates=("see {}",))
    questions = make_questions(drawings=0.5, captions=table)
    items = [questions[n] for n in range(200)]
    drawings = [item for item in items if item["kind"] == DRAWING]
    assert 60 < len(drawings) < 140
    for item in drawings:
        (asked,), (drawn,) = (message["content"] for message in item["messages"])
        assert asked["text"] == f"see thing {label_of(drawn)}"


def test_the_names_are_those_of_the_caption_table():
    table = CaptionTable.from_json(ROOT / "examples" / "captions" / "fashion_mnist.json")
    assert tuple(names[0] for names in table.labels) == GARMENTS


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"drawings": 1.0}, r"drawings=1\.0 must"),
        ({"drawings": 0.5}, "needs captions"),
        ({"weights": [1, 1]}, r"weights=\[1, 1\] must be 3 numbers"),
        ({"weights": [1, 1, -1]}, r"weights=\[1, 1, -1\] must"),
        ({"weights": [0, 0, 0]}, r"weights=\[0, 0, 0\] must"),
    ],
)
def test_faults_of_questions(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_questions(**kwargs)
    unlabelled = PictureDataset(Source(np.zeros((3, 8, 8), np.uint8), texts=["a"] * 3))
    with pytest.raises(ValueError, match="without a label"):
        FashionQuestions(unlabelled)


def test_accuracy_is_the_share_of_answers_word_for_word(processor):
    model = MDMForJointGeneration(tiny(processor)).eval()
    items = [
        {"messages": [user(say("a")), assistant(say(answer))], "kind": kind}
        for answer, kind in (("a gown", "x"), ("a dress", "x"), ("a gown", "y"))
    ]

    class AlwaysAGown:
        training, device = False, torch.device("cpu")
        eval = train = lambda self, mode=True: self

        def generate(self, input_ids, turn_ids, **kwargs):
            assert kwargs["num_inference_steps"] == 3
            sequences = torch.where(turn_ids == 1, PAD, input_ids)
            for row, turns in zip(sequences, turn_ids, strict=True):
                (places,) = (turns == 1).nonzero(as_tuple=True)
                row[places[:3]] = torch.tensor([A, GOWN, END])
            return sequences

    def ask(model, **kwargs):
        return answer_accuracy(
            model, processor, items, max_new_tokens=4, batch_size=2, num_inference_steps=3, **kwargs
        )

    assert ask(AlwaysAGown()) == {"all": 2 / 3, "x": 0.5, "y": 1.0}
    assert set(ask(model)) == {"all", "x", "y"}
    with pytest.raises(ValueError, match="items is empty"):
        answer_accuracy(model, processor, [])


# Adapters


def tiny(processor, **changes):
    return MDMConfig(
        vocab_size=len(processor.tokenizer),
        max_text_length=10,
        image_size=8,
        patch_size=4,
        latent_dim=4,
        vae_hidden_size=16,
        vae_num_layers=1,
        hidden_size=16,
        num_hidden_layers=1,
        state_size=8,
        head_dim=16,
        **changes,
    )


def adapted(model, seed=0):
    """Adapters that change something: as made, their second factor is zero."""
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=adapter_targets(model))
    tuned = peft.get_peft_model(model, config)
    fill(tuned, seed)
    return tuned


def fill(tuned, seed, adapter="default"):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if f".lora_B.{adapter}." in name:
                noise = torch.randn(parameter.shape, generator=draw)
                parameter.copy_(0.2 * noise)


def without_gradient(tuned):
    """Names of the adapter tensors that a training step leaves without a gradient."""
    tuned.train()
    batch = mixed_batch(torch.float32)
    batch["drop_prompt"] = torch.zeros(8, dtype=torch.bool)
    tuned(**batch, keep=1.0, self_condition=True).loss.backward()
    adapters = {n: p for n, p in tuned.named_parameters() if "lora_" in n}
    assert adapters and all(p.requires_grad == (n in adapters) for n, p in tuned.named_parameters())
    return [n for n, p in adapters.items() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_adapter_learns_on_every_back_end(mixer, backend):
    if mixer == "attention" and backend != CPU_BACKENDS[0]:
        pytest.skip("attention has no back-ends")
    model = make_model(torch.float32, **MIXERS[mixer], kernel_backend=backend)
    assert without_gradient(adapted(model)) == []


class FusedKernel(torch.autograd.Function):
    """Like a kernel on a GPU: autograd sees its inputs and outputs, and nothing inside."""

    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        return ssd_reference(*inputs)[0]

    @staticmethod
    def backward(ctx, gradient):
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            return torch.autograd.grad(ssd_reference(*inputs)[0], inputs, gradient)


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "attention"])
def test_every_adapter_learns_with_a_fused_kernel(mixer, monkeypatch):
    used = []

    def fused(x, input_scale, log_decay, B, C, *rest, needs_state):
        used.append(x.shape)
        return FusedKernel.apply(x, input_scale, log_decay, B, C), None

    monkeypatch.setattr(modeling_mdm.block, "ssd", fused)
    assert without_gradient(adapted(make_model(torch.float32, **MIXERS[mixer]))) == []
    assert used


def test_a_kernel_that_reads_the_projection_itself_would_be_caught(monkeypatch):
    """The trap: fused kernels that take `out_proj.weight` go around the adapter, silently."""
    tuned = adapted(make_model(torch.float32))
    mixer = modeling_mdm.block.MDMMamba2Mixer
    usual = mixer.forward

    def fused(self, *args, **kwargs):
        around = self.out_proj
        self.out_proj = lambda y: F.linear(y, around.base_layer.weight)
        try:
            return usual(self, *args, **kwargs)
        finally:
            self.out_proj = around

    monkeypatch.setattr(mixer, "forward", fused)
    monkeypatch.setattr(torch.nn.Module, "__setattr__", object.__setattr__)
    for module in tuned.modules():
        if isinstance(module, mixer):
            module.__dict__["out_proj"] = module._modules["out_proj"]
    names = without_gradient(tuned)
    assert len(names) == 4 and all(".out_proj.lora_" in name for name in names)


def outputs(model):
    sources = {
        "times": {g: torch.full((8,), 0.4) for g in ("text", "image")},
        "noise": noise(1),
        "posterior_noise": noise(2),
    }
    model.eval()
    with torch.no_grad():
        out = model(**mixed_batch(torch.float32), **sources, return_loss=False)
    return torch.cat([out.logits.flatten(), out.clean_estimates["image"].flatten()])


def noise(seed):
    draw = torch.Generator().manual_seed(seed)
    return {
        "text": torch.randn(8, 6, 6, generator=draw),
        "image": torch.randn(8, 4, 6, generator=draw),
    }


def test_adapters_are_saved_loaded_switched_and_merged(tmp_path):
    base = outputs(make_model(torch.float32))
    tuned = adapted(make_model(torch.float32), seed=1)
    first = outputs(tuned)
    assert (first - base).abs().max() > 0.05
    tuned.save_pretrained(tmp_path / "first")
    other = adapted(make_model(torch.float32), seed=2)
    second = outputs(other)
    other.save_pretrained(tmp_path / "second")
    saved = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert "model.safetensors" not in saved and "adapter_model.safetensors" in saved

    loaded = peft.PeftModel.from_pretrained(make_model(torch.float32), tmp_path / "first")
    assert (outputs(loaded) - first).abs().max() < 1e-5
    loaded.load_adapter(tmp_path / "second", adapter_name="second")
    loaded.set_adapter("second")
    assert (outputs(loaded) - second).abs().max() < 1e-5
    loaded.set_adapter("default")
    assert (outputs(loaded) - first).abs().max() < 1e-5
    with loaded.disable_adapter():
        assert (outputs(loaded) - base).abs().max() < 1e-5
    merged = loaded.merge_and_unload()
    assert isinstance(merged, MDMForJointGeneration)
    assert (outputs(merged) - first).abs().max() < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    again = MDMForJointGeneration.from_pretrained(tmp_path / "merged")
    assert (outputs(again) - first).abs().max() < 1e-5


def test_tuning_leaves_the_latents_and_their_statistics_alone(processor):
    model = MDMForJointGeneration(tiny(processor))
    tuned = adapted(model).train()
    before = {name: value.clone() for name, value in model.vae.state_dict().items()}
    batch = ConversationCollator(processor, 4)([{"messages": TALK, "seed": 0}] * 2)
    loss = tuned(**batch).loss
    loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.vae.state_dict().items())
    adapted_parts = [n for n in adapter_targets(make_model(torch.float32)) if n.startswith("vae.")]
    assert adapted_parts == ["vae.word_head"]  # which decodes words, and shapes no latent


# Words that the model never saw


def test_unseen_words_are_told_by_latents_that_are_too_large():
    model = make_model(torch.float32)
    statistics = model.vae.statistics["text"]
    seen = model.vae.encode(torch.arange(7), "text")[0].detach()
    statistics.mean.copy_(seen.mean(0))
    statistics.variance.copy_(seen.var(0))
    with torch.no_grad():
        model.vae.embed_tokens.weight[[8, 11]] *= 40
    found = unseen_words(model)
    assert {8, 11} <= set(found) and not set(found) & set(range(7))


def test_embeddings_are_drawn_like_those_of_the_other_words():
    model = make_model(torch.float64, vocab_size=4000)
    weight = model.vae.embed_tokens.weight
    words = list(range(1000, 4000))
    with torch.no_grad():
        weight[:1000] = 3 + torch.randn_like(weight[:1000]) @ torch.randn(16, 16).double()
        weight[1000:] = 1e6
    known = weight[:1000].detach().clone()
    torch.manual_seed(0)
    draw_embeddings(model, words)
    assert torch.equal(weight[:1000], known)
    drawn = weight[1000:].detach()
    spread = known.std(0).max()
    assert (drawn.mean(0) - known.mean(0)).abs().max() < 0.1 * spread
    assert (drawn.T.cov() - known.T.cov()).abs().max() < 0.15 * spread**2
    with pytest.raises(ValueError, match="words names all 4000 words"):
        draw_embeddings(model, range(4000))


def test_embeddings_of_unseen_words_learn_and_travel_with_the_adapter(tmp_path):
    script = load_script(ROOT / "examples" / "finetune.py")
    model = make_model(torch.float32)
    with torch.no_grad():
        model.vae.embed_tokens.weight[5] *= 1e3
    model.save_pretrained(tmp_path / "base")
    (word,) = [n for n in unseen_words(model) if n == 5]
    tuned = script.make_adapters(model, script.AdapterArguments(model="base", lora_rank=2))
    assert word not in unseen_words(model)
    tuned.train()
    batch = mixed_batch(torch.float32)
    batch["input_ids"][batch["input_ids"] == 4] = word
    batch["input_ids"][0, 0] = word
    tuned(**batch).loss.backward()
    (rows,) = [p for n, p in tuned.named_parameters() if "trainable_tokens" in n]
    assert rows.grad.any()
    with torch.no_grad():
        rows += 0.1
    latents = model.vae.word_latents().detach()
    tuned.save_pretrained(tmp_path / "adapter")
    base = MDMForJointGeneration.from_pretrained(tmp_path / "base")
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    torch.testing.assert_close(merged.vae.word_latents(), latents)


def test_the_mode_head_learns_and_travels_with_the_adapter(tmp_path):
    script = load_script(ROOT / "examples" / "finetune.py")
    make_model(torch.float32).save_pretrained(tmp_path / "base")
    args = script.AdapterArguments(model=str(tmp_path / "base"), lora_rank=2, mode_head=True)
    model = script.load_model(args)
    tuned = script.make_adapters(model, args).train()
    tuned(**mixed_batch(torch.float32)).loss.backward()
    learned = [p for n, p in tuned.named_parameters() if "mode_head" in n and p.requires_grad]
    assert len(learned) == 4 and all(p.grad.any() for p in learned)
    with torch.no_grad():
        for parameter in learned:
            parameter += 0.1
    tuned.save_pretrained(tmp_path / "adapter")
    merged = peft.PeftModel.from_pretrained(script.load_model(args), tmp_path / "adapter")
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    again = MDMForJointGeneration.from_pretrained(tmp_path / "merged")
    assert torch.equal(again.mode_head.out_proj.bias, learned[-1])


# The script


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
    assert len(data.weights) == len(KINDS) and data.late > 0
    tokenizer = MDMProcessor.from_pretrained(adapters.model).tokenizer
    answers = ["yes", "no", "first", "second", *GARMENTS]
    longest = max(map(len, tokenizer(answers, add_special_tokens=False)["input_ids"]))
    assert longest + 1 <= data.max_new_tokens
    (tmp_path / "wrong.yaml").write_text("modle: x\n")
    with pytest.raises(ValueError, match=r"\['modle'\]"):
        script.parse([str(tmp_path / "wrong.yaml")])


# Pictures of one's own conversations


def talk(part, images=None):
    messages = [
        {"role": "user", "content": [part, {"type": "text", "text": "a zero"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a one"}]},
    ]
    return {"messages": messages} | ({} if images is None else {"images": images})


def save_picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(path)
    return str(path)


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
