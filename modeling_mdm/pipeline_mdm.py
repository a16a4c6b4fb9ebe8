# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The pipeline of joint generation: text and pictures in, text, pictures or both at once out."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.pipelines.base import Pipeline

from .matching import check_processor

# What goes to the processor; everything else goes to `generate`.
PROCESSOR_OPTIONS = (
    "image_mask",
    "max_new_tokens",
    "image_size",
    "truncation",
    "images_kwargs",
)
REGION_OPTIONS = ("max_new_tokens", "image_size")


class MDMJointGenerationPipeline(Pipeline):
    """
    Write text and a picture together, or either of them.

    `pipeline("mdm-joint-generation", model=path, trust_remote_code=True)` makes one. Everything
    that `MDMProcessor` or `generate` takes may be passed here as a default, or at a call.

    Example:

    ```python
    pipe = pipeline("mdm-joint-generation", model=path, trust_remote_code=True)
    pipe(num_return_sequences=4)
    pipe(text=["a dress", "a bag"], generation_mode="image", guidance_scale={"image": 3.0})
    pipe(images=picture, generation_mode="text")
    ```
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "`processor` is None: name a folder that holds one, or pass `processor`."
            )
        check_processor(self.processor, self.model.config)
        # transformers has put classes for their names, which no JSON file can hold.
        for task in getattr(self.model.config, "custom_pipelines", {}).values():
            task["pt"] = [getattr(auto, "__name__", auto) for auto in task["pt"]]

    def __call__(
        self,
        text: str | list[str | None] | None = None,
        images: Any = None,
        generation_mode: str | None = None,
        class_labels: int | list[int | None] | None = None,
        generate: str | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Write what `generation_mode` names; all that is passed is given.

        Args:
            text: a prompt, or a list; with `<mask>` in it, words to be written in place. Or a chat
                (messages with `role` and `content`) to be answered, or a list of chats. Or a
                picture or pictures, or a dictionary of what else stands here by name.
            images: a picture, or a list with one entry for each item; of a chat, its pictures.
            generation_mode: "joint" (the default), "image", "text", or "auto": the model's own
                choice for each item, if it has learned to choose.
            class_labels: a class, or a list.
            generate: another name of `generation_mode`.
            **kwargs: further arguments of the processor (`image_mask`, `max_new_tokens`,
                `image_size`, `truncation`, `images_kwargs`) and of the model's `generate`.

        Returns:
            The samples of one item: dictionaries with `"text"` and / or `"image"` (a PIL image),
            and `"prompt"` where the text follows one. A list of such lists if a list was passed.

        Raises:
            ValueError: if `generation_mode` is another, or arguments are of another kind or
                contradict each other.
        """
        request = _read_request({"text": text, "images": images, "class_labels": class_labels})
        mode = _read_mode(
            request.pop("generation_mode", generation_mode), request.pop("generate", generate)
        )
        is_batch = not _is_chat(request["text"]) and any(map(_holds_items, request.values()))
        items = super().__call__({**request, "generation_mode": mode}, **kwargs)
        return items if is_batch else items[0]

    def _sanitize_parameters(
        self, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        processing = {name: kwargs.pop(name) for name in PROCESSOR_OPTIONS if name in kwargs}
        return processing, kwargs, {}

    def preprocess(self, request: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Prepare the model's inputs."""
        if request["generation_mode"] == "auto":  # the model opens the region that it chooses
            region = {name: options.pop(name) for name in REGION_OPTIONS if name in options}
            inputs = self.preprocess({**request, "generation_mode": None}, **options)
            return {**inputs, **region, "generation_mode": "auto"}
        text = request["text"]
        if not (_is_chat(text) or (isinstance(text, list | tuple) and text and _is_chat(text[0]))):
            return self.processor(**request, **options, return_tensors="pt")
        if request["class_labels"] is not None:
            raise ValueError("`class_labels` are not read beside a chat: leave them out.")
        return self.processor.apply_chat_template(
            text,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={k: request[k] for k in ("images", "generation_mode")} | options,
        )

    def _forward(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        return {"outputs": self.model.generate(**inputs, **options), "inputs": dict(inputs)}

    def postprocess(self, results: dict[str, Any]) -> list[list[dict[str, Any]]]:
        """Turn tensors into texts and pictures, item by item."""
        inputs = results["inputs"]
        samples = self.processor.post_process(results["outputs"], inputs)
        count = len(next(iter(inputs.values())))
        each = len(samples) // count
        found = [
            {name: value for name, value in vars(sample).items() if value is not None}
            for sample in samples
        ]
        return [found[item * each : (item + 1) * each] for item in range(count)]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model with all code, this pipeline's included, and the processor."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def _read_request(request: dict[str, Any]) -> dict[str, Any]:
    """Put what stands in the place of the text where it belongs: a picture, or all by name.

    Raises:
        ValueError: for a dictionary with other names, and for what is passed twice.
    """
    text = request["text"]
    first = next(iter(text), None) if isinstance(text, list | tuple) else text
    if isinstance(text, Mapping):
        named = {name: value for name, value in text.items() if value is not None}
        names = (*request, "generation_mode", "generate")
        beside = [name for name in ("images", "class_labels") if request[name] is not None]
        if unknown := sorted(map(str, set(named) - set(names))):
            raise ValueError(
                f"text is a dictionary with {unknown}; name {', '.join(names)}, or pass a chat as "
                "a list of messages."
            )
        if twice := sorted(set(named) & set(beside)):
            raise ValueError(f"{twice} are named in a dictionary and beside it; pass each once.")
        return request | {"text": None} | named
    if isinstance(first, Mapping) and not _is_chat(text):
        raise ValueError(
            f"text has {first!r:.60}; pass messages with role and content, or text=[...] and "
            "images=[...]."
        )
    if not isinstance(first, str) and (_is_picture(first) or _holds_pictures(first)):
        if request["images"] is not None:
            raise ValueError(f"text is {text!r:.60}; pass words there, and pictures as images=.")
        return request | {"text": None, "images": text}
    return request


def _read_mode(generation_mode: Any, generate: Any) -> str:
    """Read what is to be written, by either name.

    Raises:
        ValueError: both names, or another mode.
    """
    if generation_mode is not None and generate is not None:
        raise ValueError(
            f"generation_mode={generation_mode!r:.80} and generate={generate!r:.80} are two names "
            "of one argument; pass generation_mode alone."
        )
    name, mode = "generation_mode", generation_mode
    if generate is not None:
        name, mode = "generate", generate
    mode = "joint" if mode is None else mode
    if not isinstance(mode, str) or mode not in ("joint", "image", "text", "auto"):
        raise ValueError(f"{name}={mode!r:.80} is unknown; use 'joint', 'image', 'text' or 'auto'.")
    return mode


def _is_picture(value: Any) -> bool:
    """Whether a value that is no string is one picture, or names one.

    `processor/values.py` says the same; of a file of the processor's a flat one may import nothing.
    """
    if isinstance(value, np.ndarray | torch.Tensor):
        is_of_names = isinstance(value, np.ndarray) and value.dtype.kind in "UO"
        return value.ndim < 4 and not is_of_names
    return isinstance(value, Image.Image | Path | bytes)


def _holds_pictures(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 4


def _holds_items(value: Any) -> bool:
    """Whether a value is of several items: a list, or a stack of pictures or classes."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim in (1, 4)
    is_single = isinstance(value, str | Mapping | set) or _is_picture(value)
    return isinstance(value, Iterable) and not is_single


def _is_chat(text: Any) -> bool:
    """Whether text is one chat: a list of messages."""
    is_filled = isinstance(text, list | tuple) and bool(text)
    return is_filled and isinstance(text[0], Mapping) and "role" in text[0]


__all__ = ["MDMJointGenerationPipeline"]
