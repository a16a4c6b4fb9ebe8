# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Streaming: what a streamer is given at every step, how it is drawn, animated pictures."""

import io
import sys
import types

import pytest
import torch
from PIL import Image
from tiny_digits import make_config, make_processor
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

from modeling_mdm import MDMForJointGeneration, MDMStreamer, save_trajectory
from modeling_mdm.display.animation import shown_steps, trajectory_strip
from modeling_mdm.display.streamer import half_blocks

STEPS = 3


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    processor = make_processor()
    model = MDMForJointGeneration(make_config(len(processor.tokenizer))).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model, processor


def generate(parts, streamer=None, **request):
    model, processor = parts
    return model.generate(
        **processor(**request, return_tensors="pt"),
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        show_progress=False,
        output_trajectory=True,
        streamer=streamer,
    )


class Recorder(BaseStreamer):
    """Keeps every call."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append(("put", value))

    def put_draft(self, value=None, image=None):
        self.calls.append(("draft", value, image))

    def put_image(self, image):
        self.calls.append(("image", image))

    def end(self):
        self.calls.append(("end",))


class WordsOnly(BaseStreamer):
    """What transformers asks of a streamer of diffusion: no pictures."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append(("put", value))

    def put_draft(self, value):
        self.calls.append(("draft", value))

    def end(self):
        self.calls.append(("end",))


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self):
        return True


def until_end(row, end):
    return row[: row.index(end) + 1] if end in row else row


def test_a_streamer_gets_prompt_drafts_and_the_final_sample(parts):
    _, processor = parts
    streamer = Recorder()
    out = generate(parts, streamer, text="a zero", generate="joint")
    names = [call[0] for call in streamer.calls]
    assert names == ["put", *["draft"] * STEPS, "put", "image", "end"]
    end, prompt = processor.tokenizer.eos_token_id, processor(text="a zero")["input_ids"][0]
    assert streamer.calls[0][1].tolist() == [prompt]
    for step, (_, words, image) in enumerate(streamer.calls[1 : 1 + STEPS]):
        row = out.trajectory["text"][0, step, len(prompt) :].tolist()
        assert words.tolist() == [until_end(row, end)]
        torch.testing.assert_close(image, out.trajectory["image"][:, step])
    final = out.sequences[0, len(prompt) :].tolist()
    assert streamer.calls[-3][1].tolist() == [until_end(final, end)]
    torch.testing.assert_close(streamer.calls[-2][1], out.images)


def test_a_streamer_changes_nothing(parts):
    with_one = generate(parts, Recorder(), generate="joint")
    without = generate(parts, generate="joint")
    assert torch.equal(with_one.images, without.images)
    assert torch.equal(with_one.sequences, without.sequences)


def test_streamers_of_transformers_get_words_alone(parts, capsys):
    streamer = WordsOnly()
    generate(parts, streamer, text="a zero", generate="joint")
    assert [call[0] for call in streamer.calls] == ["put", *["draft"] * STEPS, "put", "end"]
    picture_only = WordsOnly()
    generate(parts, picture_only, text="a zero", generate="image")
    assert [call[0] for call in picture_only.calls] == ["put", "end"]
    # One that knows no drafts prints what is final.
    _, processor = parts
    text_streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    out = generate(parts, text_streamer, text="a zero", generate="text")
    assert capsys.readouterr().out.strip() == processor.post_process(out)[0].text.strip()


def test_several_items_are_refused(parts):
    with pytest.raises(ValueError, match=r"`streamer` shows one item, but this call writes 2"):
        generate(parts, Recorder(), text=["a zero", "a one"], generate="image")


def test_a_terminal_is_drawn_over_at_every_step(parts):
    _, processor = parts
    file = Terminal()
    out = generate(parts, MDMStreamer(processor, file=file), text="a zero", generate="joint")
    frames = file.getvalue().split("\033[J")[1:]
    assert len(frames) == STEPS + 2  # drafts, final words, final picture
    sample = processor.post_process(out)[0]
    lines = frames[-1].split("\n")
    assert lines[0].strip() == "a zero" and lines[1] == sample.text
    assert lines[2:6] == half_blocks(sample.image, 40)
    # Each frame goes up by as many lines as the one before it has.
    for before, up in zip(frames[:-1], file.getvalue().split("\033[J")[1:-1], strict=True):
        assert up.endswith(f"\033[{before.count(chr(10))}F")


