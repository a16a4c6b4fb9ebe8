# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Table 3 on the digits: means and intervals, and the whole command on a few steps."""

import json

import pytest
from PIL import Image
from table_3_digits import (
    DigitsTableArguments,
    gather,
    parse,
    run,
    summary,
    table,
    write_pictures,
)


def test_the_interval_of_three_seeds_is_students():
    """Of 1, 2, 3 the standard error is 1 / sqrt 3, and Student's 97.5 % with two degrees 4.3027."""
    found = summary([1.0, 2.0, 3.0])
    reach = 4.302652729911275 / 3**0.5
    assert found["mean"] == 2 and found["values"] == [1, 2, 3]
    assert found["interval"] == pytest.approx([2 - reach, 2 + reach])


def result(speed, distance):
    values = {"FPS, log scale": speed, "FID": distance}
    columns = {name: {"estimate": {"value": value}} for name, value in values.items()}
    return {"num_parameters": 12345, "columns": columns}


def test_seeds_are_taken_together():
    found = gather({"transformer": [result(1.0, 10.0), result(1.0, 14.0)]})
    assert found["transformer"]["FID"]["mean"] == 12
    lines = table(found)
    assert lines[0] == "| decoder | parameters | FPS, log scale | FID |"
    assert lines[2] == "| transformer | 12,345 | 1 (1 to 1) | 12 (-13.41 to 37.41) |"


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"decoders=\['rnn'\] are unknown: use some of"):
        DigitsTableArguments(decoders=["rnn"])
    with pytest.raises(ValueError, match=r"seeds=\[1, 1\] tell no interval"):
        DigitsTableArguments(seeds=[1, 1])


def test_real_pictures_lie_by_class(tmp_path):
    write_pictures(tmp_path)
    folder = tmp_path / "imagenet" / "train"
    assert sorted(one.name for one in folder.iterdir()) == list("0123456789")
    files = list(folder.rglob("*.png"))
    with Image.open(files[0]) as image:
        assert len(files) > 1000 and image.size == (8, 8)


@pytest.mark.slow
def test_the_whole_command(tmp_path, capfd):
    words = ["--seeds", "0", "1", "--max_steps", "2", "--limit", "12", "--num_inference_steps", "2"]
    words += ["--judge_epochs", "1", "--folder", str(tmp_path / "runs")]
    words += ["--output", str(tmp_path / "table.json")]
    run(*parse(words))
    content = json.loads((tmp_path / "table.json").read_text())
    assert list(content["decoders"]) == ["scans-1234-12", "scans-12-1", "transformer"]
    assert all(len(one["FID"]["values"]) == 2 for one in content["decoders"].values())
    counts = [one["num_parameters"] for one in content["decoders"].values()]
    assert max(counts) < 1.1 * min(counts)
    first = (tmp_path / "table.json").read_text()
    capfd.readouterr()
    run(*parse(words))  # everything is there
    assert (tmp_path / "table.json").read_text() == first
    assert "| transformer | " in capfd.readouterr().out
