# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks as choices of what is given and what is to be written (MATH: a position is given or noisy).

Every task of the paper is one row of `TASKS`: what its text and its picture are, and what else it
starts from. A batch mixes tasks freely, because a task changes no shape, only masks.

Axis legend: batch, text_length, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from modeling_mdm.data.encoded import stack_codes
from modeling_mdm.data.shards import CodedPicture

NO_CLASS = -1


class Task(NamedTuple):
    """What one task gives and what it asks for.

    `"partly"` means that some words are hidden or some pixels are to be repainted, `"started"` that
    the first words are given and all that follows is written, its length too.
    """

    text: Literal["given", "written", "partly", "started", "absent"]
    image: Literal["given", "written", "partly", "absent"]
    from_class: bool = False
    from_prompt: bool = False


TASKS: dict[str, Task] = {
    "joint": Task("written", "written"),
    "class_to_joint": Task("written", "written", from_class=True),
    "prompt_to_joint": Task("written", "written", from_prompt=True),
    "prefix_to_joint": Task("started", "written"),
    "text_to_image": Task("given", "written"),
    "class_to_image": Task("absent", "written", from_class=True),
    "image": Task("absent", "written"),
    "captioning": Task("written", "given"),
    "question_answering": Task("written", "given", from_prompt=True),
    "text_to_text": Task("written", "absent", from_prompt=True),
    "text": Task("written", "absent"),
    "inpainting": Task("given", "partly"),
    "inpainting_without_text": Task("absent", "partly"),
    "infill": Task("partly", "given"),
    "infill_without_image": Task("partly", "absent"),
}

# For captioned, labelled pictures. The three tasks that a data set is judged by come first; tasks
# that start from a prompt are drawn only where items have one. Words that go on from their first
# ones are asked for by name: every task takes its share from the others.
DEFAULT_WEIGHTS: dict[str, float] = {
    "joint": 0.40,
    "text_to_image": 0.25,
    "captioning": 0.15,
    "class_to_image": 0.04,
    "class_to_joint": 0.02,
    "inpainting": 0.03,
    "inpainting_without_text": 0.03,
    "infill": 0.04,
    "infill_without_image": 0.04,
    "text_to_text": 0.05,
    "question_answering": 0.05,
    "prompt_to_joint": 0.05,
}


