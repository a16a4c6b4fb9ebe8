# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What each command of `mdm` does, as calls of the library."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps

from modeling_mdm import MDMForJointGeneration, MDMProcessor, MDMStreamer
from modeling_mdm.matching import check_processor
from modeling_mdm.precision import autocast, load_dtype, use_bfloat16
from modeling_mdm.processor.image_processing_pil_mdm import open_picture
from modeling_mdm.training.loading import load_pretrained, require_device

# Options of `mdm generate` that `generate()` has by the same names, None where they are left out.
SAMPLER_OPTIONS = (
    *("guidance_scale", "guidance_window", "joint_lead", "joint_overlap", "num_restarts"),
    "restart_log_snr",
)
CHAT_HELP = "Empty line or /quit to leave, /image FILE to show a picture."


def in_chosen_type(command: Callable[[Namespace], None]) -> Callable[[Namespace], None]:
    """Run a command in the type that `--bf16` chooses."""

    @wraps(command)
    def run(chosen: Namespace) -> None:
        require_device("--device", chosen.device)
        chosen.bf16 = use_bfloat16(chosen.bf16, chosen.device)
        with autocast(chosen.bf16, chosen.device):
            command(chosen)

    return run


def load(chosen: Namespace) -> tuple[Any, Any]:
    """Load model and processor."""
    processor = load_pretrained(MDMProcessor, "--checkpoint", chosen.checkpoint)
    dtype = load_dtype(chosen.bf16)
    model = load_pretrained(MDMForJointGeneration, "--checkpoint", chosen.checkpoint, dtype=dtype)
    check_processor(processor, model.config)
    return model.to(chosen.device).eval(), processor


@in_chosen_type
def generate(chosen: Namespace) -> None:
    """Write samples, print their words and save their pictures."""
    request: dict[str, Any] = {"generation_mode": chosen.generation_mode}
    if chosen.text is not None:
        request["text"] = [chosen.text]
    if chosen.image is not None:
        request["images"] = [open_picture(chosen.image)]
    if chosen.class_label is not None:
        request["class_labels"] = [chosen.class_label]
    model, processor = load(chosen)
    if chosen.mask is not None:
        size = processor.image_processor.size
        # Fitted as the picture is: its centre, in the ratio that the model sees.
        mask = ImageOps.fit(open_picture(chosen.mask).convert("L"), (size.width, size.height))
        request["image_mask"] = [(np.asarray(mask) >= 128).astype(np.int64)]
    inputs = processor(**request, return_tensors="pt").to(model.device)
    out = model.generate(
        **inputs,
        num_inference_steps=chosen.num_inference_steps,
        num_return_sequences=chosen.num_samples,
        **{name: getattr(chosen, name) for name in SAMPLER_OPTIONS},
        generator=torch.Generator().manual_seed(chosen.seed),
        streamer=MDMStreamer(processor, file=sys.stderr) if chosen.watch else None,
        show_progress=not (chosen.quiet or chosen.watch),
    )
    results = []
    for number, sample in enumerate(processor.post_process(out, inputs)):
        result: dict[str, Any] = {"text": sample.text, "image": None}
        if sample.image is not None:
            folder = Path(chosen.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{chosen.generation_mode}-{chosen.seed}-{number}.png"
            sample.image.save(path)
            result["image"] = str(path)
        results.append(result)
    if chosen.json:
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            print(_line(result["image"], result["text"]))


@in_chosen_type
def score(chosen: Namespace) -> None:
    """Print the texts, the best first, with the bound on their log-likelihood in nats."""
    request: dict[str, Any] = {"text": chosen.text}
    if chosen.image is not None:
        request["images"] = [open_picture(chosen.image)] * len(chosen.text)
    model, processor = load(chosen)
    out = model.score(
        **processor(**request, return_tensors="pt").to(model.device),
        content="text",
        num_evaluations=chosen.num_evaluations,
        generator=torch.Generator().manual_seed(chosen.seed),
    )
    results = [
        {
            "text": text,
            "log_likelihood": float(out.log_likelihood[row]),
            # JSON knows no nan: of fewer than three evaluations there is no error to tell.
            "standard_error": None if error.isnan() else float(error),
            "score_entropy": float(out.score_entropy[row]),
        }
        for row, (text, error) in enumerate(zip(chosen.text, out.standard_error, strict=True))
    ]
    results.sort(key=lambda result: -result["log_likelihood"])
    if chosen.json:
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            error = result["standard_error"]
            within = "" if error is None else f" ± {error:.2f}"
            print(f"{result['log_likelihood']:10.2f}{within} nats  {result['text']}")


@in_chosen_type
def chat(chosen: Namespace) -> None:
    """Read messages from standard input, a line each, and answer each of them."""
    pictures = [] if chosen.image is None else [open_picture(chosen.image)]
    model, processor = load(chosen)
    mode = chosen.generation_mode or ("auto" if model.config.use_mode_head else "text")
    noise = torch.Generator().manual_seed(chosen.seed)
    messages: list[dict[str, Any]] = []
    past = None  # what the model has read: each call reads what is new
    if chosen.system:
        messages.append({"role": "system", "content": chosen.system})
    for line in _lines(chosen):
        if line.startswith("/image "):
            pictures.append(open_picture(line.removeprefix("/image ").strip()))
            continue
        content = [{"type": "image", "image": picture} for picture in pictures]
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": line}]})
        pictures = []
        inputs = processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        ).to(model.device)
        out = model.generate(
            **inputs,
            generation_mode=mode,
            max_new_tokens=chosen.max_new_tokens,
            num_inference_steps=chosen.num_inference_steps,
            generator=noise,
            show_progress=not chosen.quiet,
            cache=past,
        )
        past = out.cache
        reply = processor.post_process(out, inputs)[0]
        shown: dict[str, Any] = {"user": line, "assistant": reply.text, "image": None}
        content = [] if reply.text is None else [{"type": "text", "text": reply.text}]
        if reply.image is not None:
            content.append({"type": "image", "image": reply.image})
            path = Path(chosen.output_dir) / f"chat-{chosen.seed}-{len(messages)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            reply.image.save(path)
            shown["image"] = str(path)
        messages.append({"role": "assistant", "content": content})
        print(json.dumps(shown) if chosen.json else _line(shown["image"], reply.text), flush=True)


def _line(*shown: str | None) -> str:
    """One line of what there is: the file of a picture, and words."""
    return "  ".join(value for value in shown if value is not None)


def _lines(chosen: Namespace) -> Iterator[str]:
    """Messages, until one is empty, is /quit, or there are no more."""
    asks = sys.stdin.isatty()
    if asks:
        print(CHAT_HELP, file=sys.stderr)
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line or line == "/quit":
            return
        yield line
