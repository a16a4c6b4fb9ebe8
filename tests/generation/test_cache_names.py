# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`cache` has a former name, which goes on working with a notice, in every transformers."""

import pickle

import pytest
import torch
from tiny_model import make_model
from tiny_turns import TALKS, assert_same, make_inputs
from transformers.utils import logging

from modeling_mdm import MDMGenerateOutput

OLD_NAMES = ("past_key_values", "cache_params")
DRY = {"generation_mode": "text", "num_inference_steps": 2, "max_new_tokens": 3}


@pytest.fixture
def notices(monkeypatch):
    """What outputs log, each of which comes once in a process."""
    seen = []
    logger = logging.get_logger("modeling_mdm.generation_outputs")
    monkeypatch.setattr(logger, "warning", lambda message, *_: seen.append(message))
    logging.warning_once.cache_clear()
    return seen


@pytest.fixture(scope="module")
def said():
    model = make_model()
    inputs = make_inputs([talk[:1] for talk in TALKS])
    return model, model.generate(**inputs, **DRY, show_progress=False)


def go_on(model, **kwargs):
    generator = torch.Generator().manual_seed(3)
    inputs = make_inputs([talk[:3] for talk in TALKS])
    return model.generate(**inputs, **DRY, **kwargs, generator=generator, show_progress=False)


def test_the_old_argument_goes_on_with_a_notice(said):
    model, out = said
    with pytest.warns(FutureWarning, match="`past_key_values` is deprecated.*Use `cache`"):
        old = go_on(model, past_key_values=out.cache)
    new, anew = go_on(model, cache=out.cache), go_on(model)
    assert torch.equal(old.sequences, new.sequences)
    assert old.cache.positions_read.tolist() == new.cache.positions_read.tolist()
    assert torch.equal(new.sequences, anew.sequences)


def test_both_names_at_once_are_an_error(said):
    model, out = said
    with pytest.raises(ValueError, match="Both `past_key_values` and `cache`"):
        go_on(model, cache=out.cache, past_key_values=out.cache)


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_names_of_an_output_are_read_with_one_notice(said, notices, name):
    _, out = said
    assert out[name] is out.cache and out.get(name) is out.cache and name in out
    assert out[name] is out.cache
    assert getattr(out, name) is out.cache
    assert notices == [f"`{name}` of an output is deprecated: use `cache` instead."]


def test_old_names_of_an_output_without_a_cache(notices):
    out = MDMGenerateOutput(samples_per_item=2)
    assert out.past_key_values is None and out.get("past_key_values", 5) == 5
    assert "past_key_values" not in out and "cache" not in out
    with pytest.raises(KeyError):
        out["past_key_values"]


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_names_of_an_output_can_be_set(said, notices, name):
    past, out = said[1].cache, MDMGenerateOutput(samples_per_item=2)
    setattr(out, name, past)
    assert out.cache is past and list(out) == ["samples_per_item", "cache"]
    out = MDMGenerateOutput(samples_per_item=2)
    out[name] = past
    assert out.cache is past and list(out) == ["samples_per_item", "cache"]


def test_pickled_and_tuple_forms(said):
    model, out = said
    assert list(out)[-1] == "cache" and out.to_tuple()[-1] is out.cache
    copied = pickle.loads(pickle.dumps(out))
    assert list(copied) == list(out) and len(copied.to_tuple()) == len(out.to_tuple())
    assert_same(go_on_with(model, copied), go_on_with(model, out), 0)


def go_on_with(model, out):
    inputs = make_inputs([talk[:3] for talk in TALKS])
    generator = torch.Generator().manual_seed(3)
    return model.generate(
        **inputs,
        **DRY,
        cache=out.cache,
        generator=generator,
        show_progress=False,
        output_trajectory=True,
    )


def test_a_field_of_the_old_name_is_read_from_an_older_pickle(said, notices):
    """Before `cache` the attribute and the key were `past_key_values`; pickle sets both."""
    _, out = said
    make, arguments, state, _, items = out.__reduce__()
    assert arguments[-2] is out.cache and arguments[-1] is out.selection is None
    old = {"past_key_values" if n == "cache" else n: v for n, v in (state or {}).items()}
    restored = make(*arguments[:-1])  # `selection` came later
    restored.__dict__.update(old)
    for name, value in items:
        restored["past_key_values" if name == "cache" else name] = value
    assert restored.cache is out.cache and list(restored)[-1] == "cache"
