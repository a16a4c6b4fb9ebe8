# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every path that reads a picture turns it upright, before anything else touches its pixels."""

import base64
import functools
import io
import types

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_digits import ROOT, load_script
from tiny_digits import make_processor as train_processor
from transformers import image_utils

from modeling_mdm.cli import commands
from modeling_mdm.data.conversations import ConversationCollator
from modeling_mdm.data.pictures import PictureDataset, Source, flip_and_shift, load_training_data
from modeling_mdm.data.streams import MixedStream, StreamSource, crop_to_ratio
from modeling_mdm.data.tasks import MDMDataCollator, TaskMixture
from modeling_mdm.display.pictures import contact_sheet
from modeling_mdm.evaluation.judge import JudgeConfig, pictures_to_tensor
from modeling_mdm.processor.image_processing_mdm import MDMImageProcessor
from modeling_mdm.processor.image_processing_pil_mdm import (
    MDMImageProcessorPil,
    open_picture,
    upright,
)
from modeling_mdm.processor.samples import MDMSample

make_processor = functools.cache(train_processor)
ORIENTATION = 274  # the tag of EXIF
# From the pixels as they are stored (height, width) to those to be seen, by the tag's definition.
TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: np.rot90,
}


def as_png(pixels, orientation=None):
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", exif=exif)
    return file.getvalue()


def opened(content):
    return Image.open(io.BytesIO(content))


def pixels_of(image):
    return np.asarray(image.convert("L"))


# Each takes an encoded picture and gives what a user of that path would see.


def by_processor(kind, form):
    def read(content, folder):
        path = folder / "picture.png"
        path.write_bytes(content)
        forms = {
            "pil": lambda: opened(content),
            "copied": lambda: opened(content).copy(),
            "bytes": lambda: content,
            "path": lambda: path,
            "string": lambda: str(path),
            "base64": lambda: "data:image/png;base64," + base64.b64encode(content).decode(),
        }
        processor = kind(size={"height": 4, "width": 8}, num_channels=1)
        return processor(images=[forms[form]()], return_tensors="pt").pixel_values.numpy()

    return read


def by_message(key):
    def read(content, folder):
        path = folder / "picture.png"
        path.write_bytes(content)
        form = {"image": opened(content), "path": str(path), "url": str(path)}[key]
        messages = [
            {"role": "user", "content": [{"type": "image", key: form}]},
            {"role": "assistant", "content": [{"type": "text", "text": "one"}]},
        ]
        batch = ConversationCollator(make_processor())([{"messages": messages, "seed": 0}])
        return batch["pixel_values"].numpy()

    return read


def answer_of_a_conversation(content, folder):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": [{"type": "image", "image": content}]},
    ]
    return ConversationCollator(make_processor())([{"messages": messages, "seed": 0}])[
        "pixel_values"
    ].numpy()


def stream(content, folder, size=(4, 8)):
    table = {"image": [{"bytes": content, "path": None}], "text": ["a"]}
    datasets.Dataset.from_dict(table).to_parquet(folder / "a.parquet")
    source = StreamSource("parquet", data_files={"train": str(folder / "a.parquet")})
    return pixels_of(next(iter(MixedStream([source], size)))["image"])


