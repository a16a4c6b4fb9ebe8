# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions with short answers, made from the labels of Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import PictureDataset

# Classes in Fashion-MNIST's order, as the first names of examples/captions/fashion_mnist.json.
GARMENTS = (
    *("a t-shirt", "a pair of trousers", "a pullover", "a dress", "a coat"),
    *("a sandal", "a shirt", "a sneaker", "a bag", "an ankle boot"),
)
YES_OR_NO = {
    "is this footwear?": {5, 7, 9},
    **{f"is this {name}?": {label} for label, name in enumerate(GARMENTS)},
}
WHAT, WHICH = "what is this?", "which of these two is {}?"
DRAWING = "draw"
KINDS = ("yes or no", "what", "which")


class FashionQuestions(torch.utils.data.Dataset[dict[str, Any]]):
    """One question a picture, as `messages`; which depends on (seed, epoch, index) alone.

    Kinds: "yes or no" (footwear, or one of the ten classes; half of the answers are yes), "what"
    (the class is this), "which" (first or second of two pictures of different classes).

    Args:
        pictures: pictures with labels.
        seed: seed of the questions, >= 0.
        drawings: share of items that ask for a picture by a caption instead, which keeps a model
            from forgetting how.
        captions: names and templates of those captions; needed with drawings.
        weights: how often each of `kinds` is drawn, beside the others; None for equally often.

    Raises:
        ValueError: if seed is negative, drawings is outside [0, 1), weights are not one
            non-negative number a kind with a positive sum, or there are no labels.
    """

    kinds: tuple[str, ...] = KINDS

    def __init__(
        self,
        pictures: PictureDataset,
        seed: int = 0,
        drawings: float = 0.0,
        captions: CaptionTable | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed} must be >= 0.")
        if not 0 <= drawings < 1:
            raise ValueError(f"drawings={drawings} must be in [0, 1).")
        if drawings and captions is None:
            raise ValueError(f"drawings={drawings} needs captions: pass a CaptionTable.")
        weights = [1.0] * len(self.kinds) if weights is None else list(weights)
        if len(weights) != len(self.kinds) or min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(
                f"weights={weights} must be {len(self.kinds)} numbers >= 0, of {self.kinds}, not "
                "all 0."
            )
        labels = pictures.labels
        if labels is None or None in labels:
            raise ValueError("pictures has items without a label: questions are made of labels.")
        self.pictures, self.seed, self.drawings, self.captions = pictures, seed, drawings, captions
        self.labels = np.asarray(labels)
        up_to = np.cumsum(weights)
        self._up_to = up_to / up_to[-1]
        # In shared memory: a set_epoch in the main process reaches persistent workers.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose questions are drawn."""
        self._epoch.fill_(epoch)
        self.pictures.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        if rng.random() < self.drawings:
            image, label = self._shown(index)
            return as_item(DRAWING, [], self.captions.draw(label, rng), [as_part(image)])
        return self._ask(
            self.kinds[int(np.searchsorted(self._up_to, rng.random(), side="right"))], index, rng
        )

    def _ask(self, kind: str, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Make an item of one of `kinds`."""
        if kind == "yes or no":
            return self._yes_or_no(index, rng)
        if kind == "what":
            image, label = self._shown(index)
            return as_item(kind, [image], WHAT, GARMENTS[label])
        return self._which(index, rng)

    def _shown(self, index: int) -> tuple[Any, int]:
        """Return a picture and its own class: another stands in for one that is damaged."""
        item = self.pictures[index]
        return item["image"], int(item["label"])

    def _yes_or_no(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        question, classes = list(YES_OR_NO.items())[int(rng.integers(len(YES_OR_NO)))]
        answer = bool(rng.integers(2))
        if (self.labels[index] in classes) != answer:
            index = self._draw_index(np.isin(self.labels, [*classes]) == answer, rng)
        image, label = self._shown(index)
        return as_item("yes or no", [image], question, "yes" if label in classes else "no")

    def _which(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        other = self._draw_index(self.labels != self.labels[index], rng)
        pair = [index, other]
        asked = int(rng.integers(2))
        if rng.integers(2):
            pair.reverse()
        images, labels = zip(*map(self._shown, pair), strict=True)
        question = WHICH.format(GARMENTS[labels[asked]])
        return as_item("which", list(images), question, ("first", "second")[asked])

    @staticmethod
    def _draw_index(fits: np.ndarray, rng: np.random.Generator) -> int:
        (indices,) = np.nonzero(fits)
        return int(indices[int(rng.integers(len(indices)))])


def as_part(image: Any) -> dict[str, Any]:
    """Make the piece of a message that shows a picture."""
    return {"type": "image", "image": image}


def as_item(kind: str, images: list[Any], question: str, answer: Any) -> dict[str, Any]:
    """Make an item of one question and its answer: words, or the pieces of a message."""
    asked = [*map(as_part, images), {"type": "text", "text": question}]
    said = [{"type": "text", "text": answer}] if isinstance(answer, str) else answer
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": said},
    ]
    return {"kind": kind, "messages": messages}
