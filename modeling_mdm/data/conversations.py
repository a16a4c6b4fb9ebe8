# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Instruction tuning: conversations in, batches whose noisy region is one answer out.

Axis legend: batch, text_length, pictures, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        rows = [self._one(item, rng) for item, rng in zip(items, rngs, strict=True)]
        batch: dict[str, Any] = stack_inputs(
            rows, self.processor.tokenizer.pad_token_id, self.pad_to_multiple_of
        )
        if self.late:
            times = [self._time(row, rng) for row, rng in zip(rows, rngs, strict=True)]
            batch["times"] = {"text": torch.tensor(times)}
        return batch

    def _time(self, row: Mapping[str, torch.Tensor], rng: np.random.Generator) -> float:
        draws_picture = "image_given" in row and not bool(row["image_given"].all())
        if draws_picture or rng.random() >= self.late:
            return float("nan")
        return LATE + (1 - LATE) * rng.random()

    def _one(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        messages = place_images(item["messages"], item.get("images"))
        answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise ValueError(f"messages has no answer of the assistant: {messages!r:.200}.")
        chosen = answers[int(rng.integers(len(answers)))]
        words, pictures = words_and_pictures(messages[chosen])
        kind = kind_of_answer(messages[chosen])
        inputs = dict(
            self.processor.apply_chat_template(
                messages[:chosen],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                generation_mode=kind,
                **({} if kind == "image" else {"max_new_tokens": self.max_new_tokens}),
            )
        )
        if kind != "image":
            self._write_words(inputs, words)
        if pictures:
            self._write_picture(inputs, pictures)
        return inputs

    def _write_words(self, inputs: dict[str, torch.Tensor], words: str) -> None:
        tokenizer = self.processor.tokenizer
        as_words = {"add_special_tokens": False, "split_special_tokens": True}
        answer = tokenizer(words, **as_words)["input_ids"]
        answer.append(tokenizer.eos_token_id)
        missing = self.max_new_tokens - len(answer)
        if missing < 0:
            raise ValueError(
                f"the answer {words!r:.60} has {len(answer)} tokens with <end>, more than "
                f"max_new_tokens={self.max_new_tokens}; raise it, or shorten the answer."
            )
        inputs["input_ids"][~inputs["text_given"]] = torch.tensor(
            answer + [tokenizer.pad_token_id] * missing
        )

    def _write_picture(self, inputs: dict[str, torch.Tensor], pictures: list[Any]) -> None:
        if len(pictures) > 1:
            raise ValueError(
                f"an answer has {len(pictures)} pictures; a reply holds one, so split it."
            )
        shown = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        if inputs["pixel_values"].dim() == 4:  # the answer's picture is the only one
            inputs["pixel_values"] = shown
        else:
            inputs["pixel_values"][:, -1] = shown


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
    rows: list[dict[str, torch.Tensor]], pad: int, multiple: int = 1
) -> dict[str, torch.Tensor]:
    """Stack the inputs of single items, with padding where one has fewer words or pictures.

    Args:
        rows: inputs of batches of one.
        pad: the id of `<pad>`. multiple: rows of words are as long as one of this.
    """
    batch: dict[str, torch.Tensor] = {}
    longest = max(row["input_ids"].shape[1] for row in rows)
    length = -(-longest // multiple) * multiple
    for name, filling in (
        ("input_ids", pad),
        ("attention_mask", 0),
        ("text_given", False),
        ("turn_ids", 0),
    ):
        table = rows[0]["input_ids"].new_full((len(rows), length), filling)
        for index, row in enumerate(rows):
            value = row.get(name, torch.zeros_like(row["input_ids"]))[0]
            table[index, : len(value)] = value
        batch[name] = table.bool() if name == "text_given" else table
    with_pictures = [row for row in rows if "pixel_values" in row]
    if not with_pictures:
        return batch
    shape = with_pictures[0]["pixel_values"].shape[-3:]
    most = max(_pictures(row) for row in with_pictures)
    size = (len(rows), most)
    batch["pixel_values"] = torch.zeros(*size, *shape)
    batch["image_given"] = torch.ones(*size, *shape[1:], dtype=torch.bool)
    batch["pixel_attention_mask"] = torch.zeros(*size, *shape[1:], dtype=torch.long)
    batch["image_turn_ids"] = torch.zeros(size, dtype=torch.long)
    for index, row in enumerate(rows):
        if count := _pictures(row):
            view = (count, *shape)
            batch["pixel_values"][index, :count] = row["pixel_values"].view(view)
            batch["image_given"][index, :count] = row["image_given"].view(count, *shape[1:])
            batch["pixel_attention_mask"][index, :count] = 1
            batch["image_turn_ids"][index, :count] = row.get("image_turn_ids", torch.zeros(1, 1))[0]
    return batch


def _pictures(row: Mapping[str, torch.Tensor]) -> int:
    if "pixel_values" not in row:
        return 0
    return 1 if row["pixel_values"].dim() == 4 else row["pixel_values"].shape[1]


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