def folder_of_pictures(content, folder, **options):
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(content)
    (folder / "pictures" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n')
    return pixels_of(load_training_data(str(folder / "pictures"), **options)[0]["image"])


def in_memory(content, folder, **options):
    return pixels_of(PictureDataset(Source([opened(content)], texts=["a"]), **options)[0]["image"])


def collated(content, folder):
    collate = MDMDataCollator(make_processor(), TaskMixture({"image": 1.0}))
    return collate([{"image": opened(content), "text": None, "seed": 0}])["pixel_values"].numpy()


def command_line(option):
    def read(content, folder, monkeypatch):
        path, asked = folder / "picture.png", {}
        path.write_bytes(content)
        real = make_processor()

        class Stop(Exception):
            pass

        def processor(**request):
            asked.update(real(**request))
            raise Stop

        processor.image_processor = real.image_processor
        monkeypatch.setattr(commands, "load", lambda chosen: (None, processor))
        grey = folder / "grey.png"
        grey.write_bytes(as_png(np.full((8, 8), 100, np.uint8)))
        names = ("mask", "image", "text", "class_label", "watch", "num_samples", "generation_mode")
        chosen = types.SimpleNamespace(**dict.fromkeys(names))
        chosen.num_samples, chosen.generation_mode = 1, "image" if option == "mask" else "text"
        chosen.device, chosen.bf16 = "cpu", "false"
        chosen.image = str(grey if option == "mask" else path)
        chosen.mask = str(path) if option == "mask" else None
        with pytest.raises(Stop):
            commands.generate(chosen)
        return asked["image_given" if option == "mask" else "pixel_values"].numpy()

    return read


def app(content, folder):
    app = load_script(ROOT / "examples" / "app.py")
    studio = object.__new__(app.Studio)
    studio.processor = make_processor()
    picture, _ = studio.read_editor({"background": opened(content)})
    return pixels_of(picture)


def app_enlarged(content, folder):
    app = load_script(ROOT / "examples" / "app.py")
    return pixels_of(app.enlarged({"background": opened(content)})["background"])


PATHS = {
    **{
        f"{kind.__name__}-{form}": by_processor(kind, form)
        for kind in (MDMImageProcessor, MDMImageProcessorPil)
        for form in ("pil", "copied", "bytes", "path", "string", "base64")
    },
    **{f"message-{key}": by_message(key) for key in ("image", "path", "url")},
    "answer": answer_of_a_conversation,
    "stream": stream,
    "stream-uncut": lambda content, folder: stream(content, folder, None),
    "folder": folder_of_pictures,
    "folder-augmented": lambda *given: folder_of_pictures(*given, augment=True),
    "memory": in_memory,
    "memory-augmented": lambda *given: in_memory(*given, augment=True),
    "collator": collated,
    "crop": lambda content, folder: pixels_of(crop_to_ratio(opened(content), (4, 8))),
    "augmentation": lambda content, folder: pixels_of(
        flip_and_shift(opened(content), np.random.default_rng(3))
    ),
    "cli-image": command_line("image"),
    "cli-mask": command_line("mask"),
    "app": app,
    "app-enlarged": app_enlarged,
    "judge": lambda content, folder: pictures_to_tensor(
        [opened(content)], JudgeConfig(num_classes=2, image_size=(4, 8), num_channels=1, widths=[4])
    ).numpy(),
    "sheet": lambda content, folder: pixels_of(contact_sheet([MDMSample("a", opened(content))])),
    "open_picture": lambda content, folder: pixels_of(open_picture(content)),
}


@pytest.mark.parametrize("path", PATHS)
def test_a_turned_picture_is_read_as_if_it_had_been_stored_upright(path, tmp_path, monkeypatch):
    stored = np.random.default_rng(0).integers(0, 256, (12, 20), dtype=np.uint8)
    more = [monkeypatch] if path.startswith("cli") else []
    for orientation, turn in TURNS.items():
        seen = []
        for name, content in (
            (f"turned-{orientation}", as_png(stored, orientation)),
            (f"plain-{orientation}", as_png(turn(stored))),
        ):
            folder = tmp_path / name
            folder.mkdir()
            seen.append(PATHS[path](content, folder, *more))
        assert seen[0].shape == seen[1].shape, orientation
        np.testing.assert_array_equal(seen[0], seen[1], err_msg=f"orientation {orientation}")


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_turned_once(orientation):
    stored = np.random.default_rng(1).integers(0, 256, (3, 5), dtype=np.uint8)
    once = upright(opened(as_png(stored, orientation)))
    np.testing.assert_array_equal(np.asarray(once), TURNS[orientation](stored))
    for again in (upright(once), upright(once.copy()), upright(once.convert("RGB").convert("L"))):
        np.testing.assert_array_equal(np.asarray(again), np.asarray(once))
    file = io.BytesIO()
    once.save(file, "PNG")
    np.testing.assert_array_equal(np.asarray(open_picture(file.getvalue())), np.asarray(once))


def test_a_picture_of_a_url_is_turned(monkeypatch):
    stored = np.random.default_rng(2).integers(0, 256, (6, 8), dtype=np.uint8)
    answer = types.SimpleNamespace(content=as_png(stored, 6))
    client = types.SimpleNamespace(get=lambda *_, **__: answer)
    monkeypatch.setattr(image_utils, "httpx", client, raising=False)
    processor = MDMImageProcessor(size={"height": 8, "width": 6}, num_channels=1)
    pixels = processor(images=["https://x/a.png"], return_tensors="pt").pixel_values
    expected = torch.from_numpy(TURNS[6](stored).copy()).float() / 127.5 - 1
    torch.testing.assert_close(pixels[0, 0], expected, atol=0.005, rtol=0)


def test_broken_exif_data_do_not_hide_a_picture():
    pixels = np.random.default_rng(3).integers(0, 256, (4, 6), dtype=np.uint8)
    for data in (b"Exif\0\0" + b"garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", exif=data)
        np.testing.assert_array_equal(np.asarray(open_picture(file.getvalue())), pixels)
