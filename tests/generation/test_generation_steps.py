# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which times a run takes: one clock for words and picture, restarts; and guidance in a window.

The log-SNR of both schedules is written out here, in float64: cosine's is that of alpha_bar =
cos^2 a / cos^2 a_0, a = (t + 0.008) / 1.008 pi / 2, and tan's -2 log(3 tan(pi t / 2)).
"""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_generation import finish, generate, patch_mask, record, seeded
from tiny_model import make_model, mixed_batch

from modeling_mdm import MDMGenerationConfig, generation_steps
from modeling_mdm.diffusion import NoiseSchedule
from modeling_mdm.generation_sampling import NoiseStreams, make_solvers, run_solvers
from modeling_mdm.generation_settings import MAX_LEAD
from modeling_mdm.generation_steps import Pass, Span, StepPlan, clock_spans, share_steps
from modeling_mdm.solvers import SOLVERS

JOINT = [2, 7]  # items of the mixed batch that write both
RESTART = {"image": -4.0, "text": 0.0}
OFF = {"guidance_scale": 1.0, "joint_guidance_scale": 1.0}


def cosine_log_snr(t):
    alpha_bar = (
        math.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    ) ** 2
    return math.log(alpha_bar) - math.log(1 - alpha_bar)


def tan_log_snr(t):
    return -2 * math.log(3 * math.tan(math.pi * t / 2))


LOG_SNR = {"image": cosine_log_snr, "text": tan_log_snr}


def rows(*items):
    return {name: value[list(items)] for name, value in mixed_batch().items()}


def log_snrs(model, inputs, **options):
    """Log-SNR of each modality at every sampler step."""
    seen = []
    out = generate(model, inputs, callback_on_step_end=seen.append, **options)
    assert [info.step for info in seen] == list(range(len(seen)))
    assert {info.num_steps for info in seen} == {len(seen)}
    read = {
        g: [LOG_SNR[g](info.times[g]) for info in seen if info.times[g] < 1]
        for g in LOG_SNR
        if g in seen[0].times
    }
    return read, out


def grid(start, end, count):
    """Where each step of a clock begins: equal shares of 1 + 3 exp(-x^2 / 2) a nat, summed up."""
    fine = np.linspace(start, end, 400_001)
    density = 1 + 3 * np.exp(-(((fine + 2.5) / 2.5) ** 2) / 2)
    work = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return list(np.interp(work[-1] * np.arange(count) / count, work, fine))


def assert_near(values, expected, tolerance=1e-4):
    assert len(values) == len(expected)
    assert max(abs(a - b) for a, b in zip(values, expected, strict=True)) < tolerance


# --- one clock


@pytest.mark.parametrize("lead", [0, 2.0, np.float32(5)])
def test_words_lead_the_picture_on_one_clock(lead, exact):
    read, out = log_snrs(exact, rows(*JOINT), joint_lead=lead, num_inference_steps=7)
    clock = grid(-9, 8, 7)
    assert_near(read["text"], [c + lead / 2 for c in clock])
    assert_near(read["image"], [c - lead / 2 for c in clock])
    assert out.num_evaluations == 7


def test_a_run_of_one_step_goes_from_the_start_of_the_clock(exact):
    read, _ = log_snrs(exact, rows(*JOINT), joint_lead=2.0, num_inference_steps=1)
    assert_near(read["text"] + read["image"], [-8, -10])


@pytest.mark.parametrize("name", ["cosine", "linear", "tan"])
@pytest.mark.parametrize("num_steps", [1, 2, 30, 1000])
def test_times_of_a_clock_fall_to_zero(name, num_steps):
    for lead in (0.0, MAX_LEAD):
        schedules = {"text": NoiseSchedule("tan"), "image": NoiseSchedule(name)}
        for g, span in clock_spans(lead, schedules)[1].items():
            times = span.times(num_steps, schedules[g], "cpu", torch.float32)
            assert times.dtype == torch.float32 and len(times) == num_steps + 1
            assert (times.diff() < 0).all() and times[0] <= 1 and times[-1] == 0
            short = span.times(num_steps, schedules[g], "cpu", torch.bfloat16)
            assert torch.equal(short, times)


def test_a_schedule_that_does_not_reach_the_start_makes_the_clock_start_later(monkeypatch):
    """DDPM's grid ends at a log-SNR of log(alpha_bar / (1 - alpha_bar)), about -10."""
    alpha_bar = math.prod(1 - beta for beta in np.linspace(1e-4, 0.02, 1000).tolist())
    reached = math.log(alpha_bar) - math.log(1 - alpha_bar)
    model = make_model(image_schedule="linear", text_schedule="tan")
    seen, said = [], []
    monkeypatch.setattr(generation_steps.logger, "warning", lambda *words: said.append(words[0]))
    generation_steps.logger.warning_once.cache_clear()
    options = {"joint_lead": 6.0, "num_inference_steps": 5, "callback_on_step_end": seen.append}
    for _ in range(2):
        generate(model, rows(*JOINT), **options)
    (message,) = said
    assert re.search(r"'linear' of image.*-10\.\d\d.*`joint_lead` = 6 .*start there", message)
    text = [tan_log_snr(info.times["text"]) for info in seen[:5]]
    assert_near(text, [c + 3 for c in grid(reached + 3, 8, 5)])
    assert seen[0].times["image"] == pytest.approx(1, abs=1e-6)