def test_a_file_gets_the_final_words_only_and_skip_prompt_leaves_out_the_prompt(parts):
    _, processor = parts
    file = io.StringIO()
    streamer = MDMStreamer(processor, skip_prompt=True, file=file)
    out = generate(parts, streamer, text="a zero", generate="text")
    assert file.getvalue() == processor.post_process(out)[0].text + "\n"
    generate(parts, streamer, text="a zero", generate="text")  # and again
    assert file.getvalue() == 2 * (processor.post_process(out)[0].text + "\n")


def test_a_notebook_replaces_one_picture(parts, monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=shown.append)
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = type("ZMQInteractiveShell", (), {})
    display = types.ModuleType("IPython.display")
    display.display = lambda picture, display_id: handle
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    _, processor = parts
    generate(parts, MDMStreamer(processor), generate="joint")
    assert len(shown) == STEPS + 2
    assert all(isinstance(picture, Image.Image) for picture in shown)


def test_half_blocks_hold_two_pixels_each():
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    image.putpixel((1, 1), (200, 100, 50))
    (line,) = half_blocks(image, 10)
    assert line.count("▀") == 3
    assert line.split("▀")[1] == "\033[38;2;1;2;3m\033[48;2;200;100;50m"
    assert line.endswith("\033[0m")
    wide = half_blocks(Image.new("L", (28, 28)), 14)
    assert len(wide) == 7 and all(line.count("▀") == 14 for line in wide)


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_a_trajectory_is_saved_as_an_animated_picture(parts, tmp_path, ending):
    _, processor = parts
    out = generate(parts, generate="joint")
    path = save_trajectory(out, tmp_path / f"joint.{ending}", processor)
    with Image.open(path) as animation:
        assert animation.is_animated and animation.n_frames == STEPS
        animation.seek(STEPS - 1)
        last = animation.convert("RGB")
    assert last.size == (224, 240)
    picture = processor.post_process(out)[0].image.convert("RGB")
    for place in ((0, 0), (7, 3), (2, 6)):
        found = last.getpixel(tuple(28 * side + 14 for side in place))
        assert max(abs(a - b) for a, b in zip(found, picture.getpixel(place), strict=True)) < 24


def test_a_strip_shows_steps_of_each_sample_from_the_first_to_the_last(parts):
    model, processor = parts
    inputs = processor(generate="joint", return_tensors="pt")
    options = {"num_inference_steps": STEPS, "num_return_sequences": 2, "show_progress": False}
    out = model.generate(**inputs, **options, output_trajectory=True)
    # Three steps of two samples, each of its own grey, so that a cell tells which it is.
    levels = torch.linspace(-1, 1, 6).view(2, STEPS, 1, 1, 1)
    out.trajectory["image"] = levels.expand(2, STEPS, 1, 8, 8).clone()
    for columns, steps in ((2, [0, 2]), (3, [0, 1, 2]), (9, [0, 1, 2])):
        strip = trajectory_strip(out, processor, [1, 0], columns, picture_size=16)
        assert strip.width == 8 + len(steps) * 24
        greys = {strip.getpixel((8 + 24 * n + 8, 8 + 8))[0] for n in range(len(steps))}
        assert greys == {round((3 + step) * 255 / 5) for step in steps}
    (words,) = {step.text for step in shown_steps(out, processor, 1)[-1:]}
    assert words == processor.post_process(out)[1].text
    with pytest.raises(ValueError, match=r"`columns` is 1"):
        trajectory_strip(out, processor, columns=1)
    with pytest.raises(ValueError, match=r"`item` is 2"):
        trajectory_strip(out, processor, [2])


def test_what_cannot_be_animated_or_drawn_is_named(parts, tmp_path):
    _, processor = parts
    out = generate(parts, generate="text")
    with pytest.raises(ValueError, match=r"`path` is .*\.mp4': use one of the endings"):
        save_trajectory(out, tmp_path / "a.mp4", processor)
    with pytest.raises(ValueError, match=r"`item` is 1: this output has the samples 0 to 0"):
        save_trajectory(out, tmp_path / "a.gif", processor, item=1)
    out.trajectory = None
    with pytest.raises(ValueError, match=r"output_trajectory=True"):
        save_trajectory(out, tmp_path / "a.gif", processor)
    with pytest.raises(ValueError, match=r"`width` is 0"):
        MDMStreamer(processor, width=0)
