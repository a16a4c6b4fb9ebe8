# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Texts that are too long are found before the first step, or skipped and counted."""

import json

import numpy as np
import pytest
from damaged_sets import BAD, picture_folder, png, warned
from tiny_digits import ROOT, load_script, make_processor, save_config_folder

from modeling_mdm.data.pictures import PictureDataset, Source
from modeling_mdm.data.streams import MixedStream, StreamSource


def test_long_texts_are_found_before_the_first_step(tmp_path):
    save_config_folder(tmp_path / "config")
    (tmp_path / "data").mkdir()
    picture_folder(tmp_path / "data", {"png": png(10 + BAD)})
    lines = [json.loads(x) for x in (tmp_path / "data" / "metadata.jsonl").read_text().splitlines()]
    for n, row in enumerate(lines):
        row["text"] = "one " * (30 if n == 5 else 12) if n in (5, 11, 18) else "one"
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    script = load_script(ROOT / "examples" / "train.py")
    line = [
        *("--config", str(tmp_path / "config"), "--dataset", str(tmp_path / "data")),
        *("--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--use_cpu", "true"),
        *("--report_to", "none", "--disable_tqdm", "true", "--tasks", "text_to_image=1"),
    ]
    message = r"3 of 20 texts are too long. The longest, item 5, .*line 6.*--truncation true"
    with pytest.raises(ValueError, match=message):
        script.main(line)
    assert not (tmp_path / "out").exists()
    script.main([*line, "--truncation", "true"])


def test_long_texts_of_a_stream_are_skipped_and_counted(tmp_path, caplog):
    from functools import partial

    from modeling_mdm.data.lengths import check_text

    texts = ["one " * 30 if n == 4 else "one" for n in range(12)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source = StreamSource(
        "json", 1.0, {"text": "text"}, data_files={"train": str(tmp_path / "a.jsonl")}
    )
    stream = MixedStream([source], check_text=partial(check_text, make_processor()))
    assert len(list(stream)) == 11
    (message,) = warned(caplog, "a.jsonl, line 5")
    assert "--truncation true" in message


def test_long_captions_of_a_table_are_found(tmp_path):
    from modeling_mdm.data.captions import CaptionTable
    from modeling_mdm.data.lengths import check_texts

    table = CaptionTable.from_names(["one", "two " * 20])
    data = PictureDataset(Source(np.zeros((2, 8, 8), np.uint8), labels=[0, 1]), table)
    with pytest.raises(ValueError, match=r"4 of 8 texts are too long.*the caption table"):
        check_texts(make_processor(), data)


def test_long_texts_are_never_drawn_where_they_are_left_out(caplog):
    """Of a list the others are; an item of which nothing is left is damaged."""
    from modeling_mdm.data.lengths import check_texts, leave_out_long

    processor, long = make_processor(), "one " * 30
    texts = [["one", long, "two"], long, "one", None]
    data = PictureDataset(Source(np.zeros((4, 8, 8), np.uint8), texts), max_skipped=0.5)
    leave_out_long(processor, data)
    (message,) = warned(caplog, "left out")
    assert "2 of 5 texts have more than" in message
    check_texts(processor, data)  # and finds nothing
    drawn = set()
    for epoch in range(20):
        data.set_epoch(epoch)
        drawn.add(data[0]["text"])
    assert drawn == {"one", "two"}
    assert data[1]["text"] == "one" and data[3]["text"] is None and data.skipped == 1
    assert warned(caplog, "each of its texts is left out")


@pytest.mark.parametrize("answers", [["one"], ["one", "one " * 30]])
def test_long_answers_are_left_out_of_a_run(answers, tmp_path):
    from modeling_mdm.training.run_data import DataArguments, load_data

    (tmp_path / "data").mkdir()
    picture_folder(tmp_path / "data", {"png": png(10 + BAD)})
    talks = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]}
        for answer in answers
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)))
    arguments = DataArguments(dataset=str(tmp_path / "data"), talks=str(tmp_path / "talks.jsonl"))
    if len(answers) > 1:
        with pytest.raises(ValueError, match="1 of 2 answers are too long"):
            load_data(arguments, make_processor(), 4, 0)
    arguments.leave_out_long = True
    data, _ = load_data(arguments, make_processor(), 4, 0)
    assert [len(part) for part in data.parts] == [20, 1]