def test_steps_of_a_clock_are_one_number(exact):
    with pytest.raises(
        ValueError, match=r"`num_inference_steps` is 3 for image and 4 for text.*one number"
    ):
        generate(exact, rows(*JOINT), joint_lead=2.0, num_inference_steps={"image": 3, "text": 4})
    # No clock runs where one modality is written.
    exact_steps = {"image": 3, "text": 4}
    generate(exact, rows(0), num_inference_steps=exact_steps)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_item_alone_equals_the_item_in_a_batch_on_a_clock(solver, exact):
    batch = rows(2, 7, 2)
    options = {"joint_lead": 2.0, "num_restarts": 1, "num_inference_steps": 5, "solver": solver}
    options |= {"joint_guidance_scale": {"image": 3.0}, "guidance_window": {"image": (-5, -1)}}
    together, final = finish(exact, batch, seeded(0, 1, 2), **options)
    for item in range(3):
        one = {name: value[item : item + 1] for name, value in batch.items()}
        out, latents = finish(exact, one, seeded(item), **options)
        for g in latents:
            assert (latents[g][0] - final[g][item]).abs().max() < 1e-10
        assert torch.equal(out.sequences[0], together.sequences[item])
    assert together.num_evaluations == (8 if solver == "heun" else 5)


# --- the lead, or an overlap: what is nearer counts


OWN_LEAD, OWN_OVERLAP = {"joint_lead": 3.0}, {"joint_overlap": 0.25}


@pytest.mark.parametrize(
    ("own", "passed", "keywords", "lead"),
    [
        (OWN_OVERLAP, {}, {"joint_lead": 2.0}, 2.0),
        (OWN_OVERLAP, {"joint_lead": 2.0}, {}, 2.0),
        (OWN_LEAD, {}, {"joint_overlap": 0.25}, None),
        (OWN_LEAD, {"joint_overlap": 0.25}, {}, None),
        (OWN_LEAD, {}, {"joint_overlap": 1}, None),
        (OWN_LEAD, {"joint_overlap": 0.25}, {"joint_lead": 2.0}, 2.0),
        (OWN_OVERLAP, {"joint_lead": 2.0}, {"joint_overlap": 0.5}, None),
        ({}, {}, {"joint_lead": 2.0, "joint_overlap": 1.0}, 2.0),
        (OWN_LEAD | OWN_OVERLAP, {}, {"joint_lead": 2.0}, 2.0),
        (OWN_LEAD, {}, {}, 3.0),
    ],
)
def test_the_nearer_layer_says_how_words_go_ahead(own, passed, keywords, lead, exact, monkeypatch):
    def run(**options):
        return generate(exact, rows(*JOINT), num_inference_steps=4, **options)

    monkeypatch.setattr(exact, "generation_config", MDMGenerationConfig())
    overlap = (own | passed | keywords).get("joint_overlap")
    expected = run(joint_overlap=overlap) if lead is None else run(joint_lead=lead)
    monkeypatch.setattr(exact, "generation_config", MDMGenerationConfig(**own))
    out = run(generation_config=MDMGenerationConfig(**passed), **keywords)
    assert torch.equal(out.images, expected.images)
    assert torch.equal(out.sequences, expected.sequences)


