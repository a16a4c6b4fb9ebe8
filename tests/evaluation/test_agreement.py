# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Agreement by route: each route is what it is called, whatever sampler a model has of its own."""

import json

from tiny_digits import ROOT

from modeling_mdm.evaluation import agreement
from modeling_mdm.evaluation.agreement import AgreementArguments, measure


class Found:
    share_agreeing = share_well_formed = mean_evaluations = seconds = 1.0
    histogram = (0.1, 0.2)


def test_no_route_takes_the_sampler_of_the_checkpoint(tmp_path, monkeypatch):
    """The shipped model restarts once and has ddpm of its own, which lockstep does not name."""
    seen = []

    def figures(model, processor, judge, captions, num_samples, sampling):
        seen.append((sampling.num_inference_steps, sampling.options))
        return Found()

    monkeypatch.setattr(agreement, "joint_figures", figures)
    monkeypatch.chdir(ROOT)
    chosen = AgreementArguments(
        "examples/checkpoints/mdm-fashion", "own", steps=[10], output=str(tmp_path / "found.json")
    )
    found = measure(chosen)
    assert len(found) == len(seen) == len(agreement.LEADS) + len(agreement.ROUTES)
    of = {point["route"]: options for point, (_, options) in zip(found, seen, strict=True)}
    assert of["lockstep"]["num_restarts"] == 0 and of["lockstep"]["joint_overlap"] == 1.0
    assert of["clock, lead 2, a restart"]["num_restarts"] == 1
    assert {route for route, own in of.items() if own["solver"] == "ddpm"} == {
        "clock, lead 2, by ddpm",
        "clock, lead 2, by ddpm, a restart",
    }
    assert all({"solver", "num_restarts"} <= {*own} for own in of.values())
    assert (
        len({json.dumps(own, sort_keys=True) for own in of.values()}) == len(of) - 1
    )  # a lead of 2
    measure(chosen)
    assert len(seen) == len(of)  # what is there is not measured again
