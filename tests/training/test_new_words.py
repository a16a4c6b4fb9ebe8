# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Training that goes on from weights with more words, and with parts that weights do not have."""

import numpy as np
import pytest
import torch
from idx_files import write_idx
from tiny_digits import ROOT, load_script, make_config, make_processor
from tiny_questions import FASHION_CAPTIONS

from modeling_mdm.data.blocks import MixedItems
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.conversations import unseen_words
from modeling_mdm.data.garment_talks import TALK_KINDS
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.image_processing_mdm import MDMImageProcessor
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training import train
from modeling_mdm.training.run_data import DataArguments, load_data, make_collator

SCRIPT = load_script(ROOT / "processing" / "train_tokenizer.py")
NEVER_SEEN = 40  # a word of the vocabulary whose latent is far from all others


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def extended(processor):
    tokenizer = SCRIPT.extend_tokenizer(processor.tokenizer, ["which glove of these"])
    return MDMProcessor(
        processor.image_processor, tokenizer, patch_size=4, max_text_length=10, num_classes=10
    )


@pytest.fixture
def trained(processor, tmp_path):
    """A folder of weights, and their model."""
    torch.manual_seed(0)
    model = MDMForJointGeneration(make_config(len(processor.tokenizer)))
    with torch.no_grad():
        mean, _ = model.vae.encode(torch.arange(model.config.vocab_size), "text")
        statistics = model.vae.statistics["text"]
        statistics.mean, statistics.variance = mean.mean(0), 2 * mean.var(0)
        model.vae.embed_tokens.weight[NEVER_SEEN] *= 1e3
    model.save_pretrained(tmp_path / "weights")
    return str(tmp_path / "weights"), model


def go_on(folder, processor, *overrides):
    return train.make_model(train.ModelArguments(folder, None, list(overrides)), processor)


def test_a_model_that_gets_more_words_does_the_same_with_those_of_before(
    trained, extended, processor
):
    folder, before = trained
    model = go_on(folder, extended, "vocab_size=auto", "use_mode_head=true")
    old, new = len(processor.tokenizer), len(extended.tokenizer)
    assert new == old + 3  # the vocabulary has " of"
    assert model.config.vocab_size == new and model.config.use_mode_head
    weights, kept = model.state_dict(), before.state_dict()
    rows = [name for name in kept if kept[name].shape != weights[name].shape]
    assert set(rows) == {
        *("vae.embed_tokens.weight", "vae.word_head.weight", "vae.word_head.bias"),
        *("text_head.weight", "text_head.bias"),
    }
    seen = torch.arange(old) != NEVER_SEEN
    for name, value in kept.items():
        found = weights[name]
        if name == "vae.embed_tokens.weight":
            value, found = value[seen], found[:old][seen]
        assert torch.equal(found[: len(value)] if name in rows else found, value), name
    z = torch.randn(2, 5, before.config.latent_dim)
    with torch.no_grad():
        decoded = [each.vae.decode(z, "text")[..., :old] for each in (before, model)]
    torch.testing.assert_close(*decoded)
    latents = [each.vae.word_latents()[:old][seen] for each in (before, model)]
    assert torch.equal(*latents)


def test_words_that_were_never_trained_get_embeddings_like_the_others(trained, extended):
    folder, before = trained
    assert unseen_words(before) == [NEVER_SEEN]
    model = go_on(folder, extended, "vocab_size=auto")
    assert not unseen_words(model)
    embeddings = model.vae.embed_tokens.weight.detach()
    size = before.config.vocab_size
    usual = embeddings[:NEVER_SEEN].norm(dim=-1).mean()
    fresh = torch.cat([embeddings[size:], embeddings[NEVER_SEEN][None]]).norm(dim=-1)
    assert (fresh > usual / 2).all() and (fresh < usual * 2).all()
    torch.manual_seed(7)
    once = go_on(folder, extended, "vocab_size=auto").vae.embed_tokens.weight
    torch.manual_seed(7)
    assert torch.equal(once, go_on(folder, extended, "vocab_size=auto").vae.embed_tokens.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_stored_in_half_precision_are_trained_in_full(trained, processor, dtype, tmp_path):
    _, before = trained
    before.to(dtype).save_pretrained(tmp_path / "half")
    model = go_on(str(tmp_path / "half"), processor)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    weights = model.state_dict()
    halves = before.state_dict()
    assert all(
        torch.equal(weights[name], value.to(weights[name])) for name, value in halves.items()
    )


def test_what_only_training_reads_may_change(trained, processor):
    folder, before = trained
    model = go_on(folder, processor, "kl_weight=0.5", "selection_keep=[1.0, 0.5]")
    assert model.config.kl_weight == 0.5 and model.config.selection_keep == [1.0, 0.5]
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in before.state_dict().items())