BOTH = r"`joint_lead` is 2.0 and `joint_overlap` 0.5.*leave one of them out"


def test_a_lead_and_an_overlap_in_one_place_are_refused(exact, monkeypatch):
    both = {"joint_lead": 2.0, "joint_overlap": 0.5}
    with pytest.raises(ValueError, match=BOTH):
        generate(exact, rows(*JOINT), **both)
    with pytest.raises(ValueError, match=BOTH):
        generate(exact, rows(*JOINT), generation_config=MDMGenerationConfig(**both))
    monkeypatch.setattr(exact, "generation_config", MDMGenerationConfig(**both))
    with pytest.raises(ValueError, match=BOTH):
        generate(exact, rows(*JOINT))


def test_a_lead_of_one_modality_is_refused_where_it_is_asked_for(exact, monkeypatch):
    message = r"`joint_lead` is 2.0.*writes both, only image: leave it out.*'joint'"
    with pytest.raises(ValueError, match=message):
        generate(exact, rows(0), joint_lead=2.0)
    with pytest.raises(ValueError, match=message):
        generate(exact, rows(0), generation_config=MDMGenerationConfig(joint_lead=2.0))
    with pytest.raises(ValueError, match="only text or image: leave it out"):
        generate(exact, rows(0, 1), joint_lead=2.0)  # a picture and a caption, of other items
    plain = generate(exact, rows(0)).images
    own = MDMGenerationConfig(joint_lead=2.0)
    monkeypatch.setattr(exact, "generation_config", own)
    assert torch.equal(generate(exact, rows(0)).images, plain)
    # transformers' pipelines pass a copy of the model's own.
    copied = MDMGenerationConfig(joint_lead=2.0)
    assert torch.equal(generate(exact, rows(0), generation_config=copied).images, plain)


def test_a_lead_in_some_items_is_refused(exact):
    message = (
        r"`joint_lead` is 2.0.*1 of 2 items.*in a call of their own, or use `joint_overlap` = 1"
    )
    with pytest.raises(ValueError, match=message):
        generate(exact, rows(0, 2), joint_lead=2.0)


# --- restarts


@pytest.mark.parametrize(
    ("total", "ranges", "expected"),
    [
        (28, [17, 11], [17, 11]),
        (20, [17, 11], [12, 8]),  # 12.14 and 7.86
        (10, [17, 12], [6, 4]),  # 5.86 and 4.14
        (7, [17, 11, 11], [3, 2, 2]),  # 3.05, 1.97, 1.97
        (10, [16, 1, 1], [8, 1, 1]),  # 8.89, 0.56, 0.56
        (3, [100, 1, 1], [1, 1, 1]),
        (5, [17], [5]),
    ],
)
def test_passes_share_the_steps_by_what_they_cover(total, ranges, expected):
    assert share_steps(total, ranges) == expected


