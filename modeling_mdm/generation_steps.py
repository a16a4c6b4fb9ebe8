# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""When each modality of a run moves, and at which times: clock, words ahead, restarts.

Log-SNR is in nats. A clock is one log-SNR for a run: words are at the clock plus half of their lead
over the picture, the picture at the clock minus that half.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers.utils import logging

from .content import MODALITIES
from .diffusion import NoiseSchedule
from .generation_settings import CLOCK_END, CLOCK_START, Settings
from .solvers import sampling_times

logger = logging.get_logger(__name__)


# A clock takes its steps where words and picture decide what they are: the number of steps a nat is
# 1 + 3 exp(-x^2 / 2), x the distance from a log-SNR of -2.5 in widths of 2.5.
DECIDING, DECIDING_WIDTH, DECIDING_WEIGHT = -2.5, 2.5, 3.0


def clock_points(start: float, end: float, num_steps: int) -> Tensor:
    """Where a clock from start to end is after each of its steps, (num_steps + 1,) float64."""
    low = torch.full((num_steps + 1,), start, dtype=torch.float64)
    high = torch.full_like(low, end)
    shares = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    due = torch.lerp(_steps_before(low), _steps_before(high), shares)
    for _ in range(60):  # halving is exact to rounding after as many
        middle = (low + high) / 2
        is_before = _steps_before(middle) < due
        low, high = torch.where(is_before, middle, low), torch.where(is_before, high, middle)
    points = (low + high) / 2
    points[0], points[-1] = start, end
    return points


def _steps_before(log_snr: Tensor) -> Tensor:
    """The integral of the number of steps a nat, up to a constant and a factor."""
    bell = torch.erf((log_snr - DECIDING) / (DECIDING_WIDTH * math.sqrt(2)))
    return log_snr + DECIDING_WEIGHT * DECIDING_WIDTH * math.sqrt(math.pi / 2) * bell


