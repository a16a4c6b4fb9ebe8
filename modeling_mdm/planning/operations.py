# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What one evaluation of the network computes and moves, operation by operation.

A flop is a multiplication or an addition of a matrix product or a convolution, as
`torch.utils.flop_counter` counts them: of the scans those of the plain form (back-end `torch`),
which a kernel that computes the same is credited with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from transformers import AutoConfig

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.content import GENERATION_MODES
from modeling_mdm.decoder import PlaceEmbedding, TimeEmbedding

# What the configuration of each of `vae.VQ_MODELS` calls the number of its codes.
CODES = {"janus_vqgan": "num_embeddings", "emu3_vqgan": "codebook_size"}


@dataclass(frozen=True)
class Operation:
    """Work of one operation over all layers.

    matmul_flops: of matrix products and convolutions. bytes: read and written, the weights' among
    them. backward: flops of its gradients, in those of itself: 2 where input and weight have one.
    """

    name: str
    matmul_flops: float = 0.0
    exponentials: float = 0.0
    bytes: float = 0.0
    weight_bytes: float = 0.0
    backward: float = 2.0

    def __mul__(self, times: float) -> Operation:
        work = (self.matmul_flops, self.exponentials, self.bytes, self.weight_bytes)
        return Operation(self.name, *(times * one for one in work), self.backward)

    @property
    def backward_flops(self) -> float:
        """Flops of its gradients."""
        return self.backward * self.matmul_flops


@dataclass(frozen=True)
class Step:
    """One evaluation of the decoder.

    batch: rows, guidance's branches included. words, patches: what each row reads. size: bytes of a
    number. special: class, null, start and time tokens of a row.
    """

    batch: int
    words: int
    patches: int
    size: int = 4
    special: int = 0

    @property
    def positions(self) -> int:
        """Words and patches of the whole batch."""
        return self.batch * (self.words + self.patches)

    @property
    def length(self) -> int:
        """What the scans read of each row."""
        return self.words + self.patches + self.special

    @property
    def rows(self) -> int:
        """All positions of the whole batch, special tokens among them."""
        return self.batch * self.length


def with_special_tokens(step: Step, num_null: int = 0) -> Step:
    """Count a row's tokens: class, nulls, start and time of each modality."""
    modalities = (step.words > 0) + (step.patches > 0)
    return replace(step, special=1 + num_null + 2 * modalities)


def linear(
    name: str, rows: int, inputs: int, outputs: int, size: int, backward: float = 2.0
) -> Operation:
    """A matrix product with weights."""
    weights = inputs * outputs * size
    moved = rows * (inputs + outputs) * size + weights
    return Operation(name, 2 * rows * inputs * outputs, 0, moved, weights, backward)


