# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Instruction tuning: conversations in, batches whose noisy region is one answer out.

Axis legend: batch, text_length, pictures, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from modeling_mdm.data.tasks import item_rng

Messages = list[dict[str, Any]]

# From this time on two answers of a trained model can hardly be told apart through their noise.
LATE = 0.8


class ConversationCollator:
    """Makes a batch of conversations; of each, one answer is written and all before it is given.

    An item holds `messages` (see `MDMProcessor.apply_chat_template`), perhaps `images`, the
    pictures of pieces that only say `{"type": "image"}`, and perhaps `seed`. Which of its answers
    is the noisy region is drawn from (seed, item["seed"]), so a long conversation teaches all of
    them in time. The region is as long as `max_new_tokens`, so that the length of an answer is
    learned from the `<pad>` after its `<end>`. An answer with a picture is a picture to be written.

    Args:
        processor: an `MDMProcessor`.
        max_new_tokens: length of the region of an answer; the processor's `max_text_length` if
            None.
        seed: seed of what is drawn.
        late: share of the items answered in words alone whose words get a time in [LATE, 1].
            Before that the noisy answer itself tells what it is, and the question teaches nothing.
        pad_to_multiple_of: rows of words are padded to a multiple of this: kernels are chosen and
            kept by shape, and conversations have many lengths.

    Raises:
        ValueError: if late is outside [0, 1]; when called, if a conversation has no answer, or an
            answer does not fit.
    """

    def __init__(
        self,
        processor: Any,
        max_new_tokens: int | None = None,
        seed: int = 0,
        late: float = 0.0,
        pad_to_multiple_of: int = 1,
    ) -> None:
        if not 0 <= late <= 1:
            raise ValueError(f"late={late} must be in [0, 1].")
        if pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of} must be at least 1.")
        self.processor = processor
        self.max_new_tokens = max_new_tokens or processor.max_text_length
        self.seed, self.late, self.pad_to_multiple_of = seed, late, pad_to_multiple_of

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch: the model's inputs, and `times` where any may be drawn late.

        These are NaN where the model is to draw them.
        """
        rngs = [item_rng(self.seed, item) for item in items]
        answers: list[Answer] = []
        try:
            for item, rng in zip(items, rngs, strict=True):
                answers.append(choose_answer(item, rng))
            batch: dict[str, Any] = self._encode(answers)
        except Exception:
            for answer in answers:
                self._encode([answer])  # the first that is at fault says what is wrong with it
            raise
        if self.late:
            times = [self._time(answer, rng) for answer, rng in zip(answers, rngs, strict=True)]
            batch["times"] = {"text": torch.tensor(times)}
        return batch

    def _time(self, answer: Answer, rng: np.random.Generator) -> float:
        if answer.has_picture or rng.random() >= self.late:
            return float("nan")
        return LATE + (1 - LATE) * rng.random()

    def _encode(self, answers: list[Answer]) -> dict[str, torch.Tensor]:
        """Make a batch of answers, with one call of the processor for each of their kinds."""
        places: dict[str, list[int]] = {}
        for place, answer in enumerate(answers):
            places.setdefault(answer.kind, []).append(place)
        groups = [
            self._questions(kind, [answers[place] for place in own]) for kind, own in places.items()
        ]
        pad = self.processor.tokenizer.pad_token_id
        batch = stack_inputs(groups, pad, self.pad_to_multiple_of)
        order = torch.tensor([place for own in places.values() for place in own]).argsort()
        batch = {name: value[order] for name, value in batch.items()}
        self._write_words(batch, answers)
        self._write_pictures(batch, answers)
        return batch

    def _questions(self, kind: str, answers: list[Answer]) -> dict[str, torch.Tensor]:
        """Make inputs of what is given before answers of one kind, with room for them."""
        inputs = dict(
            self.processor.apply_chat_template(
                [answer.before for answer in answers],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                generation_mode=kind,
                padding=True,
                padding_side="right",
                **({} if kind == "image" else {"max_new_tokens": self.max_new_tokens}),
            )
        )
        if "pixel_values" in inputs:
            _close_up(inputs, answers)
        return inputs

    def _write_words(self, batch: dict[str, torch.Tensor], answers: list[Answer]) -> None:
        words = [answer.words for answer in answers if answer.has_words]
        if not words:
            return
        as_words = {"add_special_tokens": False, "split_special_tokens": True}
        encoded = self.processor.tokenizer(words, **as_words)["input_ids"]
        rows = [self._region(text, ids) for text, ids in zip(words, encoded, strict=True)]
        region = batch["attention_mask"].bool() & ~batch["text_given"]
        batch["input_ids"][region] = torch.tensor(rows).flatten()

    def _region(self, words: str, ids: list[int]) -> list[int]:
        """Fill the region of an answer: its words, `<end>`, and `<pad>` up to its length."""
        tokenizer = self.processor.tokenizer
        missing = self.max_new_tokens - len(ids) - 1
        if missing < 0:
            raise ValueError(
                f"the answer {words!r:.60} has {len(ids) + 1} tokens with <end>, more than "
                f"max_new_tokens={self.max_new_tokens}; raise it, or shorten the answer."
            )
        return [*ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * missing]

    def _write_pictures(self, batch: dict[str, torch.Tensor], answers: list[Answer]) -> None:
        rows = [row for row, answer in enumerate(answers) if answer.has_picture]
        if not rows:
            return
        for row in rows:
            if (number := len(answers[row].pictures)) > 1:
                raise ValueError(
                    f"an answer has {number} pictures; a reply holds one, so split it."
                )
        pictures = [answers[row].pictures[0] for row in rows]
        if any(picture is None for picture in pictures):
            raise ValueError("an answer has None for its picture; give it one, or leave it out.")
        written = [answers[row].shown for row in rows]
        shown = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        batch["pixel_values"][rows, written] = shown


@dataclass
class Answer:
    """One answer of a conversation.

    Attributes:
        before: the messages before it.
        words: all of its words.
        pictures: all of its pictures.
        kind: its `generation_mode`.
        shown: how many pictures the messages before it show.
    """

    before: Messages
    words: str
    pictures: list[Any]
    kind: str
    shown: int

    @property
    def has_words(self) -> bool:
        """Whether words are written."""
        return self.kind != "image"

    @property
    def has_picture(self) -> bool:
        """Whether a picture is written."""
        return self.kind != "text"


def choose_answer(item: Mapping[str, Any], rng: np.random.Generator) -> Answer:
    """Draw one of the answers of an item, which holds `messages` and perhaps `images`.

    Raises:
        ValueError: if there is none, or `images` are too few or too many.
    """
    messages = place_images(item["messages"], item.get("images"))
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise ValueError(f"messages has no answer of the assistant: {messages!r:.200}.")
    chosen = answers[int(rng.integers(len(answers)))]
    before = messages[:chosen]
    words, pictures = words_and_pictures(messages[chosen])
    shown = sum(len(words_and_pictures(message)[1]) for message in before)
    return Answer(before, words, pictures, kind_of_answer(messages[chosen]), shown)


def _close_up(inputs: dict[str, torch.Tensor], answers: list[Answer]) -> None:
    """Put the picture to be written right behind the given ones, and absent ones last, in place.

    The processor puts it last in all rows, behind the absent ones of a row that shows fewer.
    """
    rows = torch.arange(len(answers))
    shown = torch.tensor([answer.shown for answer in answers])
    num_pictures = _num_pictures(inputs)
    inputs["image_given"] = given = inputs["image_given"].view(
        len(answers), num_pictures, *inputs["image_given"].shape[-2:]
    )
    if answers[0].has_picture:
        for value in (given, inputs.get("image_turn_ids")):
            if value is not None:
                value[rows, shown], value[:, -1] = value[:, -1].clone(), value[rows, shown]
        shown = shown + 1
    present = torch.arange(num_pictures) < shown[:, None]  # (batch, pictures)
    inputs["pixel_attention_mask"] = present[..., None, None].expand_as(given).long()


def place_images(messages: Messages, images: Sequence[Any] | None) -> Messages:
    """Put `images`, in order, into the pieces of messages that have none.

    Raises:
        ValueError: if there are more or fewer of them than such pieces.
    """
    waiting = list(images or [])
    placed = []
    for message in messages:
        content = message["content"]
        pieces = [{"type": "text", "text": content}] if isinstance(content, str) else content
        pieces = [{k: v for k, v in piece.items() if v is not None} for piece in pieces]
        for piece in pieces:
            if piece["type"] == "image" and not {"image", "url", "path", "base64"} & piece.keys():
                if not waiting:
                    raise ValueError(
                        f"images has {len(images or [])} pictures, fewer than the messages show."
                    )
                piece["image"] = waiting.pop(0)
        placed.append({**message, "content": pieces})
    if waiting:
        raise ValueError(f"images has {len(waiting)} pictures more than the messages show.")
    return placed


def words_and_pictures(message: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Give the words and the pictures of a message."""
    content = message["content"]
    if isinstance(content, str):
        return content, []
    words = "".join(piece["text"] for piece in content if piece["type"] == "text")
    keys = ("image", "url", "path", "base64")
    pictures = [
        next(piece[key] for key in keys if key in piece)
        for piece in content
        if piece["type"] == "image"
    ]
    return words, pictures