@dataclass(frozen=True)
class Span:
    """Log-SNR from which and to which one modality goes in one pass.

    Without an end the steps are equal in time, otherwise they are those of a clock that the
    modality is `ahead` of, and the last of them goes to what is clean and not to the end; without a
    start they begin at t = 1.
    """

    start: float | None = None
    end: float | None = None
    ahead: float = 0.0

    def times(
        self, num_steps: int, schedule: NoiseSchedule, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Descending times (num_steps + 1,), the last of them 0, in float32 at least."""
        if self.start is None:
            return sampling_times(num_steps, device, dtype)
        start = torch.tensor(self.start, dtype=torch.float64)
        if self.end is None:
            return sampling_times(num_steps, device, dtype, float(schedule.time_of(start)))
        clock = clock_points(self.start - self.ahead, self.end - self.ahead, num_steps)
        times = schedule.time_of(clock + self.ahead)
        times[-1] = 0  # the last step goes to what is clean
        return times.to(device, torch.promote_types(dtype, torch.float32))


@dataclass(frozen=True)
class Pass:
    """From noise to clean once.

    steps: sampler steps, by modality. windows: the first sampler step of the pass on which a
    modality may move, and the one after the last; its steps are spread evenly over them.
    spans: of log-SNR, by modality; equal steps from t = 1 where there is none.
    """

    steps: dict[str, int]
    windows: dict[str, tuple[int, int]]
    spans: dict[str, Span] = field(default_factory=dict)

    @classmethod
    def together(cls, steps: dict[str, int], spans: dict[str, Span] | None = None) -> "Pass":
        """Spread the steps of each modality over a pass as long as the most of them."""
        return cls(steps, dict.fromkeys(steps, (0, max(steps.values()))), spans or {})

    def turns(self) -> list[list[str]]:
        """The modalities that take a step of their own, by sampler step."""
        total = max(stop for _, stop in self.windows.values())
        return [
            [g for g, n in self.steps.items() if _moves(step, n, self.windows[g])]
            for step in range(total)
        ]


@dataclass(frozen=True)
class StepPlan:
    """When each modality of a run moves, pass after pass; both begin a pass at the same step."""

    passes: Sequence[Pass]

    @property
    def total(self) -> int:
        """Sampler steps of the run."""
        return len(self.turns())

    @property
    def restarts_at(self) -> int | None:
        """The first sampler step after what was clean has been made noisy again."""
        return len(self.passes[0].turns()) if len(self.passes) > 1 else None

    def turns(self) -> list[list[str]]:
        """The modalities that take a step of their own, by sampler step of the run."""
        return [moving for one in self.passes for moving in one.turns()]

    def times(self, modality: str, schedule: NoiseSchedule, z: Tensor) -> list[Tensor]:
        """Times (steps + 1,) of a modality in every pass, for states like z."""
        return [
            one.spans.get(modality, Span()).times(one.steps[modality], schedule, z.device, z.dtype)
            for one in self.passes
        ]


def plan_steps(
    noisy: dict[str, Tensor],
    schedules: dict[str, NoiseSchedule],
    settings: Settings,
    is_mixed: bool = False,
) -> StepPlan:
    """Plan the steps of a run; where words go ahead by windows, each modality has fewer of them.

    Args:
        noisy: positions to be written (b, n) by modality. schedules: by modality.
        settings: of the run: steps, lead or overlap, restarts.
        is_mixed: let items that write one modality keep the times of those that write both.

    Raises:
        ValueError: words go ahead in some items, and others write one modality, in all of the time,
            but for `is_mixed`; a lead that this call asks for where nothing is written beside; or
            steps and restarts that no such plan holds.
    """
    steps = {modality: settings.num_inference_steps[modality] for modality in noisy}
    if settings.joint_lead is not None and _is_joint(noisy, settings, is_mixed):
        return _by_clock(steps, schedules, settings)
    if settings.joint_overlap < 1 and _is_joint(noisy, settings, is_mixed):
        if settings.num_restarts and settings.asks_for_restarts:
            raise ValueError(
                f"`num_restarts` is {settings.num_restarts} with `joint_overlap` = "
                f"{settings.joint_overlap}, where words that are finished are given to the picture "
                "and stay: use `joint_lead`, or a `joint_overlap` of 1, or 0 restarts."
            )
        return StepPlan([_with_words_ahead(steps, settings.joint_overlap)])
    counts = _counts(steps, CLOCK_END - CLOCK_START, dict.fromkeys(MODALITIES, CLOCK_END), settings)
    again = {g: Span(settings.restart_log_snr[g]) for g in steps}
    return _passes(counts, dict.fromkeys(steps, Span()), again)


def joint_windows(num_steps: dict[str, int], overlap: float) -> dict[str, tuple[int, int]]:
    """Let words go ahead of the picture: the sampler steps of each modality within one run.

    Args:
        num_steps: by modality; the longer is the length of the run.
        overlap: share of a modality's window in which the other is denoised too. At 1 both windows
            are the whole run; at 0 the words are finished before the picture starts.

    Returns:
        (first step, step after the last) by modality.
    """
    total = max(num_steps.values())
    if len(num_steps) < 2:
        return dict.fromkeys(num_steps, (0, total))
    length = max(1, round(total / (2 - overlap)))
    return {"text": (0, length), "image": (total - length, total)}


def clock_spans(
    lead: float, schedules: dict[str, NoiseSchedule]
) -> tuple[tuple[float, float], dict[str, Span]]:
    """Where a clock with this lead starts and ends, and the log-SNR of each modality over it.

    Where a schedule does not reach its part of the start, the clock starts later, for both, and
    this is said once.
    """
    offsets = {"text": lead / 2, "image": -lead / 2}
    one = torch.ones((), dtype=torch.float64)
    reached = {g: float(schedules[g].log_snr(one)) - offsets[g] for g in MODALITIES}
    latest = max(reached, key=lambda g: reached[g])
    start = max(CLOCK_START, reached[latest])
    if start > CLOCK_START:
        logger.warning_once(
            f"The schedule {schedules[latest].name!r} of {latest} reaches a log-SNR of "
            f"{reached[latest] + offsets[latest]:.2f} at t = 1, which with `joint_lead` = {lead:g} "
            f"is {reached[latest]:.2f} on the clock: both modalities start there, and not at "
            f"{CLOCK_START:g}."
        )
    spans = {g: Span(start + ahead, CLOCK_END + ahead, ahead) for g, ahead in offsets.items()}
    return (start, CLOCK_END), spans


def share_steps(total: int, ranges: Sequence[float]) -> list[int]:
    """Share steps among passes in proportion to ranges: largest remainder, at least 1 each."""
    quotas = [total * one / sum(ranges) for one in ranges]
    counts = [max(1, math.floor(quota)) for quota in quotas]
    while sum(counts) != total:
        missing = [quota - count for quota, count in zip(quotas, counts, strict=True)]
        if sum(counts) < total:
            counts[missing.index(max(missing))] += 1
        else:
            spare = [m if count > 1 else math.inf for m, count in zip(missing, counts, strict=True)]
            counts[spare.index(min(spare))] -= 1
    return counts


def _by_clock(
    steps: dict[str, int], schedules: dict[str, NoiseSchedule], settings: Settings
) -> StepPlan:
    """Both modalities on one clock, and on a piece of one after every restart."""
    if len(set(steps.values())) > 1:
        raise ValueError(
            f"`num_inference_steps` is {steps['image']} for image and {steps['text']} for text: "
            f"with `joint_lead` = {settings.joint_lead:g} both take the steps of one clock, use "
            "one number."
        )
    (start, end), spans = clock_spans(settings.joint_lead, schedules)
    ends = {g: span.end for g, span in spans.items()}
    again = {g: replace(spans[g], start=settings.restart_log_snr[g]) for g in steps}
    if settings.num_restarts:
        for g, span in again.items():
            if span.start >= span.end:
                raise ValueError(
                    f"`restart_log_snr` is {span.start:g} for {g}, but with `joint_lead` = "
                    f"{settings.joint_lead:g} its clock ends at {span.end:g}: use less."
                )
    counts = _counts(steps, end - start, ends, settings)
    return _passes(counts, {g: spans[g] for g in steps}, again)


def _counts(
    steps: dict[str, int], first: float, ends: dict[str, float], settings: Settings
) -> dict[str, list[int]]:
    """Steps of every pass by modality; `first` is the range of log-SNR of the first pass.

    A restart covers the wider of both modalities' ranges, whatever a call writes: an item has the
    steps that it has in any batch.
    """
    passes = 1 + settings.num_restarts
    if not settings.asks_for_restarts:  # those of the model's own configuration, as far as they go
        passes = min(passes, *settings.num_inference_steps.values())
    for modality, count in steps.items():
        if count < passes:
            raise ValueError(
                f"`num_inference_steps` is {count} for {modality}, but `num_restarts` = "
                f"{settings.num_restarts} makes {passes} passes: use at least one step for each, "
                "or fewer restarts."
            )
    restart = max(ends[g] - settings.restart_log_snr[g] for g in MODALITIES)
    ranges = [first, *[restart] * (passes - 1)]
    return {modality: share_steps(count, ranges) for modality, count in steps.items()}


def _passes(
    counts: dict[str, list[int]], first: dict[str, Span], again: dict[str, Span]
) -> StepPlan:
    """A pass over the first spans, and the others over those of a restart."""
    longest = max(counts.values(), key=sum)
    passes = []
    for index, most in enumerate(longest):
        # Shares of fewer steps may round to more in one pass; they wait for the longer then.
        steps = {g: min(count[index], most) for g, count in counts.items()}
        passes.append(Pass.together(steps, again if index else first))
    return StepPlan(passes)


def _with_words_ahead(steps: dict[str, int], overlap: float) -> Pass:
    windows = joint_windows(steps, overlap)
    lengths = {modality: stop - first for modality, (first, stop) in windows.items()}
    return Pass({modality: min(steps[modality], lengths[modality]) for modality in steps}, windows)


def _is_joint(noisy: dict[str, Tensor], settings: Settings, is_mixed: bool) -> bool:
    """Whether words and pictures are both written, in every item or for `is_mixed` in some."""
    both = torch.zeros(1, dtype=torch.bool)
    if len(noisy) == 2:
        both = noisy["text"].any(-1) & noisy["image"].any(-1)
    name = "joint_overlap" if settings.joint_lead is None else "joint_lead"
    value = getattr(settings, name)
    if is_mixed or bool(both.all()):
        return bool(both.any())
    if both.any():
        fix = "use 1" if settings.joint_lead is None else "use `joint_overlap` = 1 in its place"
        raise ValueError(
            f"`{name}` is {value}, but {int((~both).sum())} of {len(both)} items do not "
            f"write both text and image: generate them in a call of their own, or {fix}."
        )
    if settings.asks_for_lead:
        raise ValueError(
            f"`joint_lead` is {value}, by which words lead a picture that is written with them, "
            f"but no item of this call writes both, only {' or '.join(noisy)}: leave it out, or "
            "write both by `generation_mode`='joint'."
        )
    return False


def _moves(step: int, num_steps: int, window: tuple[int, int]) -> bool:
    """Whether one of `num_steps` steps, spread evenly over a window, falls on this sampler step."""
    first, stop = window
    length = stop - first
    done = (step - first) * num_steps // length
    return first <= step < stop and (step - first + 1) * num_steps // length > done
