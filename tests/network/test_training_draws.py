# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a step draws: times, independent or coupled, dropped prompts, selection, feeding back."""

import math

import pytest
import torch
from tiny_model import every_random_source, make_model, mixed_batch

from modeling_mdm.draws import BATCH_DRAWS, ITEM_DRAWS, Draws, ItemKeys, philox
from modeling_mdm.training_step import Randomness


@pytest.fixture
def recorded(monkeypatch):
    """The arguments of every evaluation; only the first is made, the others give the same."""

    def record(model):
        calls, given = [], []
        original = model.denoise

        def denoise(inputs, candidates):
            calls.append({**vars(inputs), "candidates": candidates})
            given.append(given[0] if given else original(inputs, candidates))
            return given[-1]

        monkeypatch.setattr(model, "denoise", denoise)
        return calls

    return record


def many_joint_items(count):
    """Items that are written from nothing but a class, in both modalities."""
    return {
        "input_ids": torch.full((count, 2), 5),
        "pixel_values": torch.zeros(count, 1, 4, 4),
        "class_labels": torch.zeros(count, dtype=torch.long),
    }


def test_training_draws_as_the_configuration_says(recorded):
    changes = {"num_hidden_layers": 1, "coupled_time_probability": 0.0}
    model = make_model(torch.float32, **changes).train()
    calls, count = recorded(model), 2000
    torch.manual_seed(0)
    with torch.no_grad():
        model(**many_joint_items(count), return_loss=False)
    t, dropped = calls[-1]["times"], calls[-1]["class_labels"] == -1
    margin = 4 * (0.1 * 0.9 / count) ** 0.5
    assert abs(dropped.float().mean() - 0.1) < margin  # the prompt is dropped
    at_one = {g: t[g] == 1 for g in t}
    assert not (at_one["text"] & at_one["image"]).any()
    assert abs((at_one["text"] | at_one["image"]).float().mean() - 0.1) < margin
    assert abs(at_one["text"].float().mean() - 0.05) < margin
    for g in t:
        rest = t[g][~at_one[g]]
        assert rest.min() >= 0 and rest.max() < 1
        assert abs(rest.mean() - 0.5) < 0.03 and abs(rest.std() - 12**-0.5) < 0.02
    both = torch.stack([t[g][~(at_one["text"] | at_one["image"])] for g in t])
    assert abs(torch.corrcoef(both)[0, 1]) < 0.1  # drawn independently


def log_snr_by_hand(t):
    """Of the words, `tan` with s = 3, and of the picture, `cosine`; float64."""
    words = -2 * torch.log(3 * torch.tan(math.pi / 2 * t["text"].double()))
    angle = (t["image"].double() + 0.008) / 1.008 * math.pi / 2
    share = angle.cos().square() / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    return words, torch.log(share / (1 - share))


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_coupled_times_lie_along_the_path_of_the_sampler(recorded, probability):
    changes = {"num_hidden_layers": 1, "coupled_time_probability": probability}
    model = make_model(torch.float32, **changes, null_modality_probability=0.2).train()
    calls, count = recorded(model), 4000
    torch.manual_seed(0)
    with torch.no_grad():
        model(**many_joint_items(count), return_loss=False)
    t = calls[-1]["times"]
    shown = (t["text"] < 1) & (t["image"] < 1)
    assert abs(shown.double().mean() - 0.8) < 0.03  # one side is hidden as ever
    words, picture = (log_snr[shown] for log_snr in log_snr_by_hand(t))
    inner = (words.abs() < 15) & (picture.abs() < 15)  # the clip moves what is beyond
    lead = (words - picture)[inner]
    coupled = (lead > 0.5 - 1e-3) & (lead < 3.5 + 1e-3)
    if probability == 1:
        assert coupled.all() and abs(lead.mean() - 2) < 0.1
        assert abs(lead.std() - 3 / 12**0.5) < 0.05  # evenly from 0.5 to 3.5
    else:
        assert 0.5 < coupled.double().mean() < 0.75  # a few of the independent ones fall there
    # Half follow the picture's uniform time and half the words', so both stay spread out.
    for modality in ("text", "image"):
        low, high = torch.quantile(t[modality][shown].double(), torch.tensor([0.1, 0.9]).double())
        assert low < 0.2 and high > 0.8


def test_times_are_coupled_only_in_training_and_only_where_both_are_written(recorded):
    changes = {"num_hidden_layers": 1, "coupled_time_probability": 1.0}
    model = make_model(torch.float32, **changes, null_modality_probability=0.0)
    calls, items = recorded(model), many_joint_items(1000)
    for is_training, given in ((False, False), (True, True)):
        calls.clear()
        torch.manual_seed(0)
        with torch.no_grad():
            model.train(is_training)
            mask = torch.full_like(items["input_ids"], given, dtype=torch.bool)
            model(**items, text_given=mask, return_loss=False)
        times = torch.stack([calls[-1]["times"][m].double() for m in ("text", "image")])
        assert abs(torch.corrcoef(times)[0, 1]) < 0.1