def test_what_does_not_fit_the_weights_is_refused(trained, processor, extended, tmp_path):
    folder, before = trained
    for override in ("hidden_size=32", "image_schedule=tan", "num_hidden_layers=2"):
        with pytest.raises(ValueError, match=rf"{override.split('=')[0]}.*cannot change the train"):
            go_on(folder, processor, override, "use_mode_head=true")
    with pytest.raises(ValueError, match=r"\['hidden'\], which MDMConfig"):
        go_on(folder, processor, "hidden=3")
    with pytest.raises(ValueError, match=r"vocab_size=\d+ differs"):
        go_on(folder, extended)
    size = before.config.vocab_size
    with pytest.raises(ValueError, match=f"vocab_size={size - 1} would take words"):
        go_on(folder, processor, f"vocab_size={size - 1}")
    with_head = MDMForJointGeneration(make_config(size))
    with_head.config.use_mode_head = True
    MDMForJointGeneration(with_head.config).save_pretrained(tmp_path / "head")
    with pytest.raises(ValueError, match=r"mode_head.*add weights, not take any away"):
        go_on(str(tmp_path / "head"), processor, "use_mode_head=false")
    with torch.no_grad():
        before.vae.posterior.weight.mul_(1e4)
    before.save_pretrained(tmp_path / "untrained")
    with pytest.raises(ValueError, match="never trained"):
        go_on(str(tmp_path / "untrained"), extended, "vocab_size=auto")


@pytest.fixture
def fashion(tmp_path):
    """Forty pictures in the files of Fashion-MNIST, two classes after each other."""
    labels = np.arange(40, dtype=np.uint8) % 10
    pictures = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / "data", prefix, pictures, labels)
    return str(tmp_path / "data")


@pytest.fixture
def arguments(fashion):
    return DataArguments(
        dataset="fashion_mnist",
        data_dir=fashion,
        captions=str(FASHION_CAPTIONS),
        talks="fashion_talks",
        talks_share=0.5,
        talks_late=0.5,
    )


@pytest.fixture(scope="module")
def shipped():
    return MDMProcessor.from_pretrained(ROOT / "processing" / "mdm-fashion-all")


def test_conversations_are_set_apart_by_their_pictures(arguments, shipped):
    arguments.talks_kinds = ["which=2", "words=1", "draw=0.5", "turns=0.5", "both=0"]
    data, _ = load_data(arguments, shipped, 4, seed=0)
    assert isinstance(data, MixedItems)
    kinds = [{part[n].get("kind") for n in range(40)} for part in data.parts]
    assert kinds == [{None}, {"which"}, {"words", "draw"}, {"turns"}]
    assert np.allclose(data.shares, [0.5, 0.25, 0.1875, 0.0625])
    arguments.talks_kinds = None
    data, _ = load_data(arguments, shipped, 4, seed=0)
    found = {part[n].get("kind") for part in data.parts for n in range(40)}
    assert found - {None} <= set(TALK_KINDS) and len(found) > 5
    collate = make_collator(arguments, shipped, 0)
    batches = [collate([part[n] for n in range(30)]) for part in data.parts]
    assert ["turn_ids" in batch for batch in batches] == [False, True, True, True]
    assert [batch["pixel_values"].shape[1] for batch in batches[1:]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"talks_share": 0.0}, r"talks_share=0\.0 must"),
        ({"talks_share": 1.0}, r"talks_share=1\.0 must"),
        ({"talks_kinds": ["why=1"]}, r"weights names \['why'\]"),
        ({"talks_late": 2.0}, r"late=2\.0 must"),
        ({"dataset": "digits", "captions": None, "data_dir": None}, "about the pictures"),
        ({"talks": "/nowhere/talks.jsonl"}, "talks='/nowhere/talks.jsonl'"),
        ({"talks": str(FASHION_CAPTIONS)}, "it needs `messages`"),
    ],
)
def test_wrong_arguments_are_named(arguments, shipped, change, message):
    for name, value in change.items():
        setattr(arguments, name, value)
    with pytest.raises((ValueError, OSError), match=message):
        load_data(arguments, shipped, 4, seed=0)
        make_collator(arguments, shipped, 0)


def test_one_run_trains_every_task_with_new_words(fashion, tmp_path):
    texts = CaptionTable.from_json(FASHION_CAPTIONS).all_captions()
    old = MDMProcessor(
        MDMImageProcessor(size={"height": 28, "width": 28}, num_channels=1),
        SCRIPT.train_tokenizer(texts, vocab_size=400),
        patch_size=14,
        max_text_length=12,
        num_classes=10,
    )
    config = make_config(len(old.tokenizer))
    config.update({"image_size": 28, "patch_size": 14, "max_text_length": 12})
    MDMForJointGeneration(config).save_pretrained(tmp_path / "weights")
    words = ["which of these two is it?", "yes or no", "draw another one and say what it is"]
    new = MDMProcessor(
        old.image_processor,
        SCRIPT.extend_tokenizer(old.tokenizer, words, texts),
        patch_size=14,
        max_text_length=12,
        num_classes=10,
    )
    new.save_pretrained(tmp_path / "processor")
    train.main(
        [
            *("--config", str(tmp_path / "weights"), "--processor", str(tmp_path / "processor")),
            *("--config_overrides", "vocab_size=auto", "use_mode_head=true"),
            *("--dataset", "fashion_mnist", "--data_dir", fashion, "--talks", "fashion_talks"),
            *("--captions", str(FASHION_CAPTIONS), "--talks_share", "0.6"),
            *("--max_steps", "6", "--per_device_train_batch_size", "4", "--logging_steps", "1"),
            *("--use_cpu", "true", "--disable_tqdm", "true", "--save_strategy", "no"),
            *("--output_dir", str(tmp_path / "run")),
        ]
    )
    model = MDMForJointGeneration.from_pretrained(tmp_path / "run")
    assert model.config.vocab_size == len(new.tokenizer) > len(old.tokenizer)
    assert model.config.use_mode_head
