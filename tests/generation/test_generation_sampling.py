# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The denoising loop with a toy network that remembers its calls, and the noise of every item."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_mdm.content import ModalityContent, written
from modeling_mdm.diffusion import NoiseSchedule
from modeling_mdm.generation_sampling import NoiseStreams, make_solvers, run_solvers
from modeling_mdm.generation_steps import Pass, StepPlan, joint_windows
from modeling_mdm.solvers import SOLVERS, sampling_times, solve

float64 = torch.float64
SCHEDULES = {"image": NoiseSchedule("cosine"), "text": NoiseSchedule("tan", 3.0)}
SHAPES = {"image": (2, 4, 3), "text": (2, 5, 3)}


class Toy:
    """A network that knows one modality from the other, and what it was shown.

    `coupled`: each estimate depends on what the other modality shows, too.
    """

    def __init__(self, coupled: float = 0.0) -> None:
        self.coupled, self.calls, self.shown = coupled, [], {}

    def estimate(self, g, z, t):
        return torch.tanh(z + 0.3 * len(g)) * (1 - 0.5 * t)

    def __call__(self, z, t, moved):
        """Whoever is told to have moved is shown another state than in the last call."""
        others = {g for g, state in self.shown.items() if not torch.equal(z[g], state)}
        assert set(moved) == others
        self.shown = dict(z)
        self.calls.append((z, t, moved))
        assert all(time.dim() == 0 for time in t.values())
        result = {g: self.estimate(g, z[g], t[g]) for g in z}
        if self.coupled:
            total = sum(state.mean() + t[g] for g, state in z.items())
            result = {g: part + self.coupled * total for g, part in result.items()}
        return result

    def times(self, g):
        return [round(float(t[g]), 6) for _, t, _ in self.calls]

    def states(self, g):
        return [z[g] for z, _, _ in self.calls]


def starts():
    draw = torch.Generator().manual_seed(0)
    return {g: torch.randn(shape, generator=draw, dtype=float64) for g, shape in SHAPES.items()}


def noise_source(g):
    draw = torch.Generator().manual_seed(len(g))
    return lambda: torch.randn(SHAPES[g], generator=draw, dtype=float64)


def together(*steps):
    return StepPlan([Pass.together(one) for one in steps])


def drive(toy, names, steps, on_step=lambda info: False, only=("image", "text")):
    solvers = {
        g: SOLVERS[names[g]](
            SCHEDULES[g], starts()[g], sampling_times(steps[g], dtype=float64), noise_source(g)
        )
        for g in only
    }
    return run_solvers(solvers, together({g: steps[g] for g in only}), toy, on_step)


# --- one network evaluation for both modalities


@given(
    image=st.sampled_from(sorted(SOLVERS)),
    text=st.sampled_from(sorted(SOLVERS)),
    image_steps=st.integers(1, 7),
    text_steps=st.integers(1, 7),
)
@settings(max_examples=25, deadline=None)
def test_each_modality_takes_its_own_solver_and_steps(image, text, image_steps, text_steps):
    """Where nothing couples them, each ends where it would alone; evaluations are shared."""
    names, steps = {"image": image, "text": text}, {"image": image_steps, "text": text_steps}
    toy, infos = Toy(), []
    final = drive(toy, names, steps, lambda info: infos.append(info))
    for g in final:
        alone = solve(
            names[g],
            SCHEDULES[g],
            starts()[g],
            sampling_times(steps[g], dtype=float64),
            lambda z, t, g=g: toy.estimate(g, z, t),
            noise_source(g),
        )
        assert (final[g] - alone).abs().max() < 1e-12
    total = max(steps.values())
    assert [info.step for info in infos] == list(range(total))
    assert {info.num_steps for info in infos} == {total}
    corrected = any(names[g] == "heun" and steps[g] > 1 for g in names)
    assert total <= len(toy.calls) <= (2 * total - 1 if corrected else total)
    for g in names:  # the last evaluation is the last step of both
        assert toy.times(g)[-1] == round(1 / steps[g], 6)