@given(
    total=st.integers(1, 300),
    ranges=st.lists(st.floats(0.01, 40), min_size=1, max_size=12),
)
def test_shares_are_whole_and_sum_to_the_total(total, ranges):
    total = max(total, len(ranges))
    counts = share_steps(total, ranges)
    assert sum(counts) == total and min(counts) >= 1
    quotas = [total * one / sum(ranges) for one in ranges]
    if min(quotas) >= 1:
        assert all(abs(n - quota) < 1 + 1e-9 for n, quota in zip(counts, quotas, strict=True))


def test_a_restart_on_a_clock_is_a_piece_of_one(exact):
    """17 nats, then 11 (the picture from -4 to 7, the words from 0 to 9): 28 steps."""
    options = {"joint_lead": 2.0, "num_restarts": 1, "num_inference_steps": 28}
    read, out = log_snrs(exact, rows(*JOINT), **options)
    assert_near(read["text"], [c + 1 for c in grid(-9, 8, 17) + grid(-1, 8, 11)])
    assert_near(read["image"], [c - 1 for c in grid(-9, 8, 17) + grid(-3, 8, 11)])
    assert out.num_evaluations == 28


def test_a_restart_of_a_task_without_a_clock_takes_equal_times(exact):
    """17 nats, then twice 12, of 41: of 10 steps 4.15, 2.93 and 2.93."""
    seen = []
    out = generate(
        exact,
        rows(1),
        num_restarts=2,
        num_inference_steps=10,
        callback_on_step_end=seen.append,
    )
    times = [info.times["text"] for info in seen]
    restart = 2 / math.pi * math.atan(1 / 3)  # tan's log-SNR is 0 there
    again = [restart, restart * 2 / 3, restart / 3]
    assert times == pytest.approx([1, 0.75, 0.5, 0.25, *again, *again], abs=1e-6)
    assert out.num_evaluations == 10 and [info.step for info in seen] == list(range(10))


def test_both_modalities_restart_at_one_step_though_one_takes_fewer(exact):
    """Of 12 and 7 steps: 7.03 and 4.97, 4.10 and 2.90."""
    seen = []
    generate(
        exact,
        rows(*JOINT),
        num_restarts=1,
        num_inference_steps={"image": 12, "text": 7},
        callback_on_step_end=seen.append,
    )
    times = {g: [info.times[g] for info in seen] for g in ("image", "text")}
    for g, count in (("image", 7), ("text", 4)):
        assert times[g][:7].count(1.0) == -(-7 // count)
        assert all(b <= a for a, b in zip(times[g][:6], times[g][1:7], strict=True))
        assert LOG_SNR[g](times[g][7]) == pytest.approx(RESTART[g], abs=1e-4)
        assert len(set(times[g])) == {"image": 12, "text": 7}[g]


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_noised_again_has_the_variance_of_its_time(solver):
    """A double knows z_0: the state that a restart shows is alpha z_0 + sigma noise."""
    schedules = {"image": NoiseSchedule("cosine")}
    noisy = {"image": torch.ones(3, 4, dtype=torch.bool)}
    noisy["image"][1, 2:] = False
    clean = torch.full((3, 4, 6), 2.0, dtype=torch.float64) * noisy["image"][..., None]
    streams, again = (NoiseStreams(noisy, 6, torch.float64, seeded(1, 2, 3)) for _ in range(2))
    spans = {"image": Span(-4.0)}
    first, second = Pass.together({"image": 2}), Pass.together({"image": 3}, spans)
    plan = StepPlan([first, second, second])
    noise = {"image": streams.draw("image")}
    solvers = make_solvers(schedules, noise, {"image": solver}, plan, streams)
    states = []

    def denoise(z, t, moved):
        states.append((z["image"], float(t["image"])))
        return {"image": clean}

    final = run_solvers(solvers, plan, denoise, lambda info: False)
    assert torch.equal(final["image"], clean)
    start = (
        2
        / math.pi
        * 1.008
        * math.acos(math.cos(0.008 / 1.008 * math.pi / 2) * math.sqrt(1 / (1 + math.exp(4))))
        - 0.008
    )
    restarts = [z for z, t in states if t == pytest.approx(start, abs=1e-9)]
    assert len(restarts) == 2
    # Where a solver draws noise too, for every step but the last of a pass, that comes between.
    restarts_at = (2, 5) if solver == "ddpm" else (1, 2)
    drawn = [again.draw("image") for _ in range(6)]
    drawn = [drawn[index] for index in restarts_at]
    alpha, sigma = math.sqrt(1 / (1 + math.exp(4))), math.sqrt(1 / (1 + math.exp(-4)))
    for z, noise in zip(restarts, drawn, strict=True):
        assert (z - (alpha * clean + sigma * noise)).abs().max() < 1e-9
    assert not torch.equal(*restarts) and not restarts[0][1, 2:].any()


@pytest.mark.parametrize(("solver", "evaluations"), [("heun", 9), ("ddim", 6), ("ddpm", 6)])
def test_number_of_evaluations_with_restarts(solver, evaluations, exact, monkeypatch):
    """Three passes; Heun corrects every step but the last of a pass."""
    calls, bars = record(monkeypatch, exact), []
    out = generate(
        exact,
        mixed_batch(),
        solver=solver,
        num_inference_steps=6,
        num_restarts=2,
        output_trajectory=True,
        callback_on_step_end=lambda info: bars.append(info.num_steps),
    )
    assert out.num_evaluations == evaluations == len(calls)
    assert bars == [6] * 6 and out.trajectory["image"].shape[1] == 6


def test_restarts_are_the_same_for_a_seed_and_not_what_they_are_without(exact):
    def draw(**options):
        return generate(exact, mixed_batch(), num_inference_steps=6, seed=4, **options)

    first, second, plain = draw(num_restarts=1), draw(num_restarts=1), draw()
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.sequences, second.sequences)
    assert not torch.equal(first.images, plain.images)


