# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The mode head: the model decides whether a reply holds words, a picture or both."""

import pytest
import torch
import torch.nn.functional as F
from tiny_model import MIXERS, SIDE, VOCABULARY, make_model, mixed_batch, tiny_config

from modeling_mdm import MDMForJointGeneration
from modeling_mdm.loss import asking
from modeling_mdm.network import ModeHead
from modeling_mdm.training_step import mode_loss

MODES = ("text", "image", "joint")
WORDS, REPLY = 3, 3


def make_questions(count, seed, dtype=torch.float32):
    """Two turns; one word of the second says what is asked for, one of the first says nothing.

    Returns inputs with the answer to be written, the same without an answer, and the modes.
    """
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(8, VOCABULARY, (count, 2 * WORDS), generator=draw)
    asked, before = torch.randint(3, (2, count), generator=draw)
    items = torch.arange(count)
    words[items, torch.randint(WORDS, (count,), generator=draw)] = 4 + before
    words[items, WORDS + torch.randint(WORDS, (count,), generator=draw)] = 4 + asked
    turn = torch.tensor([0] * WORDS + [2] * WORDS).expand(count, -1)
    question = {"input_ids": words, "text_given": torch.ones_like(words).bool(), "turn_ids": turn}
    writes_words, writes_picture = asked != 1, asked != 0
    answer = torch.randint(4, VOCABULARY, (count, REPLY), generator=draw)
    pixels = torch.rand(count, 1, SIDE, SIDE, generator=draw).to(dtype) * 2 - 1
    real = torch.ones(count, WORDS * 2 + REPLY, dtype=torch.long)
    real[:, 2 * WORDS :] = writes_words[:, None]
    inputs = {
        "input_ids": torch.cat([words, answer], 1),
        "attention_mask": real,
        "text_given": F.pad(question["text_given"], (0, REPLY)),
        "turn_ids": F.pad(turn, (0, REPLY), value=3),
        "pixel_values": pixels,
        "pixel_attention_mask": writes_picture[:, None, None].expand(-1, SIDE, SIDE).long(),
        "image_given": (~writes_picture)[:, None, None].expand(-1, SIDE, SIDE),
    }
    return inputs, question, [MODES[mode] for mode in asked.tolist()]


def take(inputs, rows):
    return {name: value[rows] for name, value in inputs.items()}


def generate(model, inputs, **options):
    length = {} if options.get("generation_mode") == "image" else {"max_new_tokens": REPLY}
    options = {"num_inference_steps": 2, **length, **options}
    return model.generate(**inputs, show_progress=False, **options)