def kind_of_answer(message: Mapping[str, Any]) -> str:
    """Tell whether a message holds words, a picture or both, by its `generation_mode`."""
    words, pictures = words_and_pictures(message)
    return ("joint" if words else "image") if pictures else "text"


def stack_inputs(
    parts: list[dict[str, torch.Tensor]], pad: int, multiple: int = 1
) -> dict[str, torch.Tensor]:
    """Stack the inputs of several batches, with padding where one has fewer words or pictures.

    Args:
        parts: inputs of batches of one or more.
        pad: the id of `<pad>`. multiple: rows of words are as long as one of this.
    """
    sizes = [len(part["input_ids"]) for part in parts]
    longest = max(part["input_ids"].shape[1] for part in parts)
    shape = (sum(sizes), -(-longest // multiple) * multiple)
    batch: dict[str, torch.Tensor] = {}
    for name, filling in (
        ("input_ids", pad),
        ("attention_mask", 0),
        ("text_given", False),
        ("turn_ids", 0),
    ):
        dtype = torch.bool if name == "text_given" else torch.long
        batch[name] = torch.full(shape, filling, dtype=dtype)
        for rows, part in zip(batch[name].split(sizes), parts, strict=True):
            if name in part:
                rows[:, : part[name].shape[1]] = part[name]
    return batch | _stack_pictures(parts, sizes)


def _stack_pictures(
    parts: list[dict[str, torch.Tensor]], sizes: list[int]
) -> dict[str, torch.Tensor]:
    """Stack what the inputs of several batches, of these sizes, say of pictures, if there are."""
    most = max(map(_num_pictures, parts))
    if not most:
        return {}
    pixels = next(part["pixel_values"] for part in parts if "pixel_values" in part)
    shape = (sum(sizes), most)
    batch = {
        "pixel_values": torch.zeros(*shape, *pixels.shape[-3:]),
        "image_given": torch.ones(*shape, *pixels.shape[-2:], dtype=torch.bool),
        "pixel_attention_mask": torch.zeros(*shape, *pixels.shape[-2:], dtype=torch.long),
        "image_turn_ids": torch.zeros(shape, dtype=torch.long),
    }
    for name, table in batch.items():
        for rows, part in zip(table.split(sizes), parts, strict=True):
            if number := _num_pictures(part):
                view = rows[:, :number]
                usual = int(name != "image_turn_ids")
                view[:] = part[name].view_as(view) if name in part else usual
    return batch


def _num_pictures(part: Mapping[str, torch.Tensor]) -> int:
    """Count the pictures of a row, absent ones included."""
    if "pixel_values" not in part:
        return 0
    return 1 if part["pixel_values"].dim() == 4 else part["pixel_values"].shape[1]


def adapter_targets(model: nn.Module) -> list[str]:
    """Name the layers that adapters are put on: every projection of the decoder, and the heads.

    The VAE's encoder stays as it is, and with it the latents that the rest was trained on; for
    words that it never saw, see `unseen_words`. Its word head learns, or such a word would be
    denoised and then decoded as another. The heads that predict score entropy and importance
    stay, which no answer trains.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(("decoder.", "text_head", "image_head", "vae.word_head"))
        and ".selection." not in name
    ]


@torch.no_grad()
def unseen_words(model: Any, largest: float = 4.0) -> list[int]:
    """Ids of the words that a model was never trained on, told by their latents.

    Latents of what was trained are standardised: mean square about 1 a dimension. One that is far
    larger stays visible under any noise, and its word cannot be learned by denoising.

    Args:
        model: an `MDMForJointGeneration`.
        largest: mean square of a latent from which its word counts as unseen.
    """
    squares = model.vae.word_latents().float().square().mean(-1)  # (vocab,)
    return (squares > largest).nonzero().flatten().tolist()


@torch.no_grad()
def draw_embeddings(model: Any, words: Sequence[int]) -> None:
    """Draw embeddings of `words` anew, with mean and covariance of those of all other words.

    Raises:
        ValueError: if there are no other words.
    """
    weight = model.get_input_embeddings().weight  # (vocab, width)
    others = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    others[list(words)] = False
    if not others.any():
        raise ValueError(f"words names all {len(weight)} words: the model was never trained.")
    known = weight[others].float()
    # A mixture of all known embeddings around their mean has their covariance, whatever its rank.
    mixture = torch.randn(len(words), len(known), device=weight.device) / len(known) ** 0.5
    drawn = known.mean(0) + mixture @ (known - known.mean(0))
    weight[list(words)] = drawn.to(weight.dtype)
