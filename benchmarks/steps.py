# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole models at work: the seconds of a sampler step in `generate`, of a token with a KV cache."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from modeling_mdm.block import MDMMamba2Mixer
from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.decoder import DecoderInputs
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.past_turns import PastTurns
from modeling_mdm.planning.flops import grid_of

from .plans import Plan
from .timing import peak_memory, stopwatch, wait

VOCABULARY = 512


def make_config(plan: Plan, **changes: Any) -> MDMConfig:
    """A model of a plan's sizes, on grey pictures."""
    values = {
        "vocab_size": VOCABULARY,
        "max_text_length": 64,
        "image_size": 16 * plan.patch,
        "patch_size": plan.patch,
        "num_classes": 10,
        "vae_hidden_size": plan.width,
        "hidden_size": plan.width,
        "num_hidden_layers": plan.layers,
        "state_size": plan.state_size,
        "head_dim": plan.head_dim,
    }
    return MDMConfig(**{**values, **changes})


def make_model(
    config: MDMConfig, device: torch.device, dtype: torch.dtype
) -> MDMForJointGeneration:
    """An untrained model: what it writes is noise, and takes as long to write."""
    torch.manual_seed(0)
    with torch.device(device):
        return MDMForJointGeneration._from_config(config, dtype=dtype).eval()


@dataclass
class Run:
    """One call of `generate`.

    setup: seconds before the first step, or after the last. steps: seconds of every step but the
    first, which holds the setup. evaluations: of the network, a step. backend: scan kernel.
    """

    setup: float
    steps: list[float]
    evaluations: float
    backend: str

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        return median(self.steps)

    def latency(self, num_steps: int) -> float:
        """Seconds of a run of so many steps."""
        return self.setup + num_steps * self.step


@dataclass
class Generation:
    """A call of `generate` whose steps are timed.

    model, inputs: as for `generate`. options: its keywords. num_steps: steps that are run, at least
    2.
    """

    model: MDMForJointGeneration
    inputs: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    num_steps: int = 3
    last: Run | None = None
    past: PastTurns | None = None  # what the last call had read

    def run(self) -> Run:
        """Generate, and time every step."""
        device, ends = self.model.device, []

        def on_step(_: object) -> None:
            wait(device)
            ends.append(time.perf_counter())

        wait(device)
        start = time.perf_counter()
        output = self.model.generate(
            **self.inputs,
            **self.options,
            num_inference_steps=self.num_steps,
            callback_on_step_end=on_step,
            generator=torch.Generator().manual_seed(0),
            show_progress=False,
        )
        wait(device)
        finish = time.perf_counter() - ends[-1]
        steps = [after - before for before, after in pairwise(ends)]
        setup = max(0.0, ends[0] - start - median(steps)) + finish
        self.past = output.cache
        evaluations = output.num_evaluations / len(ends)
        self.last = Run(setup, steps, evaluations, output.kernel_backend)
        return self.last

    def step_seconds(self) -> float:
        """Median seconds of a step of one call."""
        return self.run().step

    def peak_bytes(self) -> int:
        """Most bytes held at once by a call of two steps, which is what any call holds."""
        return peak_memory(replace(self, num_steps=2).run, self.model.device)

    def details(self, num_steps: int | None = None, **more: Any) -> dict[str, Any]:
        """What the last call really did, as a contender's details."""
        assert self.last is not None
        config = self.model.config
        mamba = config.mixer == "mamba2"
        parallel = len(config.joint_scans) if config.scan_mode == "parallel" else 1
        return {
            "sampler_steps": num_steps or self.num_steps,
            "evaluations_a_step": self.last.evaluations,
            "scans_a_block": parallel if mamba else 0,
            "blocks": config.num_hidden_layers,
            "decoder_weights": sum(p.numel() for p in self.model.decoder.parameters()),
            "setup_seconds": self.last.setup,
            **more,
        }


def image_inputs(device: torch.device, batch: int = 1) -> dict[str, Tensor]:
    """A class to paint: `generate` opens the picture itself."""
    return {"class_labels": torch.zeros(batch, dtype=torch.long, device=device)}


def given_words(count: int, device: torch.device, turns: int = 1) -> dict[str, Tensor]:
    """A prompt of so many words, in turns of equal length."""
    places = torch.arange(count, device=device)[None]
    return {
        "input_ids": places % (VOCABULARY - 4) + 4,
        "text_given": torch.ones_like(places, dtype=torch.bool),
        "turn_ids": places * turns // count,
    }