def test_a_time_that_is_nan_is_drawn(recorded):
    model = make_model(torch.float32, num_hidden_layers=1).train()
    calls = recorded(model)
    passed = torch.tensor([0.25, torch.nan] * 50)
    with torch.no_grad():
        model(**many_joint_items(100), times={"text": passed}, return_loss=False)
    t = calls[-1]["times"]
    assert (t["text"][::2] == 0.25).all()
    assert t["text"][1::2].unique().numel() > 40 and t["text"].isfinite().all()


def test_training_feeds_back_on_half_of_the_batches_and_selects(recorded):
    shares = (1.0, 1.0, 0.5, 0.25)
    model = make_model(torch.float32, num_hidden_layers=1, selection_keep=shares).train()
    calls, keeps, fed = recorded(model), [], 0
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(300):
            calls.clear()
            model(**many_joint_items(1), return_loss=False)
            assert calls[0]["estimates"] is None and len(calls) <= 2
            fed += len(calls) == 2 and calls[1]["estimates"] is not None
            keeps.append(calls[-1]["keep"])
            assert {call["keep"] for call in calls} == {keeps[-1]}
    assert abs(fed / 300 - 0.5) < 4 * (0.25 / 300) ** 0.5
    for share, expected in ((1.0, 0.5), (0.5, 0.25), (0.25, 0.25)):
        assert abs(keeps.count(share) / 300 - expected) < 4 * (0.25 / 300) ** 0.5


def test_evaluation_drops_hides_selects_and_feeds_back_nothing(recorded):
    model = make_model(torch.float32, num_hidden_layers=1)
    calls = recorded(model)
    with torch.no_grad():
        model(**many_joint_items(500), return_loss=False)
    (call,) = calls
    assert call["estimates"] is None and call["keep"] == 1 and (call["class_labels"] == 0).all()
    assert not any((t == 1).any() for t in call["times"].values())


# --- drawn by keys


# Of Random123's `kat_vectors`: counter, key and what Philox-4x32-10 makes of them.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000"),
    ("6627e8d5 e169c58d bc57ac4c 9b00dbd8",),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff"),
    ("408f276d 41c83b0e a20bc7c6 6d5451fd",),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0"),
    ("d16cfe09 94fdcceb 5001e420 24126ea1",),
]


def in_words(line):
    return [int(word, 16) for word in line.split()]


@pytest.mark.parametrize("as_tensors", [False, True])
def test_philox_gives_the_known_answers(as_tensors):
    asked, answers = KNOWN_ANSWERS[::2], KNOWN_ANSWERS[1::2]
    for (counter, key), (answer,) in zip(asked, answers, strict=True):
        words = [in_words(counter), in_words(key)]
        if as_tensors:
            words = [[torch.tensor([word, 0]) for word in row] for row in words]
        found = philox(*words)
        assert [int(word[0] if as_tensors else word) for word in found] == in_words(answer)


def drawn(keys, batch=None, passed=None, **changes):
    """What a step of a batch draws, in training."""
    model = make_model(torch.float32, se_candidates="trajectory", **changes).train()
    batch = mixed_batch(torch.float32) if batch is None else batch
    found = Randomness(**passed or {}).drawn(model.encode_inputs(**batch), model, keys)
    return found, model


def test_noise_is_the_one_that_was_written_down():
    """Box-Muller of the item's words, in float64: a run goes on with any later version."""
    keys = ItemKeys(2**32 - 1, 41, torch.tensor([7, 2**63 - 1, *range(6)]))
    found, _ = drawn(keys)
    for name, kind in (("noise", 0), ("posterior_noise", 1), ("decoder_noise", 2)):
        for modality, row, column, place in (("text", 0, 3, 3), ("image", 1, 2, 2)):
            item = int(keys.items[row])
            numbers = []
            for quad in (0, 1):  # of six latents
                counter = (2 * place + quad, 2 + 2 * kind + (modality == "image"), 41, 2**32 - 1)
                words = philox(counter, (item % 2**32, item >> 32))
                for first, second in (words[:2], words[2:]):
                    radius = math.sqrt(-2 * math.log((first + 1) / 2**32))
                    angle = 2 * math.pi * second / 2**32
                    numbers += [radius * math.cos(angle), radius * math.sin(angle)]
            expected = torch.tensor(numbers[:6])
            noise = getattr(found, name)[modality][row, column]
            torch.testing.assert_close(noise, expected, rtol=1e-5, atol=1e-6)
    draws = Draws(keys.items, keys)
    word = philox((1, 1, 41, 2**32 - 1), (7, 0))[ITEM_DRAWS.index("coupled") % 4]
    assert draws.of_items("coupled")[0].item() == (word >> 8) / 2**24
    word = philox((BATCH_DRAWS.index("keep"), 0, 41, 2**32 - 1), (2**32 - 1, 2**32 - 1))
    assert draws.of_batch("keep") == word[0] / 2**32


