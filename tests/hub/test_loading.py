# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ways to load: offloaded, in half precision, quantised, from other versions and shapes."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_model import make_model, mixed_batch
from transformers import AutoModelForMultimodalLM, BitsAndBytesConfig, TorchAoConfig

from modeling_mdm import MDMConfig, MDMForJointGeneration, version

QUIET = {"num_inference_steps": 2, "show_progress": False}
# Widths that blocks of quantised weights divide.
EVEN = {"latent_dim": 8, "vae_hidden_size": 64, "hidden_size": 64}


def sample(model):
    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    return model.generate(**mixed_batch(torch.float32), generator=generators, **QUIET)


def assert_same_samples(first, second):
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.sequences, second.sequences)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model's folder and its samples; the model has every optional part."""
    model = make_model(torch.float32, use_mode_head=True, image_decoder_layers=2, **EVEN)
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder, sample(model)


# --- versions


def test_a_checkpoint_names_the_version_that_wrote_it(saved):
    folder, _ = saved
    stored = json.loads((folder / "config.json").read_text())
    assert stored["mdm_version"] == version.__version__


@pytest.mark.parametrize(
    ("written_by", "fix"),
    [
        ("0.3.9", r"version 0\.3\.9 .* install modeling-mdm==0\.3\.9, or load it by the code"),
        ("1.10.1", r"version 1\.10\.1 .* newer than this one, 1\.9\.0: upgrade"),
        ("next", "`mdm_version` is 'next'"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused_with_the_fix(
    written_by, fix, saved, tmp_path, monkeypatch
):
    monkeypatch.setattr(version, "__version__", "1.9.0")
    monkeypatch.setattr(version, "OLDEST_READABLE", "0.4.0")
    settings = json.loads((saved[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "mdm_version": written_by}))
    for auto in (MDMConfig, MDMForJointGeneration):
        with pytest.raises(StrictDataclassClassValidationError, match=fix):
            auto.from_pretrained(tmp_path)


@pytest.mark.parametrize("written_by", ["0.4.0", "0.4.0rc1", "0.10.0", "1.9.0", None])
def test_a_checkpoint_of_a_readable_version_loads(written_by, monkeypatch):
    monkeypatch.setattr(version, "__version__", "1.9.0")
    monkeypatch.setattr(version, "OLDEST_READABLE", "0.4.0")
    assert MDMConfig(mdm_version=written_by).mdm_version == written_by


# --- devices

MAPS = {
    "all on disk": {"": "disk"},
    "parts on disk": {
        "vae": "disk",
        "decoder": "disk",
        "image_head": "cpu",
        "text_head": "disk",
        "score_entropy_head": "cpu",
        "mode_head": "disk",
    },
    "automatic": "auto",
}


@pytest.mark.parametrize("name", MAPS)
def test_an_offloaded_model_gives_the_same_samples(name, saved, tmp_path):
    folder, expected = saved
    model = AutoModelForMultimodalLM.from_pretrained(
        folder, device_map=MAPS[name], offload_folder=str(tmp_path)
    )
    assert any(weight.is_meta for weight in model.parameters()) == (name != "automatic")
    assert model.device == torch.device("cpu")
    assert_same_samples(sample(model), expected)
    out = model.generate(generation_mode="joint", generator=torch.Generator(), **QUIET)
    assert out.images.isfinite().all()  # a region that generate opens itself


# accelerate warns of a parameter that lies directly in a module which it splits.
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_what_does_not_fit_goes_to_disk(share, saved, tmp_path):
    folder, expected = saved
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    model = MDMForJointGeneration.from_pretrained(
        folder,
        device_map="auto",
        max_memory={"cpu": int(share * size)},
        offload_folder=str(tmp_path),
    )
    assert {"cpu", "disk"} == set(model.hf_device_map.values())
    assert model.decoder.layers[1].mixer.in_proj.weight.is_meta
    assert_same_samples(sample(model), expected)


# --- types, keys and shapes


def test_half_precision_keeps_what_it_would_ruin(saved):
    folder, expected = saved
    model = MDMForJointGeneration.from_pretrained(folder, dtype=torch.float16)
    kept = {key for key, value in model.state_dict().items() if value.dtype == torch.float32}
    assert kept == {
        key
        for key in model.state_dict()
        if key.endswith(("A_log", "delta_bias", "statistics.text.mean", "statistics.image.mean"))
        or (key.endswith("variance") and "statistics" in key)
    }
    assert (sample(model).images - expected.images).abs().mean() < 0.02


def test_other_shapes_start_anew_where_that_is_allowed(saved):
    folder, _ = saved
    model, info = MDMForJointGeneration.from_pretrained(
        folder, vocab_size=30, ignore_mismatched_sizes=True, output_loading_info=True
    )
    names = {key for key, *_ in info["mismatched_keys"]}
    assert names == {
        "vae.embed_tokens.weight",
        "vae.word_head.weight",
        "vae.word_head.bias",
        "text_head.weight",
        "text_head.bias",
    }
    assert model.vae.embed_tokens.weight.shape[0] == 30
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_words_are_added_in_all_three_places(saved):
    folder, _ = saved
    model = MDMForJointGeneration.from_pretrained(folder)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert model.resize_token_embeddings(30) is model.get_input_embeddings()
    assert model.config.vocab_size == 30
    for module in (model.vae.embed_tokens, model.vae.word_head, model.get_output_embeddings()):
        assert module.weight.shape[0] == 30
    for key, value in model.state_dict().items():
        assert torch.equal(value[:24] if value.shape != before[key].shape else value, before[key])
    batch = mixed_batch(torch.float32)
    batch["input_ids"][:] = 29
    assert model(**batch).loss.isfinite()


# --- quantised weights


def torchao_settings():
    quantization = pytest.importorskip("torchao.quantization")
    groups = quantization.granularity.PerGroup(8)
    int4 = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=groups)
    return {"int8": quantization.Int8WeightOnlyConfig(), "int4": int4}


def linear_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.02), ("int4", 0.2)])
def test_weights_in_few_bits_by_torchao(kind, tolerance, saved, tmp_path):
    """Every projection is quantised and is called as a module; what is saved loads again."""
    folder, expected = saved
    settings = TorchAoConfig(torchao_settings()[kind])
    model = MDMForJointGeneration.from_pretrained(
        folder, quantization_config=settings, device_map="cpu"
    )
    plain = {
        name
        for name, layer in linear_layers(model).items()
        if type(layer.weight) is torch.nn.Parameter
    }
    assert plain == {"text_head"}  # transformers leaves output embeddings as they are
    out = sample(model)
    difference = (out.images - expected.images).abs().mean()
    assert 0 < difference < tolerance
    model.save_pretrained(tmp_path)
    again = MDMForJointGeneration.from_pretrained(tmp_path, device_map="cpu")
    assert_same_samples(sample(again), out)


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (4, 0.2)])
@pytest.mark.filterwarnings("ignore")  # bitsandbytes has several of its own
def test_weights_in_few_bits_by_bitsandbytes(bits, tolerance, saved):
    """No code asks a weight for its type or shape: there it is a row of bytes."""
    pytest.importorskip("bitsandbytes")
    folder, expected = saved
    # In 4 bits a block is 64 wide.
    heads = ["text_head", "image_head", "score_entropy_head", "mode_head"]
    skipped = None if bits == 8 else ["vae", "decoder.latent_proj", *heads, "selection"]
    settings = BitsAndBytesConfig(
        load_in_8bit=bits == 8, load_in_4bit=bits == 4, llm_int8_skip_modules=skipped
    )
    model = MDMForJointGeneration.from_pretrained(
        folder, quantization_config=settings, device_map="cpu"
    )
    bytes_only = {n for n, m in linear_layers(model).items() if m.weight.dtype in BYTES}
    assert {"decoder.time_embedding.in_proj", "decoder.layers.1.mixer.out_proj"} <= bytes_only
    assert "decoder.place_embedding.image.proj" in bytes_only
    difference = (sample(model).images - expected.images).abs().mean()
    assert 0 < difference < tolerance


BYTES = (torch.int8, torch.uint8)