@dataclass(frozen=True)
class TaskMixture:
    """How often each task is drawn.

    Args:
        weights: a weight >= 0 for each task by its name in `TASKS`; they need not sum to 1, and a
            task that is not named is never drawn.

    Raises:
        ValueError: if a name is unknown, a weight is negative or not finite, or all weights are 0.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))

    def __post_init__(self) -> None:
        weights = {name: float(weight) for name, weight in self.weights.items()}
        object.__setattr__(self, "weights", weights)
        for name, weight in weights.items():
            if name not in TASKS:
                raise ValueError(
                    f"weights names the task {name!r}: choose among {', '.join(TASKS)}."
                )
            if not (np.isfinite(weight) and weight >= 0):
                raise ValueError(f"weights[{name!r}]={weight} must be finite and >= 0.")
        if not any(weights.values()):
            raise ValueError(f"weights={weights} must hold at least one weight above 0.")

    def draw(self, item: Mapping[str, Any], rng: np.random.Generator) -> str:
        """Draw a task out of those that an item holds enough for.

        Raises:
            ValueError: if no task of the mixture fits the item.
        """
        names, weights = self._possible(
            *(item.get(key) is not None for key in ("text", "image", "label", "prompt"))
        )
        if not names:
            present = [key for key, value in item.items() if value is not None]
            raise ValueError(
                f"weights={dict(self.weights)} has no task for an item that holds only {present}: "
                f"give a weight to one of {', '.join(TASKS)} that needs nothing else."
            )
        return names[int(np.searchsorted(weights, rng.random(), side="right"))]

    def _possible(
        self, text: bool, image: bool, label: bool, prompt: bool
    ) -> tuple[list[str], np.ndarray]:
        """Return the tasks that these allow and the cumulated shares of all but the last."""
        names = [
            name
            for name, weight in self.weights.items()
            if weight > 0
            and (text or TASKS[name].text == "absent")
            and (image or TASKS[name].image == "absent")
            and (label or not TASKS[name].from_class)
            and (prompt or not TASKS[name].from_prompt)
        ]
        weights = np.cumsum([self.weights[name] for name in names])
        return names, weights[:-1] / weights[-1] if names else weights


class SeededItems(torch.utils.data.Dataset[dict[str, Any]]):
    """A data set whose items carry a `seed` made of (seed, epoch, index).

    With it everything that is drawn for an item depends on the item's place in training alone: not
    on the number of workers, on what was drawn before, or on whether the run was interrupted.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed
        # In shared memory: a set_epoch in the main process reaches persistent workers.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose seeds are given out, here and in the data set itself."""
        self._epoch.fill_(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    @property
    def skipped(self) -> Any:
        """What the data set says that it has skipped."""
        return getattr(self.dataset, "skipped", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = dict(self.dataset[index])
        if item.get("seed") is None:
            entropy = np.random.SeedSequence((self.seed, int(self._epoch), int(index)))
            item["seed"] = int(entropy.generate_state(1, np.uint64)[0])
        return item


def with_seeds(dataset: Any, seed: int) -> Any:
    """Give seeds to the items of a data set, or of each of several by name; a stream stays."""
    if isinstance(dataset, dict):
        return {name: with_seeds(own, seed) for name, own in dataset.items()}
    if dataset is None or isinstance(dataset, (SeededItems, torch.utils.data.IterableDataset)):
        return dataset
    return SeededItems(dataset, seed)


def item_rng(seed: int, item: Mapping[str, Any], *stream: int) -> np.random.Generator:
    """Make the generator of what is drawn for an item, by (seed, item["seed"]) and a stream.

    Without a seed of its own the item gets one from torch's random state.
    """
    own = item.get("seed")
    if own is None:
        own = int(torch.randint(2**62, ()))
    return np.random.default_rng((seed, int(own), *stream))


class MDMDataCollator:
    """Makes a batch of items, each with a task of its own.

    An item is a dictionary with `image` (PIL picture or array), `text`, `label` and optionally
    `prompt` (a text that comes before the one to be written) and `seed`; each may be None.
    The draws for an item depend on (seed, item["seed"]); without a seed they come from torch's
    random state, and a resumed run then draws other tasks.

    Args:
        processor: an `MDMProcessor`.
        mixture: how often each task is drawn.
        seed: seed of tasks, hidden and first words, and repainted regions.
        truncation: cut texts that are longer than the text region instead of raising.

    Returns, when called with a list of items:
        A dictionary of `input_ids`, `attention_mask`, `text_given` (batch, text_length),
        `pixel_values` (batch, channels, height, width), or of pictures that were coded
        `image_codes` (batch, rows, columns), `image_given`, `pixel_attention_mask`
        (batch, height, width) and `class_labels` (batch,), -1 where no class is given. A modality
        that no item has is left out. If any item starts from a prompt, rows of text are longer by
        the longest prompt, and there are `turn_ids` (batch, text_length) and, with pictures,
        `image_turn_ids` (batch, 1).

    Raises:
        ValueError: if no task of the mixture fits an item.
    """

    def __init__(
        self,
        processor: Any,
        mixture: TaskMixture | None = None,
        seed: int = 0,
        truncation: bool = False,
    ) -> None:
        self.processor = processor
        self.mixture = TaskMixture() if mixture is None else mixture
        self.seed = seed
        self.truncation = truncation

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Draw a task for each item, and make a batch of them."""
        rngs = [item_rng(self.seed, item) for item in items]
        tasks = [TASKS[self.mixture.draw(item, rng)] for item, rng in zip(items, rngs, strict=True)]
        encoded = self._encode(items)
        batch: dict[str, torch.Tensor] = {}
        if "input_ids" in encoded:
            batch |= self._text(encoded, tasks, rngs)
        if "pixel_values" in encoded or "image_codes" in encoded:
            batch |= self._image(encoded, tasks, rngs)
        labels = [
            item["label"] if task.from_class else NO_CLASS
            for item, task in zip(items, tasks, strict=True)
        ]
        batch["class_labels"] = torch.tensor(labels, dtype=torch.long)
        if any(task.from_prompt for task in tasks):
            self._put_prompts_first(batch, items, tasks)
        return batch

    def _encode(self, items: Sequence[Mapping[str, Any]]) -> Mapping[str, torch.Tensor]:
        """Run the processor once, over what the items have of each modality."""
        columns = {"text": [item.get("text") for item in items]}
        pictures = [item.get("image") for item in items]
        coded: dict[str, torch.Tensor] = {}
        if any(isinstance(picture, CodedPicture) for picture in pictures):
            coded["image_codes"] = stack_codes(pictures)
            if not any(text is not None for text in columns["text"]):
                return coded
        else:
            columns["images"] = pictures
        encoded = self.processor(
            **{
                name: column
                for name, column in columns.items()
                if any(value is not None for value in column)
            },
            truncation=self.truncation,
            padding="max_length",
            return_tensors="pt",
        )
        return {**encoded, **coded}

    @staticmethod
    def _text(
        encoded: Mapping[str, torch.Tensor], tasks: list[Task], rngs: list[np.random.Generator]
    ) -> dict[str, torch.Tensor]:
        words = encoded["attention_mask"].numpy() != 0  # (batch, text_length), <end> included
        exists, given = words.copy(), words.copy()
        for row, (task, rng) in enumerate(zip(tasks, rngs, strict=True)):
            if task.text == "absent":
                exists[row] = given[row] = False
            elif task.text == "written":
                # The length is learned from the <pad> words that follow <end>.
                exists[row], given[row] = True, False
            elif task.text == "partly":
                given[row, draw_hidden_words(int(words[row].sum()), rng)] = False
            elif task.text == "started":
                exists[row] = True
                given[row, draw_prefix(int(words[row].sum()), rng) :] = False
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": torch.from_numpy(exists).long(),
            "text_given": torch.from_numpy(given),
        }

    def _image(
        self,
        encoded: Mapping[str, torch.Tensor],
        tasks: list[Task],
        rngs: list[np.random.Generator],
    ) -> dict[str, torch.Tensor]:
        name, side = "pixel_values", 1
        if "image_codes" in encoded:  # which stand for patches
            name, side = "image_codes", self.processor.patch_size
        batch, height, width = len(encoded[name]), *encoded[name].shape[-2:]
        size = (batch, height * side, width * side)  # in pixels
        exists, given = np.ones(size, dtype=bool), np.ones(size, dtype=bool)
        for row, (task, rng) in enumerate(zip(tasks, rngs, strict=True)):
            if task.image == "absent":
                exists[row] = given[row] = False
            elif task.image == "written":
                given[row] = False
            elif task.image == "partly":
                given[row][draw_region(*size[1:], rng)] = False
        return {
            name: encoded[name],
            "image_given": torch.from_numpy(given),
            "pixel_attention_mask": torch.from_numpy(exists).long(),
        }

    def _put_prompts_first(
        self,
        batch: dict[str, torch.Tensor],
        items: Sequence[Mapping[str, Any]],
        tasks: list[Task],
    ) -> None:
        """Lay out (prompt, text, alignment) in the rows that have a prompt, in place.

        The prompt is given and belongs to turn 0; what is written after it is turn 1, as when the
        processor is asked to generate from a prompt.
        """
        rows = [row for row, task in enumerate(tasks) if task.from_prompt]
        prompts = self.processor(
            text=[items[row]["prompt"] for row in rows],
            truncation=self.truncation,
            padding="max_length",
            return_tensors="pt",
        )
        num_words = prompts["attention_mask"].sum(dim=1).tolist()
        size, length = batch["input_ids"].shape
        turn_ids = torch.zeros_like(batch["input_ids"])
        turn_ids[rows] = 1
        columns = {name: batch[name] for name in ("input_ids", "attention_mask", "text_given")}
        columns["turn_ids"] = turn_ids
        filling = {"input_ids": int(self.processor.tokenizer.pad_token_id)}
        before = {"attention_mask": 1, "text_given": True, "turn_ids": 0}
        for name, column in columns.items():
            shape = (size, length + max(num_words))
            table = column.new_full(shape, filling.get(name, 0))
            table[:, :length] = column
            for row, start, words in zip(rows, num_words, prompts["input_ids"], strict=True):
                table[row, start : start + length] = column[row]
                table[row, :start] = before.get(name, words[:start])
            batch[name] = table
        if "image_given" in batch:
            written = [int(task.from_prompt and task.image == "written") for task in tasks]
            batch["image_turn_ids"] = torch.tensor(written)[:, None]


def draw_hidden_words(num_words: int, rng: np.random.Generator) -> np.ndarray:
    """Draw which of `num_words` words (the last is `<end>`) are hidden: one, or one to all.

    Returns:
        Distinct positions in [0, num_words - 1); 0 where a text has no word but `<end>`.
    """
    candidates = max(num_words - 1, 1)
    hidden = 1 if rng.random() < 0.5 else int(rng.integers(1, candidates + 1))
    return rng.permutation(candidates)[:hidden]


def draw_prefix(num_words: int, rng: np.random.Generator) -> int:
    """Draw how many of `num_words` words (the last is `<end>`) are given: one to all but one.

    Returns:
        A number in [1, max(num_words - 2, 1)], so that a lone word is given; 0 where a text has no
        word but `<end>`.
    """
    return int(rng.integers(1, max(num_words - 2, 1) + 1)) if num_words > 1 else 0


def draw_region(height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Draw what is repainted: one of the four halves, or a rectangle of 1/4 to 3/4 of each side.

    Returns:
        The rows and the columns of the region, at least one pixel of each.
    """
    if rng.random() < 0.5:
        every_row, every_column = slice(0, height), slice(0, width)
        halves = (
            (slice(0, max(height // 2, 1)), every_column),
            (slice(height // 2, height), every_column),
            (every_row, slice(0, max(width // 2, 1))),
            (every_row, slice(width // 2, width)),
        )
        return halves[int(rng.integers(4))]
    return _span(height, rng), _span(width, rng)


def _span(length: int, rng: np.random.Generator) -> slice:
    size = int(rng.integers(max(length // 4, 1), max(3 * length // 4, 1) + 1))
    start = int(rng.integers(length - size + 1))
    return slice(start, start + size)