@pytest.mark.parametrize("options", [{}, {"joint_lead": 2.0}], ids=["in time", "on a clock"])
def test_what_is_known_stays_with_restarts(options, exact):
    batch = rows(2, 7) if options else mixed_batch()
    if options:  # a picture half of which is known, and words one of which is
        batch["image_given"][0, :, 4:], batch["text_given"][0, 1] = True, True
    options |= {"num_restarts": 2, "num_inference_steps": 7, "guidance_scale": 2.0}
    out, final = finish(exact, batch, seeded(*range(len(batch["class_labels"]))), **options)
    known = batch["image_given"][:, None]
    assert torch.equal(out.images[known], batch["pixel_values"].to(out.images)[known])
    words = batch["text_given"] & batch["attention_mask"].bool()
    assert torch.equal(out.sequences[words], batch["input_ids"][words])
    # Whether what is given is read once or in every evaluation, all the same.
    options["use_cache"] = False
    whole, other = finish(exact, batch, seeded(*range(len(batch["class_labels"]))), **options)
    noisy = {
        "text": batch["attention_mask"].bool() & ~batch["text_given"],
        "image": patch_mask(batch["pixel_attention_mask"].bool())
        & ~patch_mask(batch["image_given"]),
    }
    for g, mask in noisy.items():
        assert (final[g] - other[g])[mask].abs().max() < 1e-9
    assert torch.equal(out.sequences, whole.sequences)