def given_picture(side: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """A picture that is known."""
    pixels = torch.zeros(1, 1, *side, device=device)
    return {"pixel_values": pixels, "image_given": torch.ones(1, *side, device=device).bool()}


# --- one evaluation of the network alone ---


def measure_evaluation(
    config: MDMConfig,
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    patches: int,
    words: int = 0,
) -> float:
    """Seconds of one evaluation of a new model of this configuration, VQ-VAE left out."""
    values = config.to_dict() | {"vq_config": None}
    model = make_model(MDMConfig(**values), device, dtype)
    call = evaluation_call(model, batch, patches, words)
    call()
    return median(stopwatch(call, device) for _ in range(3))


def evaluation_call(
    model: MDMForJointGeneration, batch: int, patches: int, words: int = 0
) -> Callable[[], object]:
    """A call that evaluates the network once on noisy positions, orders laid out beforehand."""
    config, device = model.config, model.device
    height, width = grid_of(patches, config.patch_size)
    inputs: dict[str, Tensor] = {}
    if patches:
        inputs["pixel_values"] = torch.zeros(
            batch, config.num_channels, height, width, device=device, dtype=model.dtype
        )
    if words:
        inputs["input_ids"] = torch.full((batch, words), config.mask_token_id, device=device)
    with torch.no_grad():
        encoded = model.encode_inputs(**inputs)
        absent = torch.zeros(batch, dtype=torch.bool, device=device)
        sequence = model.decoder.lay_out(encoded.content, absent, absent, encoded.grid)
        candidates = model.candidate_latents(encoded.content)
    z_t = {
        modality: torch.randn_like(positions.latents)
        for modality, positions in encoded.content.items()
    }
    half = torch.full((batch,), 0.5, device=device, dtype=model.dtype)
    times = dict.fromkeys(z_t, half)
    labels = torch.full((batch,), -1, device=device)
    inputs = DecoderInputs(sequence, encoded.content, z_t, times, labels, estimates=z_t)

    def call() -> object:
        with torch.no_grad():
            return model.denoise(inputs, candidates).clean

    return call


# --- the autoregressive Transformer ---


class TokenByToken:
    """transformers' Llama of a plan's sizes, which writes one token after the other.

    The time of a token grows linearly with what the KV cache holds, so the mean of two tokens, at a
    quarter and at three quarters of the way, is the mean of all of them.

    Args:
        model: whose sizes, device and dtype are taken. length: tokens to write. prompt: tokens
            before them. batch: rows; 2 with guidance.
    """

    tokens = 8  # timed at each place

    def __init__(self, model: MDMForJointGeneration, length: int, prompt: int, batch: int) -> None:
        config = model.config
        self.length, self.batch, self.device = length, batch, model.device
        llama = LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads,
            max_position_embeddings=prompt + length + self.tokens,
        )
        with torch.device(model.device):
            self.model = LlamaForCausalLM._from_config(llama, dtype=model.dtype).eval()
        self.prompt = torch.zeros(batch, prompt, dtype=torch.long, device=self.device)
        self.contexts = [prompt + length // 4, prompt + 3 * length // 4]

    def seconds(self) -> float:
        """Seconds of reading the prompt and writing all tokens."""
        tokens = self.length * mean(self._token(context) for context in self.contexts)
        return stopwatch(self._read_prompt, self.device) + tokens

    def peak_bytes(self) -> int:
        """Most bytes held at once: the last token's, the cache included."""
        last = self.prompt.shape[1] + self.length
        return peak_memory(lambda: self._token(last), self.device)

    @torch.no_grad()
    def _read_prompt(self) -> None:
        cache = DynamicCache(config=self.model.config)
        self.model(self.prompt, None, None, cache, logits_to_keep=1)

    @torch.no_grad()
    def _token(self, context: int) -> float:
        config = self.model.config
        cache = DynamicCache(config=config)
        shape = (self.batch, config.num_attention_heads, context, config.head_dim)
        dtype = self.model.dtype
        for layer in range(config.num_hidden_layers):
            key = torch.randn(shape, device=self.device, dtype=dtype)
            cache.update(key, key, layer)
        word = torch.zeros(self.batch, 1, dtype=torch.long, device=self.device)
        self.model(word, None, None, cache)

        def write() -> None:
            self.model(word, None, None, cache)

        return stopwatch(write, self.device, self.tokens)

    def details(self) -> dict[str, Any]:
        """What it really does, as a contender's details."""
        return {
            "sampler_steps": self.length,
            "evaluations_a_step": 1,
            "branches": self.batch,
            "scans_a_block": 0,
            "blocks": self.model.config.num_hidden_layers,
            "decoder_weights": sum(p.numel() for p in self.model.model.layers.parameters()),
        }


# --- what the scans alone take ---


@contextmanager
def scan_clock(model: nn.Module, device: torch.device):
    """Collect the seconds of the scans of every block: from its projection in to its norm."""
    taken: list[float] = []
    started: list[float] = []

    def before(*_: object) -> None:
        wait(device)
        started.append(time.perf_counter())

    def after(*_: object) -> None:
        wait(device)
        taken.append(time.perf_counter() - started.pop())

    handles = []
    for module in model.modules():
        if isinstance(module, MDMMamba2Mixer):
            handles += [module.in_proj.register_forward_hook(before)]
            handles += [module.norm.register_forward_pre_hook(after)]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()
