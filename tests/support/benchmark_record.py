# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A record of benchmarks as it is written, made up."""

import torch

from benchmarks.machine import Peaks
from benchmarks.plans import PLANS
from benchmarks.results import Contender, Record, Row

CPU = torch.device("cpu")
DRY = PLANS["dry"]
PEAKS = Peaks({"float32": 100e9, "bfloat16": 200e9}, 10e9, 1e9, "made up")


def sample_record(device="cpu"):
    """A record whose figures are known."""

    def row(topic, name, parameters, **contenders):
        return Row(topic, name, parameters, contenders, {"mamba_ssm": "no CUDA device"})

    def one(*seconds, memory=2**20, **details):
        return Contender(list(seconds), memory, "torch", details)

    machine = {
        "device": device, "name": "a machine", "cores": 2, "threads": 1, "load_before": 0.1,
        "cpu_capability": "AVX2", "bfloat16": "emulated",
        "peaks": {"matmul": {"float32": 100e9}, "bandwidth": 10e9, "exponentials": 1e9,
                  "source": "made up"},
    }  # fmt: skip
    rows = [
        row("scan", "forward 1024", {"length": 1024, "dtype": "float32"},
            mdm=one(0.010, 0.011, matmul_flops=0.7e9),
            transformers=one(0.080, 0.088), transformers_best_chunk=one(0.02, 0.022)),
        row("block", "training 4 scans 4096", {"length": 4096},
            mdm=one(1.0), transformers=one(5.0, memory=7 * 2**20)),
        row("selection", "scan", {}, **{"keep 100%": one(1.0), "keep 25%": one(0.3)}),
        row("pair", "forward 4096", {}, mdm=one(1.0), mamba_ssm=one(2.0)),
        row("step", "1 x 256", {"patches": 256}, eager=one(3.0), cuda_graph=one(1.0)),
        row("step", "2 x 4096", {"patches": 4096},
            eager=one(4.0, bound_seconds=1.0, predicted_seconds=2.0),
            cuda_graph=one(2.5, bound_seconds=1.0, predicted_seconds=2.0)),
    ]  # fmt: skip
    for size in (1024, 4096, 16384):
        rows.append(
            row("growth", f"step {size}", {"patches": size},
                mdm=one(1e-3 * size**1.05, memory=100 * size), transformer=one(1e-6 * size**2))
        )  # fmt: skip
        for kind, unit in (("image", "patches"), ("text", "words")):
            counts = {"sampler_steps": 30, "evaluations_a_step": 1.0, "branches": 2, "blocks": 4}
            rows.append(
                row("figure_5", f"{kind} {size}", {unit: size},
                    mdm=one(4e-3 * size, scans_a_block=4, **counts),
                    transformer=one(1e-6 * size**2, scans_a_block=0, **counts),
                    one_scan_mamba=one(1e-3 * size, scans_a_block=1, **counts),
                    autoregressive=one(1e-9 * size**2))
            )  # fmt: skip
    settings = {"plan": {"name": "full"}}
    return Record(machine, {"torch": "2.14.1", "mamba-ssm": None}, settings, rows)