@pytest.fixture(scope="module", params=["parallel", "attention"])
def trained(request):
    """Teach the head of a model of random weights, which stay as they are."""
    model = make_model(torch.float32, use_mode_head=True, **MIXERS[request.param])
    optimizer = torch.optim.Adam(model.mode_head.parameters(), lr=2e-2)
    for step in range(120):
        encoded = model.encode_inputs(**make_questions(64, step)[0])
        loss = mode_loss(model, encoded, asking(encoded.content).sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_a_trained_head_decides_for_prompts_that_it_has_not_seen(trained):
    _, questions, expected = make_questions(120, seed=1000)
    chosen = generate(trained, questions, generation_mode="auto", num_inference_steps=1)
    right = [a == b for a, b in zip(chosen.generation_modes, expected, strict=True)]
    assert sum(right) / len(right) > 0.9


def test_every_item_is_written_as_if_its_mode_had_been_named_for_it_alone(trained):
    _, questions, _ = make_questions(6, seed=2000)
    # The same items with pictures of their own: one has none.
    questions["pixel_values"] = torch.rand(6, 1, SIDE, SIDE) * 2 - 1
    questions["image_given"] = torch.ones(6, SIDE, SIDE, dtype=torch.bool)
    questions["pixel_attention_mask"] = torch.ones(6, SIDE, SIDE, dtype=torch.long)
    questions["pixel_attention_mask"][3] = 0
    selects = trained.config.mixer != "attention"
    for options in ({}, {"use_cache": False}, {"keep": 0.5} if selects else {"solver": "ddim"}):
        seeds = [torch.Generator().manual_seed(seed) for seed in range(6)]
        chosen = generate(trained, questions, generation_mode="auto", generator=seeds, **options)
        assert len(set(chosen.generation_modes)) > 1
        for item, mode in enumerate(chosen.generation_modes):
            seed, one = torch.Generator().manual_seed(item), take(questions, [item])
            named = generate(trained, one, generation_mode=mode, generator=[seed], **options)
            assert named.generation_modes is None
            if mode == "image":
                assert torch.equal(chosen.sequences[item, : 2 * WORDS], one["input_ids"][0])
                assert (chosen.sequences[item, 2 * WORDS :] == 0).all()  # padding
            else:
                assert torch.equal(chosen.sequences[item], named.sequences[0])
                assert torch.equal(chosen.turn_ids[item], named.turn_ids[0])
            if mode != "text":
                assert (chosen.images[item] - named.images[0]).abs().max() < 1e-4


def test_a_mode_that_is_named_comes_first(trained):
    _, questions, _ = make_questions(4, seed=3000)
    out = generate(trained, questions, generation_mode="image")
    assert out.sequences is None and out.images.shape == (4, 1, SIDE, SIDE)


def test_what_is_read_to_decide_is_not_read_again():
    model = make_model(use_mode_head=True)
    with torch.no_grad():
        model.mode_head.out_proj.weight.zero_()
        model.mode_head.out_proj.bias.copy_(torch.tensor([mode == "text" for mode in MODES]))
    _, questions, _ = make_questions(12, seed=4000, dtype=torch.float64)
    out = generate(model, questions, generation_mode="auto", num_return_sequences=2)
    assert out.generation_modes == ["text"] * 24
    read = out.cache.positions_read
    assert read.tolist() == [2 * WORDS + 1] * 12  # a start token


@pytest.mark.parametrize("ahead", [{"joint_overlap": 0.25}, {"joint_lead": 2.0}], ids=str)
def test_words_may_go_ahead_where_some_items_hold_both(ahead, trained):
    _, questions, _ = make_questions(12, seed=6000)
    options = {"generation_mode": "auto", "num_inference_steps": 4, **ahead}
    out = generate(trained, questions, **options)
    assert {"joint", "text"} <= set(out.generation_modes)
    together = [item for item, mode in enumerate(out.generation_modes) if mode == "joint"]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(12)]
    mixed = generate(trained, questions, generator=seeds, **options)
    seeds = [torch.Generator().manual_seed(seed) for seed in together]
    alone = generate(trained, take(questions, together), generator=seeds, **options)
    assert torch.equal(mixed.sequences[together], alone.sequences)
    assert (mixed.images[together] - alone.images).abs().max() < 1e-4


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_choice_is_the_same_from_past_turns_and_before_any_answer(mixer, monkeypatch):
    """Also in training, whatever the answer: its start tokens would tell."""
    model = make_model(use_mode_head=True, **MIXERS[mixer])
    inputs, questions, _ = make_questions(9, seed=5, dtype=torch.float64)
    first = {name: value[:, :WORDS] for name, value in questions.items()}
    past = generate(model, first, max_new_tokens=2).cache
    options = {"generation_mode": "text", "guidance_scale": 2.0}
    chosen = generate(model, questions, cache=past, **options).cache
    fresh = generate(model, questions, generation_mode="text").cache
    assert chosen.positions_read.tolist() == [2 * WORDS + 1] * 9
    assert (chosen.mode_logits - fresh.mode_logits).abs().max() < 1e-10
    again = generate(model, questions, cache=chosen, generation_mode="auto")
    assert again.generation_modes == fresh.modes == chosen.modes
    assert fresh.mode_logits.std(0).min() > 1e-3
    seen = []
    monkeypatch.setattr(
        model.mode_head,
        "forward",
        lambda *read: seen.append(ModeHead.forward(model.mode_head, *read)) or seen[-1],
    )
    loss = model(**inputs).loss_mode
    assert (seen[0] - fresh.mode_logits).abs().max() < 1e-10
    # Another answer, of other kinds: the same logits.
    other, *_ = make_questions(9, seed=6, dtype=torch.float64)
    other["input_ids"][:, : 2 * WORDS] = questions["input_ids"]
    model(**other)
    assert (seen[1] - seen[0]).abs().max() < 1e-10
    assert loss.requires_grad


