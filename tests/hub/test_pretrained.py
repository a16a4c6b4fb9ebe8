# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Saving and loading with the package: equal weights, equal samples."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_digits import make_processor
from tiny_model import MIXERS, make_model, mixed_batch, tiny_config
from transformers import AutoConfig, AutoModel, AutoProcessor, GenerationConfig
from transformers.utils import logging

from modeling_mdm import MDMConfig, MDMForJointGeneration, MDMGenerationConfig, MDMProcessor

WEIGHTS = "model.safetensors"
CONFIGURATIONS = {
    **MIXERS,
    "no-null-tokens": {"num_null_tokens": 0},
}
QUIET = {"num_inference_steps": 2, "show_progress": False}


def sample(model, dtype=torch.float32):
    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    return model.generate(**mixed_batch(dtype), generator=generators, **QUIET)


def assert_same_samples(first, second):
    ours, theirs = sample(first), sample(second)
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.sequences, theirs.sequences)


@pytest.fixture
def saved(tmp_path):
    """A model in a folder: (model, folder)."""
    model = make_model(torch.float32)
    model.save_pretrained(tmp_path)
    return model, tmp_path


# --- round trip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_saved_model_loads_with_equal_weights_buffers_and_samples(name, tmp_path):
    model = make_model(torch.float32, **CONFIGURATIONS[name])
    with torch.no_grad():
        model.train()(**mixed_batch(torch.float32))  # moves the latent statistics
    model.eval().save_pretrained(tmp_path)
    torch.manual_seed(1)
    loaded, info = MDMForJointGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not loaded.training
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected, found = model.state_dict(), loaded.state_dict()
    assert list(expected) == list(found)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert found["vae.statistics.text.updates"] == 1
    before, after = model.config.to_dict(), loaded.config.to_dict()
    assert after.pop("_name_or_path") == str(tmp_path) and before.pop("_name_or_path") == ""
    assert before == after
    assert_same_samples(model, loaded)


