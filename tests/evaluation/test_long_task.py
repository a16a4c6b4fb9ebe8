# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The long task: both mixers on the same scenes, and what is taken from their steps."""

import json

import long_task
import pytest
import tiny_emojis
from safetensors.torch import load_file

for library in ("resvg_py", "inflect"):
    pytest.importorskip(library, reason='needs `pip install "modeling-mdm[emoji]"`')


def test_losses_are_of_the_last_quarter_and_seconds_of_the_later_half():
    rows = [
        {"loss": 8.0 - n, "loss_se_image": 1.0, "loss_se_text": n, "samples_per_second": 2.0 + n}
        for n in range(8)
    ]
    found = long_task.figures(rows, 4)
    assert (found["loss"], found["loss_se_text"], found["steps"]) == (1.5, 6.5, 8)
    assert found["seconds_a_step"] == pytest.approx((4 / 7 + 4 / 8) / 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 3}, "steps=3 must be >= 4"),
        ({"batch_size": 0}, "batch_size=0 must be >= 1"),
        ({"patch_size": 3}, "patch_size=3 must divide image_size=64"),
        ({"patch_size": 0}, "patch_size=0 must divide"),
    ],
)
def test_bad_input_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        long_task.LongTaskArguments("set", **wrong)


@pytest.mark.slow
def test_both_mixers_learn_the_same_scenes(tmp_path):
    made = tiny_emojis.build(tmp_path)
    output = tmp_path / "long.json"
    shrunken = ["hidden_size=32", "head_dim=16", "state_size=8", "vae_hidden_size=16"]
    chosen = long_task.LongTaskArguments(
        *(str(made), 4, 2, 16, 4, [*shrunken, "num_attention_heads=2"]),
        folder=str(tmp_path / "runs"),
        output=str(output),
        bf16="false",
    )
    found = long_task.run(chosen)
    assert json.loads(output.read_text())["mixers"] == found["mixers"]
    assert found["settings"]["patches"] == 16
    for mixer, one in found["mixers"].items():
        weights = load_file(tmp_path / "runs" / mixer / "model.safetensors")
        numbers = sum(own.numel() for name, own in weights.items() if "statistics" not in name)
        assert one["num_parameters"] == numbers
        assert one["steps"] == 4 and one["loss"] > 0 and one["seconds_a_step"] > 0
    state = (tmp_path / "runs" / "mamba2" / "trainer_state.json").stat().st_mtime_ns
    long_task.run(chosen)  # what is there is not trained again
    assert (tmp_path / "runs" / "mamba2" / "trainer_state.json").stat().st_mtime_ns == state