def test_an_item_draws_the_same_beside_any_others():
    """However long its row is, wherever it stands and whichever modality is there."""
    batch, items = mixed_batch(torch.float32), torch.arange(8) + 100
    whole, _ = drawn(ItemKeys(0, 1, items), batch, num_null_tokens=3)
    order = torch.tensor([5, 2])
    padded = {name: value[order] for name, value in batch.items()}
    for name in ("input_ids", "attention_mask", "text_given", "turn_ids"):
        padded[name] = torch.cat([padded[name].new_zeros(2, 3), padded[name]], 1)  # on the left
    again, _ = drawn(ItemKeys(0, 1, items[order]), padded)
    alone = {name: value for name, value in batch.items() if "pixel" in name}
    image, _ = drawn(ItemKeys(0, 1, items), alone)
    assert torch.equal(again.drop_prompt, whole.drop_prompt[order])
    assert again.keep == whole.keep and again.self_condition == whole.self_condition
    assert torch.equal(again.times["image"], whole.times["image"][order])
    assert torch.equal(again.times["text"], whole.times["text"][order])
    for name in ("noise", "posterior_noise", "decoder_noise", "candidate_noise"):
        values = getattr(whole, name)
        assert torch.equal(getattr(image, name)["image"], values["image"]), name
        assert torch.equal(getattr(again, name)["image"], values["image"][order]), name
        assert torch.equal(getattr(again, name)["text"][:, 3:], values["text"][order]), name
    padding = batch["attention_mask"] == 0
    assert not whole.noise["text"][padding].any() and whole.noise["text"][~padding].all()


def test_numbers_are_normal_or_uniform_and_none_repeats():
    batch = {"input_ids": torch.ones(400, 6, dtype=torch.long)}
    keys = [(0, 0), (1, 0), (0, 1), (2**31, 2**31)]
    steps = [drawn(ItemKeys(*pair, torch.arange(400)), batch)[0] for pair in keys]
    names = ("noise", "posterior_noise", "decoder_noise")
    noises = [getattr(step, name)["text"].flatten() for step in steps for name in names]
    noises += [step.candidate_noise["text"][:, :, k].flatten() for step in steps for k in range(3)]
    everything = torch.stack(noises).double()
    assert len(everything.float().unique()) > 0.99 * everything.numel()
    assert abs(everything.mean()) < 0.01 and abs(everything.std() - 1) < 0.01
    assert abs((everything**4).mean() - 3) < 0.1
    assert torch.corrcoef(everything).fill_diagonal_(0).abs().max() < 0.04
    columns = steps[0].noise["text"].flatten(1).double()  # of one item's own numbers
    assert torch.corrcoef(columns.T).fill_diagonal_(0).abs().max() < 0.25
    draws = [Draws(torch.arange(400), ItemKeys(*pair, torch.arange(400))) for pair in keys]
    numbers = torch.stack([one.of_items(name) for one in draws for name in ITEM_DRAWS]).double()
    assert numbers.min() >= 0 and numbers.max() < 1 and len(numbers.unique()) > 0.99 * 32 * 400
    even = (torch.arange(400) + 0.5) / 400
    assert (numbers.sort(-1).values - even).abs().max() < 0.12  # Kolmogorov-Smirnov
    assert torch.corrcoef(numbers).fill_diagonal_(0).abs().max() < 0.25
    steps = [Draws(torch.zeros(1), ItemKeys(3, n, torch.zeros(1).long())) for n in range(400)]
    for name in BATCH_DRAWS:
        of_steps = torch.tensor([one.of_batch(name) for one in steps]).sort().values
        assert (of_steps - even).abs().max() < 0.12


def test_keys_leave_the_random_state_alone():
    keys, batch = ItemKeys(0, 0, torch.arange(8)), mixed_batch(torch.float32)
    _, model = drawn(keys)
    encoded, state = model.encode_inputs(**batch), torch.get_rng_state()
    by_keys = Randomness().drawn(encoded, model, keys)
    assert torch.equal(torch.get_rng_state(), state)
    at_random = Randomness().drawn(encoded, model)
    assert not torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(at_random.noise["text"], by_keys.noise["text"])


def test_what_is_passed_stays_beside_keys():
    keys, passed = ItemKeys(0, 0, torch.arange(8)), every_random_source(8, torch.float32)
    whole, _ = drawn(keys)
    torch.testing.assert_close(vars(drawn(keys, passed=passed)[0]), passed, rtol=0, atol=0)
    times = torch.full((8,), 0.9)
    times[[1, 5]] = torch.nan
    some, _ = drawn(keys, passed={"times": {"text": times}, "noise": {"image": times}})
    assert (some.times["text"][[0, 2, 3, 4, 6, 7]] == 0.9).all()
    assert torch.equal(some.times["text"][[1, 5]], whole.times["text"][[1, 5]])
    assert torch.equal(some.times["image"], whole.times["image"])
    assert some.noise["image"] is times
    assert torch.equal(some.noise["text"], whole.noise["text"])


def test_keys_of_another_number_of_items_are_refused():
    with pytest.raises(ValueError, match=r"`item_keys.items` has shape \(3,\): .*\(8,\)"):
        drawn(ItemKeys(0, 0, torch.arange(3)))
