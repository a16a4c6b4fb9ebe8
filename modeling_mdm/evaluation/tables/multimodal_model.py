# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""lmms-eval's view of an MDM: answers about pictures by `generate()`, choices by `score()`.

::

    python -m lmms_eval --model mdm --tasks vqav2_val \\
        --model_args pretrained=FOLDER,num_inference_steps=30 --device cpu

The pictures and the words of a task are what the user says. lmms-eval takes the choice with the
least loss, so `loglikelihood` gives minus `score`'s lower bound, in nats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm.auto import tqdm

from modeling_mdm.evaluation.sampling import evaluating
from modeling_mdm.evaluation.tables.processes import item_noise
from modeling_mdm.evaluation.tables.samples import cut_at
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.loading import load_pretrained, require_device

PLACE_OF_A_PICTURE = "<image>"  # some tasks write where it goes; here it goes first
Document = tuple[str, str, Any]  # task, split, number


class MDMMultimodalModel(lmms):
    """An MDM that lmms-eval measures.

    Args:
        pretrained: folder or Hub id of a model and its processor.
        num_evaluations: of the network for each choice.
        num_inference_steps: of each answer that is written.
        max_new_tokens: words of an answer where the task names none; the processor's
            `max_text_length` if None.
        batch_size: answers that are written at a time, a number: nothing looks for the largest.
        max_batch_size: of no effect.
        device: of the model. seed: of all noise.

    Raises:
        ValueError: a number below 1, or a device that cannot be used here.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        num_evaluations: int = 32,
        num_inference_steps: int = 30,
        max_new_tokens: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_device("device", device)
        if not str(batch_size).isdecimal() or not int(batch_size):
            raise ValueError(f"batch_size={batch_size!r} must be a whole number, and at least 1.")
        self.num_evaluations, self.num_inference_steps = num_evaluations, num_inference_steps
        self.max_new_tokens, self.batch_size, self.seed = max_new_tokens, int(batch_size), seed
        for name in ("num_evaluations", "num_inference_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1.")
        self.processor = load_pretrained(MDMProcessor, "pretrained", pretrained)
        self.model = load_pretrained(MDMForJointGeneration, "pretrained", pretrained).to(device)
        self.device = torch.device(device)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Write an answer to each request, cut at its first stop.

        A request's `until` holds the stops and `max_new_tokens` the length of the region;
        temperatures and beams are not an MDM's.
        """
        fallback = self.max_new_tokens or self.processor.max_text_length
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            by_length[int(request.args[1].get("max_new_tokens", fallback))].append(place)
        found = [""] * len(requests)
        with self._working("generate_until", len(requests)) as bar:
            for length, places in by_length.items():
                for some in _batches(places, self.batch_size):
                    texts = self._write([requests[place] for place in some], length)
                    for place, text in zip(some, texts, strict=True):
                        found[place] = cut_at(text, requests[place].args[1].get("until"))
                    bar.update(len(some))
        return found

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Give the loss of each continuation, and False: an MDM writes all words at once.

        The choices of a document see the same noise. lmms-eval 0.7.3 makes a string of a bare pair,
        which none of its ranked tasks can read; what it is given as a `GenerationResult` it leaves.
        """
        by_document: dict[Document, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            by_document[_document(request)].append(place)
        losses = [0.0] * len(requests)
        with self._working("loglikelihood", len(by_document)) as bar:
            for document, places in by_document.items():
                found = self._score(document, [requests[place] for place in places])
                for place, loss in zip(places, found, strict=True):
                    losses[place] = loss
                bar.update()
        return [GenerationResult((loss, False)) for loss in losses]  # type: ignore[arg-type]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("mdm answers tasks of one round: leave out those of several.")

    def _working(self, what: str, total: int) -> Any:
        self.model.eval()
        return tqdm(total=total, desc=f"mdm, {what}", disable=self.rank != 0)

    def _write(self, requests: Sequence[Instance], length: int) -> list[str]:
        asked = [[self._turn(request, _document(request), request.args[2])] for request in requests]
        inputs = self._chat(asked, add_generation_prompt=True, max_new_tokens=length)
        with evaluating(self.model):
            out = self.model.generate(
                **inputs,
                num_inference_steps=self.num_inference_steps,
                generator=[item_noise(self.seed, *_document(one)) for one in requests],
                show_progress=False,
            )
        return [sample.text or "" for sample in self.processor.post_process(out, inputs)]

    def _score(self, document: Document, requests: Sequence[Instance]) -> list[float]:
        talks = []
        for request in requests:
            said = request.args[1]
            said = said(self._row(document)) if callable(said) else said
            turn = self._turn(request, document, request.args[2])
            talks.append([turn, {"role": "assistant", "content": said.strip()}])
        with evaluating(self.model):
            out = self.model.score(
                **self._chat(talks),
                content="text",
                num_evaluations=self.num_evaluations,
                generator=item_noise(self.seed, *document),
            )
        return [-value for value in out.log_likelihood.tolist()]

    def _row(self, document: Document) -> Any:
        task, split, number = document
        return self.task_dict[task][split][number]

    def _turn(self, request: Instance, document: Document, see: Any) -> dict[str, Any]:
        """What the user says: the pictures, then the words."""
        pictures = list(see(self._row(document)) or []) if see else []
        if others := [one for one in pictures if not isinstance(one, Image.Image)]:
            raise ValueError(
                f"task {document[0]!r} shows {type(others[0]).__name__}: mdm sees pictures alone."
            )
        words = request.args[0].replace(PLACE_OF_A_PICTURE, "").strip()
        content = [{"type": "image", "image": one} for one in pictures]
        return {"role": "user", "content": [*content, {"type": "text", "text": words}]}

    def _chat(self, talks: list[list[dict[str, Any]]], **options: Any) -> Any:
        return self.processor.apply_chat_template(
            talks, tokenize=True, return_dict=True, return_tensors="pt", **options
        ).to(self.device)


def _document(request: Instance) -> Document:
    *_, number, task, split = request.args
    return task, split, number


def _batches(places: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]