def test_one_modality_alone():
    toy = Toy()
    final = drive(toy, {"text": "ddim"}, {"text": 3}, only=("text",))
    assert set(final) == {"text"} and len(toy.calls) == 3
    assert all(set(z) == set(t) == {"text"} for z, t, _ in toy.calls)


@pytest.mark.parametrize(
    ("name", "evaluations"), [("heun", 9), ("dpm_solver_2m", 5), ("ddim", 5), ("ddpm", 5)]
)
def test_evaluations_of_five_steps(name, evaluations):
    """Heun takes two a step, save the last; the others one."""
    toy = Toy()
    drive(toy, {"image": name, "text": name}, {"image": 5, "text": 5})
    assert len(toy.calls) == evaluations


def test_a_waiting_modality_keeps_its_state_and_time():
    toy = Toy(coupled=0.1)
    drive(toy, {"image": "ddim", "text": "ddpm"}, {"image": 4, "text": 2})
    assert toy.times("image") == [1, 0.75, 0.5, 0.25]
    assert toy.times("text") == [1, 1, 0.5, 0.5]
    first, second, third, fourth = toy.states("text")
    assert torch.equal(first, second) and torch.equal(third, fourth)
    assert not torch.equal(second, third)
    assert not any(torch.equal(a, b) for a, b in pairwise(toy.states("image")))


def test_while_one_is_corrected_the_other_shows_its_state_from_before_the_step():
    toy = Toy(coupled=0.1)
    drive(toy, {"image": "heun", "text": "ddpm"}, {"image": 3, "text": 3})
    third, two_thirds = round(1 / 3, 6), round(2 / 3, 6)
    assert toy.times("image") == [1, two_thirds, two_thirds, third, third]
    assert toy.times("text") == [1, 1, two_thirds, two_thirds, third]
    z = toy.states("text")
    assert torch.equal(z[0], z[1]) and torch.equal(z[2], z[3])
    assert not torch.equal(z[1], z[2]) and not torch.equal(z[3], z[4])