def test_the_loss_is_the_mean_surprise_of_items_that_ask(monkeypatch):
    """Of the mixed batch: items with a prompt, and nothing known of what they write."""
    model, seen = make_model(use_mode_head=True), []
    monkeypatch.setattr(
        model.mode_head,
        "forward",
        lambda *read: seen.append(ModeHead.forward(model.mode_head, *read)) or seen[-1],
    )
    out = model(**mixed_batch())
    surprise = -seen[0].log_softmax(-1)
    # Text to image, captioning, text to text, both after words; no class, no infill, no inpainting.
    asked = {0: "image", 1: "text", 3: "text", 7: "joint"}
    expected = sum(surprise[item, MODES.index(mode)] for item, mode in asked.items()) / 4
    assert out.loss_mode.item() == pytest.approx(expected.item(), rel=1e-9)
    out.loss_mode.backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {name for name, _ in model.named_parameters() if "mode_head" in name}


def test_the_parts_of_the_loss_sum_to_it():
    model = make_model(use_mode_head=True, kl_weight=0.25, se_weight=3.0)
    out = model(**mixed_batch())
    total = out.loss_rec_image + out.loss_rec_text + 0.25 * out.loss_kl + 3 * out.loss_se
    total = total + out.loss_se_prediction + out.loss_mode
    assert out.loss_mode > 0 and out.loss.item() == pytest.approx(total.item(), rel=1e-9)
    assert make_model()(**mixed_batch()).loss_mode is None
    # Nobody asks for anything: the head has a gradient all the same, as processes that train
    # together need it.
    words = torch.randint(4, VOCABULARY, (2, 4))
    loss = model(input_ids=words).loss_mode
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.mode_head.parameters())


def test_a_checkpoint_without_the_head_loads_and_may_get_one(tmp_path):
    MDMForJointGeneration(tiny_config()).save_pretrained(tmp_path)
    plain, info = MDMForJointGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not hasattr(plain, "mode_head")
    _, questions, _ = make_questions(2, seed=0)
    with pytest.raises(
        ValueError, match="no mode head to choose by: name one of text, image, joint"
    ):
        generate(plain, questions, generation_mode="auto")
    model, info = MDMForJointGeneration.from_pretrained(
        tmp_path, use_mode_head=True, output_loading_info=True
    )
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"mode_head"}
    model.save_pretrained(tmp_path / "tuned")
    again = MDMForJointGeneration.from_pretrained(tmp_path / "tuned")
    assert torch.equal(again.mode_head.out_proj.weight, model.mode_head.out_proj.weight)
    assert generate(again, questions, generation_mode="auto").generation_modes is not None


def test_nothing_to_decide_by_is_refused():
    model = make_model(use_mode_head=True)
    for inputs in ({}, {"class_labels": torch.tensor([1])}):
        with pytest.raises(ValueError, match="gives neither words nor a picture"):
            generate(model, inputs, generation_mode="auto")
    _, questions, _ = make_questions(2, seed=0)
    empty = questions | {"attention_mask": torch.tensor([[1] * 2 * WORDS, [0] * 2 * WORDS])}
    with pytest.raises(ValueError, match="gives neither words nor a picture"):
        generate(model, empty, generation_mode="auto")


def test_a_region_that_is_open_stays_as_it_is():
    model = make_model(use_mode_head=True)
    inputs, *_ = make_questions(3, seed=1, dtype=torch.float64)
    out = generate(model, inputs, generation_mode="auto")
    assert out.generation_modes is None
    assert out.sequences.shape == inputs["input_ids"].shape
