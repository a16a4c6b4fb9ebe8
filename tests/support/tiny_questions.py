# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions about pictures of one grey, and talks that show one."""

import numpy as np
from PIL import Image
from tiny_digits import ROOT

from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.garment_talks import FashionTalks
from modeling_mdm.data.pictures import PictureDataset, Source
from modeling_mdm.data.questions import FashionQuestions


def make_questions(**kwargs):
    labels = np.arange(200) % 10
    images = np.broadcast_to(labels[:, None, None] * 20, (200, 8, 8)).astype(np.uint8)
    return FashionQuestions(PictureDataset(Source(images, labels=labels)), **kwargs)


def talk(part, images=None):
    messages = [
        {"role": "user", "content": [part, {"type": "text", "text": "a zero"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a one"}]},
    ]
    return {"messages": messages} | ({} if images is None else {"images": images})


def save_picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(path)
    return str(path)


FASHION_CAPTIONS = ROOT / "examples" / "captions" / "fashion_mnist.json"


def make_pictures(count=400):
    labels = np.arange(count) % 10
    images = np.broadcast_to(labels[:, None, None] * 20, (count, 8, 8)).copy().astype(np.uint8)
    images[:, -1, -1] = np.arange(count) // 10  # tells two pictures of a class apart
    return PictureDataset(Source(images, labels=labels))


def make_talks(seed=0, weights=None):
    table = CaptionTable.from_json(FASHION_CAPTIONS)
    return FashionTalks(make_pictures(), table, seed, weights)