def test_a_model_in_several_files_loads_as_one(tmp_path):
    model = make_model(torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_samples(model, MDMForJointGeneration.from_pretrained(tmp_path))


def test_auto_classes_load_a_folder_when_the_package_is_imported(saved):
    model, folder = saved
    make_processor().save_pretrained(folder)
    assert type(AutoConfig.from_pretrained(folder)) is MDMConfig
    loaded = AutoModel.from_pretrained(folder)
    assert type(loaded) is MDMForJointGeneration
    assert type(AutoProcessor.from_pretrained(folder)) is MDMProcessor
    assert_same_samples(model, loaded)


def test_every_tensor_of_a_model_is_a_weight_or_is_saved():
    """A tensor that is neither would keep the meta device, or be empty, after loading."""
    for changes in CONFIGURATIONS.values():
        model = MDMForJointGeneration(tiny_config(**changes))
        known = set(model.state_dict())
        assert {name for name, _ in (*model.named_parameters(), *model.named_buffers())} == known
        for module in model.modules():
            plain = {key: value for key, value in vars(module).items() if key[0] != "_"}
            assert not [key for key, value in plain.items() if isinstance(value, torch.Tensor)]


def test_a_model_is_made_on_the_meta_device_and_filled(saved):
    model, folder = saved
    with torch.device("meta"):
        empty = MDMForJointGeneration(model.config)
    assert all(p.is_meta for p in (*empty.parameters(), *empty.buffers()))
    empty.load_state_dict(load_file(folder / WEIGHTS), assign=True)
    assert_same_samples(model, empty.eval())


# --- types


@pytest.mark.parametrize("name", ["parallel", "separate", "attention"])
def test_loading_in_bf16_keeps_what_rounding_would_ruin_in_float32(name, tmp_path):
    model = make_model(torch.float32, **MIXERS[name])
    model.save_pretrained(tmp_path)
    loaded = MDMForJointGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    exact = ("A_log", "delta_bias", "statistics")
    for key, value in loaded.state_dict().items():
        expected = model.state_dict()[key]
        if any(part in key for part in exact):
            assert value.dtype == expected.dtype and torch.equal(value, expected), key
        else:
            assert value.dtype == torch.bfloat16, key
            assert torch.equal(value, expected.bfloat16()), key


@pytest.mark.parametrize("name", ["parallel", "separate", "attention"])
def test_a_model_in_bf16_trains_and_generates(name, tmp_path):
    make_model(torch.float32, **MIXERS[name]).save_pretrained(tmp_path)
    model = MDMForJointGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    out = sample(model, torch.float32)
    assert out.images.isfinite().all() and out.images.abs().max() <= 1
    loss = model.train()(**mixed_batch(torch.float32)).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- checkpoints that lack weights, or have too many


@pytest.fixture
def uninitialised_is_nan():
    """Make memory that nobody fills stand out."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def reload_without(folder, absent, **options):
    """Load what is left of a checkpoint."""
    weights = load_file(folder / WEIGHTS)
    kept = {key: value for key, value in weights.items() if not absent(key)}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    options["output_loading_info"] = True
    loaded, info = MDMForJointGeneration.from_pretrained(folder, **options)
    return weights, kept, loaded, info


# Kinds of weights that start at known values.
START = {
    "norm.weight": 1.0,
    ".D": 1.0,
    "image_head.weight": 0.0,
    "modulation.weight": 0.0,
    "modulation_bias": 0.0,
    "statistics.image.mean": 0.0,
    "statistics.text.variance": 1.0,
    "updates": 0,
    "proj.bias": 0.0,
    "head.bias": 0.0,
}


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", ["parallel", "separate", "attention"])
def test_missing_weights_start_as_in_a_new_model(name, share, tmp_path, uninitialised_is_nan):
    model = make_model(torch.float32, **MIXERS[name])
    model.save_pretrained(tmp_path)
    draw = torch.Generator().manual_seed(0)
    chance = {key: torch.rand((), generator=draw) for key in sorted(model.state_dict())}
    weights, kept, loaded, info = reload_without(tmp_path, lambda key: chance[key] < share)
    assert set(info["missing_keys"]) == set(weights) - set(kept) and not info["unexpected_keys"]
    new = MDMForJointGeneration(model.config).state_dict()
    for key, value in loaded.state_dict().items():
        if key in kept:
            assert torch.equal(value, weights[key]), key  # never drawn anew
            continue
        assert value.isfinite().all(), key
        for ending, start in START.items():
            assert not key.endswith(ending) or (value == start).all(), key
        if value.numel() >= 64 and new[key].is_floating_point():
            ratio = value.std() / new[key].std() if new[key].any() else 1.0
            assert 0.6 < ratio < 1.6 or "norm" in key, (key, ratio)
        assert new[key].any() == value.any(), key
    heads = model.config.num_ssm_heads
    for key in info["missing_keys"]:
        if key.endswith("A_log"):
            expected = torch.arange(1, heads + 1).log().expand_as(weights[key])
            assert torch.allclose(loaded.state_dict()[key], expected)
        if key.endswith("delta_bias"):
            delta = torch.nn.functional.softplus(loaded.state_dict()[key])
            assert delta.min() >= 0.99e-3 and delta.max() <= 0.101


@pytest.fixture
def warnings_of_transformers(caplog):
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def test_missing_and_unexpected_weights_are_warned_of_by_name(saved, warnings_of_transformers):
    _, folder = saved
    weights = load_file(folder / WEIGHTS)
    weights["some.other.weight"] = weights.pop("decoder.null_tokens")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    _, info = MDMForJointGeneration.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {"decoder.null_tokens"}
    assert set(info["unexpected_keys"]) == {"some.other.weight"}
    text = warnings_of_transformers.text
    assert "decoder.null_tokens" in text and "some.other.weight" in text


def test_a_weight_of_another_shape_is_an_error(saved):
    _, folder = saved
    with pytest.raises((RuntimeError, ValueError), match="mismatch"):
        MDMForJointGeneration.from_pretrained(folder, latent_dim=8)


def test_a_truncated_checkpoint_is_an_error(saved):
    _, folder = saved
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(Exception, match=r"(?i)incomplete|invalid|header|file"):
        MDMForJointGeneration.from_pretrained(folder)


# --- the configuration of generation


def test_defaults_of_generation_are_saved_with_the_model(tmp_path):
    model = make_model(torch.float32)
    settings = {
        "num_inference_steps": {"image": 3, "text": 2},
        "guidance_scale": {"image": 1.5},
        "solver": "ddim",
        "keep": 0.5,
        "num_return_sequences": 2,
        "joint_overlap": 0.5,
        "show_progress": False,
    }
    model.generation_config = MDMGenerationConfig(**settings, pad_token_id=0)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert {name: stored[name] for name in settings} == settings
    loaded = MDMForJointGeneration.from_pretrained(tmp_path)
    assert type(loaded.generation_config) is MDMGenerationConfig
    assert {name: getattr(loaded.generation_config, name) for name in settings} == settings
    inputs = {"class_labels": torch.tensor([1]), "generation_mode": "joint"}

    def run(model, **options):
        generator = torch.Generator().manual_seed(0)
        return model.generate(**inputs, generator=generator, **options)

    ours, theirs = run(model), run(loaded)
    assert len(ours.images) == 2 and torch.equal(ours.images, theirs.images)
    plain = MDMForJointGeneration.from_pretrained(tmp_path)
    plain.generation_config = MDMGenerationConfig()
    assert torch.equal(run(plain, **settings).images, ours.images)


def test_a_configuration_of_generation_stands_alone(tmp_path):
    MDMGenerationConfig(num_inference_steps=7, num_return_sequences=3).save_pretrained(tmp_path)
    loaded = MDMGenerationConfig.from_pretrained(tmp_path)
    assert (loaded.num_inference_steps, loaded.num_return_sequences) == (7, 3)
    assert loaded.solver is None and loaded.keep is None
    overridden = MDMGenerationConfig.from_pretrained(tmp_path, num_inference_steps=2)
    assert overridden.num_inference_steps == 2


def test_a_configuration_may_be_passed_at_loading(saved):
    _, folder = saved
    config = GenerationConfig(num_inference_steps=1, show_progress=False)
    loaded = MDMForJointGeneration.from_pretrained(folder, generation_config=config)
    assert type(loaded.generation_config) is MDMGenerationConfig
    assert loaded.generate(**mixed_batch(torch.float32)).num_evaluations == 1


def test_a_folder_without_a_configuration_of_generation_gives_the_defaults(saved):
    model, folder = saved
    (folder / "generation_config.json").unlink()
    loaded = MDMForJointGeneration.from_pretrained(folder)
    assert type(loaded.generation_config) is MDMGenerationConfig
    assert loaded.generation_config.num_inference_steps is None
    assert loaded.generation_config.pad_token_id == model.config.pad_token_id
    assert_same_samples(model, loaded)