@pytest.mark.parametrize("solver", SOLVERS)
def test_known_pixels_are_noised_with_those_around_them_by_a_restart(solver, exact, monkeypatch):
    """Then the network sees all patches at one time, the known ones at alpha z_0 + sigma noise."""
    calls, batch = record(monkeypatch, exact), rows(0, 1, 5)
    known = patch_mask(batch["image_given"])  # item 1 is a given picture, half of item 2 is known
    clean = exact.encode_inputs(**batch).content["image"].latents.detach()
    options = {"num_inference_steps": 9, "num_restarts": 2, "use_cache": False, **OFF}
    out = generate(exact, batch, seed=3, solver=solver, **options)
    first = next(n for n, call in enumerate(calls) if not call.content["image"].given[2].any())
    assert 0 < first < len(calls) - 1
    for call in calls[:first]:
        assert torch.equal(call.content["image"].given, known)
    noises = []
    for call in calls[first:]:
        given = call.content["image"].given
        assert given[1].all() and not given[[0, 2]].any()
        t = float(call.times["image"][0])
        alpha = math.exp(-np.logaddexp(0, -cosine_log_snr(t)) / 2)
        sigma = math.exp(-np.logaddexp(0, cosine_log_snr(t)) / 2)
        noises.append(((call.z_t["image"] - alpha * clean) / sigma)[2, known[2]])
    assert all(0.2 < noise.std() < 3 for noise in noises)
    if solver in ("dpm_solver_2m", "ddim"):  # one path to what is known, in each pass
        each = {round(float(noise.sum()), 6) for noise in noises}
        assert len(each) == 2
    assert torch.equal(out.images[2, :, :, 3:], batch["pixel_values"].to(out.images)[2, :, :, 3:])


def test_the_last_clean_estimate_is_fed_back_after_a_restart(exact, monkeypatch):
    calls = record(monkeypatch, exact)
    batch = rows(0, 1, 2, 3, 4, 6, 7)  # none with known pixels, which are fed back as they are
    generate(exact, batch, num_inference_steps=4, num_restarts=1, solver="ddim")
    for before, call in pairwise(calls):
        for g in ("image", "text"):
            assert torch.equal(call.estimates[g], before.out.clean[g])


# --- guidance inside a window


def test_guidance_acts_inside_its_window_alone(exact, monkeypatch):
    """On a clock of 17 steps of a nat: the picture at -10, -9, ..., 6."""
    calls, seen = record(monkeypatch, exact), []
    generate(
        exact,
        rows(7),
        joint_lead=2.0,
        num_inference_steps=17,
        use_cache=False,
        guidance_scale=3.0,
        guidance_window={"image": [-5.5, -1.5]},
        callback_on_step_end=lambda info: seen.append(info.clean_estimates),
    )
    acts = []
    for call, estimates in zip(calls, seen, strict=True):
        conditional, unconditional = call.out.clean["image"].chunk(2)
        guided = conditional + 2 * (conditional - unconditional)
        is_guided = (estimates["image"] - guided).abs().max() < 1e-12
        assert is_guided or torch.equal(estimates["image"], conditional)
        acts.append(bool(is_guided))
        logits, plain = call.out.logits["text"].chunk(2)
        words = exact.expected_latent(logits + 2 * (logits - plain), call.candidates["text"])
        noisy = ~rows(7)["text_given"] & rows(7)["attention_mask"].bool()
        assert (estimates["text"] - words)[noisy].abs().max() < 1e-12  # guided everywhere
    assert acts == [-5.5 <= clock - 1 <= -1.5 for clock in grid(-9, 8, 17)]
    assert 0 < sum(acts) < len(acts)


@pytest.mark.parametrize("joint", [False, True])
def test_a_window_of_everything_and_of_nothing(joint, exact):
    guided = {"guidance_scale": 2.5, "num_inference_steps": 4}
    guided |= {"joint_guidance_scale": 2.0} if joint else {}
    batch = rows(*JOINT) if joint else rows(0, 1)

    def draw(**options):
        return finish(exact, batch, seeded(0, 1), **options)[1]

    plain, full = draw(**guided | OFF), draw(**guided)
    everywhere, nowhere = (draw(**guided, guidance_window=w) for w in ((-20, 20), (19, 19.5)))
    for g in plain:
        assert torch.equal(everywhere[g], full[g])
        assert (nowhere[g] - plain[g]).abs().max() < 1e-9
        assert (full[g] - plain[g]).abs().max() > 1e-3