def test_both_are_corrected_in_one_evaluation():
    toy = Toy(coupled=0.1)
    drive(toy, {"image": "heun", "text": "heun"}, {"image": 4, "text": 2})
    # Text takes its steps with the second and the fourth of the image.
    assert toy.times("image") == [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    assert toy.times("text") == [1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    z = toy.states("text")
    assert torch.equal(z[0], z[1]) and torch.equal(z[1], z[2])
    assert torch.equal(z[4], z[5]) and torch.equal(z[5], z[6])


def test_heun_on_coupled_modalities_is_the_trapezoid_rule_of_both():
    """Two modalities under Heun are one system: written out here in float64."""
    toy = Toy(coupled=0.1)
    z, reference = starts(), Toy(coupled=0.1)

    def slopes(z, t):
        """dz/dt of z_t = alpha z_0 + sigma noise, derivatives by a small central difference."""
        reference.shown = {}
        clean = reference(z, {g: torch.tensor(t, dtype=float64) for g in z}, [])
        result = {}
        for g, state in z.items():
            abar = [SCHEDULES[g].alpha_bar(torch.tensor(t + h, dtype=float64)) for h in (-E, 0, E)]
            alpha, sigma = [a.sqrt() for a in abar], [(1 - a).sqrt() for a in abar]
            noise = (state - alpha[1] * clean[g]) / sigma[1]
            result[g] = ((alpha[2] - alpha[0]) * clean[g] + (sigma[2] - sigma[0]) * noise) / (2 * E)
        return clean, result

    E, t, s = 1e-6, 0.9, 0.5
    solvers = {
        g: SOLVERS["heun"](SCHEDULES[g], z[g], torch.tensor([t, s, 0.0], dtype=float64), None)
        for g in z
    }
    plan = together({"image": 2, "text": 2})
    final = run_solvers(solvers, plan, toy, lambda info: False)
    _, start = slopes(z, t)
    predicted = {g: z[g] + (s - t) * start[g] for g in z}
    _, end = slopes(predicted, s)
    middle = {g: z[g] + (s - t) * (start[g] + end[g]) / 2 for g in z}
    expected, _ = slopes(middle, s)
    for g in z:
        assert (final[g] - expected[g]).abs().max() < 1e-6


# --- one modality ahead of the other


@given(
    steps=st.fixed_dictionaries({"text": st.integers(1, 60), "image": st.integers(1, 60)}),
    overlap=st.floats(0, 1),
)
@settings(max_examples=50, deadline=None)
def test_windows_fill_the_run_and_overlap_as_asked(steps, overlap):
    total = max(steps.values())
    windows = joint_windows(steps, overlap)
    (start, words_end), (picture_start, end) = windows["text"], windows["image"]
    assert start == 0 and end == total and words_end == end - picture_start >= 1
    shared = words_end - picture_start
    assert abs(shared - overlap * words_end) <= 1.5  # a whole number of steps
    assert joint_windows({"text": 7}, overlap) == {"text": (0, 7)}


@pytest.mark.parametrize("image", ["ddim", "heun"])
def test_a_modality_moves_within_its_window_and_is_shown_finished(image):
    toy, events = Toy(coupled=0.1), []
    solvers = {
        g: SOLVERS[name](
            SCHEDULES[g], starts()[g], sampling_times(3, dtype=float64), noise_source(g)
        )
        for g, name in {"image": image, "text": "ddim"}.items()
    }
    plan = StepPlan([Pass({"image": 3, "text": 3}, {"text": (0, 3), "image": (2, 5)})])

    def on_finish(g, z):
        events.append((g, z, len(toy.calls)))
        return toy

    final = run_solvers(solvers, plan, toy, lambda info: False, on_finish)
    third, two_thirds = round(1 / 3, 6), round(2 / 3, 6)
    if image == "ddim":
        assert toy.times("text") == [1, two_thirds, third, 0, 0]
        assert toy.times("image") == [1, 1, 1, two_thirds, third]
    else:  # the correction of the third step still shows the words of before that step
        assert toy.times("text") == [1, two_thirds, third, third, 0, 0, 0]
        assert toy.times("image") == [1, 1, 1, two_thirds, two_thirds, third, third]
    ((g, words, evaluations),) = events  # told once, when the step is over
    assert g == "text" and evaluations == toy.times("text").index(0)
    assert torch.equal(words, final["text"])
    assert all(torch.equal(z, words) for z in toy.states("text")[evaluations:])


def test_nobody_is_told_when_both_are_finished_together():
    solvers = {
        g: SOLVERS["ddim"](SCHEDULES[g], z, sampling_times(2, dtype=float64), None)
        for g, z in starts().items()
    }
    told = []
    plan = together({"image": 2, "text": 2})
    run_solvers(solvers, plan, Toy(), lambda info: False, lambda g, z: told.append(g))
    assert told == []


# --- the callback


def test_the_callback_sees_every_step_before_and_after_it():
    infos, toy = [], Toy(coupled=0.1)
    names, steps = {"image": "heun", "text": "ddpm"}, {"image": 4, "text": 2}
    drive(toy, names, steps, lambda info: infos.append(info))
    assert [info.times for info in infos] == [
        {"image": 1, "text": 1},
        {"image": 0.75, "text": 1},
        {"image": 0.5, "text": 0.5},
        {"image": 0.25, "text": 0.5},
    ]
    for info, (z, t, _) in zip(infos, [toy.calls[i] for i in (0, 2, 4, 6)], strict=True):
        expected = Toy(coupled=0.1)(z, t, [])
        assert all(torch.equal(info.clean_estimates[g], expected[g]) for g in names)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_the_callback_stops_the_run_at_the_clean_estimates(solver):
    toy, infos = Toy(), []

    def stop(info):
        infos.append(info)
        return info.step == 1

    final = drive(toy, dict.fromkeys(SHAPES, solver), {"image": 5, "text": 5}, stop)
    assert len(infos) == 2 and len(toy.calls) == (4 if solver == "heun" else 2)
    assert all(torch.equal(final[g], infos[-1].clean_estimates[g]) for g in SHAPES)


# --- noise


def masks(*rows):
    return torch.tensor([[c == "x" for c in row] for row in rows])


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_noise_is_standard_normal_where_something_is_written_and_zero_elsewhere():
    noisy = {"text": torch.rand(20, 50) < 0.5, "image": torch.rand(20, 30) < 0.5}
    streams = NoiseStreams(noisy, 8, torch.float32, torch.Generator().manual_seed(0))
    drawn = {g: [streams.draw(g) for _ in range(3)] for g in noisy}
    for g, mask in noisy.items():
        for noise in drawn[g]:
            assert noise.shape == (*mask.shape, 8)
            assert not noise[~mask].any()
            assert abs(noise[mask].mean()) < 0.06 and abs(noise[mask].std() - 1) < 0.05
        first, second, _ = drawn[g]
        assert abs((first * second)[mask].mean()) < 0.06  # fresh every time
    common = noisy["text"][:, :30] & noisy["image"]
    product = drawn["text"][0][:, :30] * drawn["image"][0]
    assert abs(product[common].mean()) < 0.06  # nothing in common between modalities
    both = noisy["text"][:1] & noisy["text"][1:2]
    assert abs((drawn["text"][0][:1] * drawn["text"][0][1:2])[both].mean()) < 0.3  # nor items


def test_noise_of_an_item_depends_on_nothing_but_its_stream():
    """Neither on the batch, nor on padding or given positions, nor on the other modality."""
    alone = NoiseStreams({"text": masks("xxx")}, 4, float64, seeded(7))
    batch = {"text": masks(".x.xx.", "xxxxxx"), "image": masks("x....", "xxxxx")}
    together = NoiseStreams(batch, 4, float64, seeded(7, 8))
    together.draw("image")
    for _ in range(2):
        first = together.draw("text")
        assert torch.equal(alone.draw("text")[0], first[0, batch["text"][0]])
        assert not torch.equal(first[0, batch["text"][0]], first[1, :3])


def test_one_generator_seeds_a_stream_for_each_item():
    noisy = {"text": masks("xxx", "xxx")}

    def draw(generator):
        return NoiseStreams(noisy, 4, float64, generator).draw("text")

    generator = torch.Generator().manual_seed(3)
    first, second = draw(generator), draw(generator)
    assert torch.equal(first, draw(*seeded(3)))
    assert not torch.equal(first, second)  # a generator moves on
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(5)
    by_default = draw(None)
    assert not torch.equal(by_default, draw(None))
    torch.manual_seed(5)
    assert torch.equal(by_default, draw(None))


def test_a_list_of_generators_gives_each_item_its_own():
    noisy = {"text": masks("xxx", "xxx")}
    first = NoiseStreams(noisy, 4, float64, seeded(1, 2)).draw("text")
    swapped = NoiseStreams(noisy, 4, float64, tuple(seeded(2, 1))).draw("text")
    assert torch.equal(first, swapped.flip(0))
    for count in (1, 3):
        with pytest.raises(ValueError, match=rf"`generator`.* {count} for 2 items.*pass"):
            NoiseStreams(noisy, 4, float64, seeded(*range(count)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_the_same_in_every_type(dtype):
    noisy = {"image": masks("xxxx")}
    exact = NoiseStreams(noisy, 6, float64, seeded(0)).draw("image")
    assert torch.equal(NoiseStreams(noisy, 6, dtype, seeded(0)).draw("image"), exact.to(dtype))


def test_written_names_the_modalities_that_have_something_to_write():
    def content(given, valid):
        given, valid = masks(given), masks(valid)
        place = turn = torch.zeros_like(given, dtype=torch.long)
        return ModalityContent(torch.zeros(*given.shape, 2), given, valid, turn, place)

    noisy = written({"text": content("x..", "xx."), "image": content("xx..", "xx..")})
    assert set(noisy) == {"text"} and torch.equal(noisy["text"], masks(".x."))


def test_solvers_start_from_the_noise_and_end_at_time_zero():
    names, steps = {"image": "heun", "text": "ddpm"}, {"image": 2, "text": 3}
    made = make_solvers(SCHEDULES, starts(), names, together(steps), None)
    for g, solver in made.items():
        first = next(solver)
        assert torch.equal(first.z, starts()[g]) and first.t == 1