def scan_flops(length: int, inner: int, state_size: int, chunk_size: int = 64) -> float:
    """Flop of the recurrence of one sequence as matrix products over chunks.

    They are C B^T, its product with X, the update of the state, and its reading.
    """
    chunk = max(1, min(chunk_size, length))
    padded = -(-length // chunk) * chunk
    within = 2 * chunk * state_size + 2 * chunk * inner
    return padded * (within + 4 * state_size * inner)


def _scan(config: MDMConfig, length: int) -> tuple[float, float]:
    """Flops of the scan of one sequence, and those of its gradients in flops of itself."""
    inner, state = config.inner_size, config.state_size
    flops = scan_flops(length, inner, state, config.chunk_size)
    if length > config.chunk_size or not length:
        return flops, 2.0
    update = 2 * length * state * inner  # one chunk reads no state, and nobody reads what it leaves
    return flops - update, 2 * (flops - 2 * update) / (flops - update)


def scans_of(config: MDMConfig) -> int:
    """How many scans a block runs."""
    return len(config.joint_scans) if config.scan_mode == "parallel" else 1


def mamba_block(config: MDMConfig, step: Step) -> list[Operation]:
    """One Mamba-2 block of our decoder."""
    rows, size, width, inner = step.rows, step.size, config.hidden_size, config.inner_size
    state, heads, taps = config.state_size, config.num_ssm_heads, config.conv_kernel
    scans = scans_of(config)
    separate = config.scan_projections == "separate"
    shared = 1 if not separate else scans  # copies of x and the gate
    per_scan = 2 * state + heads
    projected = shared * 2 * inner + scans * per_scan
    channels = scans * (inner + 2 * state)
    padded = step.batch * (step.length + taps - 1)  # the convolution is padded at one end
    scan, scan_backward = _scan(config, step.length)
    operations = [
        Operation("norm and modulation", 0, 0, 2 * rows * width * size),
        linear("input projection", rows, width, projected, size),
        Operation(
            "convolution",
            2 * padded * channels * taps,
            rows * channels,
            rows * (shared * inner + scans * 2 * state + channels) * size,
            # Made once more, and its gradient; sums over positions for those of weights and bias.
            backward=2 + (taps + 1) / taps,
        ),
        Operation(
            "scan",
            scans * step.batch * scan,
            4 * rows * scans * heads,
            rows * ((channels + scans * inner) * size + 2 * scans * heads * 4),
            backward=scan_backward,
        ),
        Operation("merge", 0, 0, rows * (scans + shared) * inner * size),
        Operation("gated norm", 0, rows * shared * inner, 3 * rows * shared * inner * size),
        linear("output projection", rows, shared * inner, width, size),
        Operation("residual", 0, 0, 3 * rows * width * size),
    ]
    if separate:  # every order of either modality has weights, a position uses one set a scan
        sets = len({i for i, _ in config.joint_scans}) + len({t for _, t in config.joint_scans})
        unused = (sets - scans) * (width * (2 * inner + per_scan) + inner * width)
        moved = unused * size
        operations.append(Operation("weights of other orders", 0, 0, moved, moved))
    return operations


def attention_block(config: MDMConfig, step: Step) -> list[Operation]:
    """One block of the Transformer."""
    rows, size, width = step.rows, step.size, config.hidden_size
    length, middle = step.length, config.intermediate_size
    return [
        Operation("norm and modulation", 0, 0, 4 * rows * width * size),
        linear("input projection", rows, width, 3 * width, size),
        Operation(
            "attention",
            4 * rows * length * width,
            rows * length * config.num_attention_heads,
            4 * rows * width * size,
        ),
        linear("output projection", rows, width, width, size),
        linear("feed-forward, in", rows, width, 2 * middle, size),
        Operation("feed-forward, gate", 0, rows * middle, 3 * rows * middle * size),
        linear("feed-forward, out", rows, middle, width, size),
        Operation("residual", 0, 0, 6 * rows * width * size),
    ]


def block_operations(config: MDMConfig, step: Step) -> list[Operation]:
    """All blocks of the decoder."""
    block = attention_block if config.mixer == "attention" else mamba_block
    return [one * config.num_hidden_layers for one in block(config, step)]


def embedding_operations(config: MDMConfig, step: Step) -> list[Operation]:
    """What stands before the blocks: latents, places, times."""
    width, size, batch = config.hidden_size, step.size, step.batch
    latent = config.latent_dim * (2 if config.self_conditioning else 1)
    words, patches = batch * step.words, batch * step.patches
    features = PlaceEmbedding.features  # of an axis; the turn is one more
    # What is embedded has no gradient, unless diffusion may send one to the VAE.
    learns = 2.0 if config.latent_gradient_scale else 1.0
    operations = [
        linear("embedding", step.positions, latent, width, size, learns),
        linear("place embedding, words", words, 2 * features, width, size, 1.0),
        linear("place embedding, patches", patches, 3 * features, width, size, 1.0),
    ]
    if config.place_conditioning:
        operations.append(linear("source", patches, config.latent_dim, width, size, learns))
    if not step.special:
        return operations
    parts = 6 if config.mixer == "attention" else 3
    modalities = (step.words > 0) + (step.patches > 0)
    if config.pooled_conditioning:
        rows = modalities * batch
        operations.append(linear("pooled", rows, config.latent_dim, width, size, learns))
    return [
        *operations,
        linear("time embedding, in", 3 * batch, TimeEmbedding.features, width, size, 1.0),
        linear("time embedding, out", 3 * batch, width, width, size),
        linear("time tokens", modalities * batch, width, width, size),
        linear("modulation", 3 * batch, width, (parts + 2) * width, size),
    ]


def head_operations(config: MDMConfig, step: Step) -> list[Operation]:
    """What stands behind the blocks."""
    width, size = config.hidden_size, step.size
    words, patches = step.batch * step.words, step.batch * step.patches
    operations = []
    if words:
        operations.append(linear("word head", words, width, config.vocab_size, size))
    if patches:
        outputs = codes_of(config) if config.vq_config else config.latent_dim
        operations.append(linear("patch head", patches, width, outputs, size))
    return operations


def codes_of(config: MDMConfig) -> int:
    """Codes of the VQ-VAE in front, 0 without one."""
    if not config.vq_config:
        return 0
    return int(getattr(vq_config(config), CODES[config.vq_config["model_type"]]))


def vq_config(config: MDMConfig) -> Any:
    """The configuration of the VQ-VAE in front, in full.

    Raises:
        ValueError: it is unknown.
    """
    given = config.vq_config or {}
    if given.get("model_type") not in CODES:
        raise ValueError(
            f"`vq_config['model_type']` is {given.get('model_type')!r}, a VQ-VAE whose codes the "
            f"plan cannot count: name one of {', '.join(CODES)}, or plan without, by "
            "--config_overrides vq_config=null."
        )
    return AutoConfig.for_model(**given)


def estimate_operations(config: MDMConfig, step: Step) -> list[Operation]:
    """Means of the latents of words and codes under what the heads say (Eq. 7).

    Training asks them for a gradient only where the estimate itself is scored.
    """
    is_scored = config.se_candidates == "trajectory"
    backward = (2.0 if config.latent_gradient_scale else 1.0) if is_scored else 0.0
    words, patches = step.batch * step.words, step.batch * step.patches
    candidates = ((words, config.vocab_size), (patches, codes_of(config)))
    operations = (
        linear("expected latent", rows, count, config.latent_dim, step.size, backward)
        for rows, count in candidates
        if rows and count
    )
    return [replace(one, weight_bytes=0.0) for one in operations]


def step_operations(config: MDMConfig, step: Step) -> list[Operation]:
    """One evaluation of the network: embeddings, all blocks, heads."""
    return [
        *embedding_operations(config, step),
        *block_operations(config, step),
        *head_operations(config, step),
    ]


def vae_operations(config: MDMConfig, step: Step, patch_values: int) -> list[Operation]:
    """Encode and decode every position, and find the latents of words and codes.

    Args:
        patch_values: numbers of a patch, or of a code's vector.
    """
    size, hidden, latent = step.size, config.vae_hidden_size, config.latent_dim
    words, patches, codes = step.batch * step.words, step.batch * step.patches, codes_of(config)

    def trunk(rows: int, name: str, backward: float = 2.0) -> list[Operation]:
        layer = linear(name, rows, hidden, 4 * hidden, size, backward)
        return [layer] * config.vae_num_layers

    def encode(rows: int, of_patches: int, name: str, backward: float) -> list[Operation]:
        embedding = min(backward, 1.0)  # pixels and code vectors have no gradient
        return [
            linear(name, of_patches, patch_values, hidden, size, embedding),
            *trunk(rows, name, backward),
            linear(name, rows, hidden, 2 * latent, size, backward),
        ]

    is_scored = config.se_candidates == "trajectory" and config.latent_gradient_scale > 0
    candidates = (config.vocab_size if words else 0) + (codes if patches else 0)
    assembly = config.image_decoder_layers
    return [
        *encode(words + patches, patches, "VAE, encoder", 2.0),
        *encode(
            candidates,
            codes if patches else 0,
            "latents of words and codes",
            2.0 if is_scored else 0.0,
        ),
        linear("VAE, decoder", words + patches, latent, hidden, size),
        *trunk(words + patches, "VAE, decoder"),
        *[linear("VAE, assembly", patches, 10 * hidden, hidden, size)] * assembly,
        linear("VAE, words", words, hidden, config.vocab_size, size),
        linear("VAE, patches", patches, hidden, patch_values, size),
    ]


def small_heads(config: MDMConfig, step: Step, given: Step) -> list[Operation]:
    """Heads that train on features without a gradient: score entropy, selection, mode.

    Args:
        given: the part of the batch that the mode head reads.
    """
    width, size = config.hidden_size, step.size
    operations = [linear("score entropy head", step.positions, width, 1, size, 1.0)]
    if config.use_selection and config.mixer == "mamba2":
        # Asked for in the steps whose scans do not read all.
        share = sum(keep < 1 for keep in config.selection_keep) / len(config.selection_keep)
        score = linear("selection head", step.rows, width, scans_of(config), size)
        operations.append(score * (config.num_hidden_layers * share))
    if config.use_mode_head:
        operations += [
            linear("mode head", given.positions, width, width, size, 1.0),
            linear("mode head", step.batch, width, len(GENERATION_MODES), size),
        ]
    return operations
