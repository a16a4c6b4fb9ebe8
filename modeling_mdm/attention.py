# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Transformer of Table 3: attention and feed-forward in the place of the Mamba-2 mixer.

Axes: b batch, l positions of the joint sequence, h heads, p head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .block import modulate
from .cache import LayerCache
from .configuration_mdm import MDMConfig
from .matmul import project
from .precision import RMSNorm
from .sequence import JointSequence


def given_first_mask(given: Tensor, valid: Tensor, turn: Tensor | None = None) -> Tensor:
    """Say who reads whom: given positions read the given ones, noisy ones read all real positions.

    This is the mask's form of the given-first scan orders (Sec. 3.2): what is given never depends
    on what is noisy. Padding reads padding alone, so every row has something to read and no softmax
    is over nothing.

    Args:
        given: (b, l) bool, True where the content is known.
        valid: (b, l) bool, False at alignment padding; `given` does not matter there.
        turn: (b, l) long. Given positions read those of their own turn and of older ones, so that
            a conversation can go on from what is cached; None: all are of one turn.

    Returns:
        (b, 1, l, l) bool, [.., i, j] True where position i reads j; 1 stands for the heads.
    """
    reads_noisy = ~given[:, :, None]  # (b, l, 1)
    reads_given = given[:, None, :]
    if turn is not None:
        reads_given = reads_given & (turn[:, None, :] <= turn[:, :, None])
    readable = reads_noisy | reads_given  # (b, l, l)
    both_real = valid[:, :, None] & valid[:, None, :]
    both_padding = ~(valid[:, :, None] | valid[:, None, :])
    return (both_real & readable | both_padding)[:, None]  # (b, 1, l, l)


class MDMAttentionMixer(nn.Module):
    """Attention with the interface of the Mamba-2 mixer: the `mixer="attention"` of Table 3.

    Queries and keys are RMS-normed per head. There is no positional encoding here: the input
    carries an embedding of every position's place.

    Args:
        hidden_size: width of the features.
        num_heads: number of heads; divides `hidden_size`.

    Raises:
        ValueError: `hidden_size` is not divisible by `num_heads`.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(
                f"`num_heads` is {num_heads}, which does not divide `hidden_size` = {hidden_size}: "
                "change one of them."
            )
        self.num_heads = num_heads
        head_width = hidden_size // num_heads
        self.in_proj = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(head_width, eps=1e-5)
        self.k_norm = nn.RMSNorm(head_width, eps=1e-5)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        given: Tensor,
        valid: Tensor,
        turn: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Mix the positions of every item.

        Args:
            hidden_states: (b, l, hidden_size). Padding may hold anything, NaN included.
            given: (b, l) bool, True where the content is known.
            valid: (b, l) bool, False at alignment padding.
            turn: (b, l) long; None: all are of one turn.
            cache: given positions that are read too, those of older turns.

        Returns:
            (b, l, hidden_size), exactly 0 at padding.
        """
        # No projection has a bias, so zeros at padding stay zeros up to the output.
        hidden_states = hidden_states.masked_fill(~valid[:, :, None], 0.0)
        projected = project(self.in_proj, hidden_states)  # (b, l, 3 h p)
        projected = projected.unflatten(-1, (3, self.num_heads, -1))  # (b, l, 3, h, p)
        query, key, value = projected.transpose(1, 3).unbind(2)  # (b, h, l, p) each
        # Under autocast the projections are bf16 and the norms' weights float32.
        query = self.q_norm(query.to(self.q_norm.weight.dtype))
        key = self.k_norm(key.to(self.k_norm.weight.dtype))
        mask = given_first_mask(given, valid, turn)
        if cache is not None:
            key, value, mask = self._with_cache(cache, key, value, mask, valid)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output: Tensor = project(self.out_proj, mixed.transpose(1, 2).flatten(2))  # (b, l, h p)
        return output

    @staticmethod
    def _with_cache(
        cache: LayerCache, key: Tensor, value: Tensor, mask: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put what is cached in front of keys, values (b, h, l, p) and mask (b, 1, l, l)."""
        readable, past = valid, cache.get("readable")
        if past is not None:
            key = torch.cat([cache.get("key"), key], dim=2)
            value = torch.cat([cache.get("value"), value], dim=2)
            mask = torch.cat([(valid[:, :, None] & past[:, None])[:, None], mask], dim=-1)
            readable = torch.cat([past, valid], dim=1)
        cache.store(key=key, value=value, readable=readable)
        return key, value, mask


class MDMFeedForward(nn.Module):
    """Gated feed-forward (SwiGLU) of a Transformer block, each position alone.

    out_proj(silu(gate) * up), with [gate, up] = in_proj(hidden_states).

    Args:
        hidden_size: width of the features.
        intermediate_size: width of `gate` and of `up`, which are one projection.
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.out_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Transform (..., hidden_size) into the same shape."""
        projected = project(self.in_proj, hidden_states)
        gate, up = projected.chunk(2, dim=-1)  # (..., intermediate_size) each
        output: Tensor = project(self.out_proj, F.silu(gate) * up)
        return output


class MDMAttentionBlock(GradientCheckpointingLayer):
    """The layer of `mixer="attention"`, in the place of `MDMBlock`: attention, then feed-forward.

    Each of the two is normed, modulated by time, gated and added. Gates start at zero.
    """

    modulation_parts = 6  # shift, scale and gate of attention, then of the feed-forward

    def __init__(self, config: MDMConfig, layer_index: int) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mixer = MDMAttentionMixer(config.hidden_size, config.num_attention_heads)
        self.feed_forward_norm = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.feed_forward = MDMFeedForward(config.hidden_size, config.intermediate_size)
        self.modulation_bias = nn.Parameter(torch.zeros(self.modulation_parts, config.hidden_size))

    def forward(
        self,
        hidden_states: Tensor,
        modulation: Tensor,
        sequence: JointSequence,
        keep: float = 1.0,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Refine features (b, l, hidden); arguments as for `MDMBlock`, `keep` has no effect."""
        parts = sequence.at_positions(modulation + self.modulation_bias)
        shift, scale, gate, feed_shift, feed_scale, feed_gate = parts  # (b, l, hidden) each
        normed = modulate(self.norm(hidden_states), shift, scale)
        mixed = self.mixer(normed, sequence.given, sequence.valid, sequence.turn, cache)
        hidden_states = hidden_states + gate * mixed
        normed = modulate(self.feed_forward_norm(hidden_states), feed_shift, feed_scale)
        return hidden_states + feed_gate * self.feed_forward(normed)
