# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""From the model's inputs to encoded content, with the checks that name what is wrong.

Axes: b batch, t words, m pictures an item, n positions of one modality, d latent_dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .configuration_mdm import MDMConfig
from .content import ModalityContent
from .vae import MDMVAE, VQFrontEnd, patchify

NOTHING_PASSED = "Neither `input_ids` nor `pixel_values` was given: pass text, images or both."


MODEL_INPUTS = (
    *("input_ids", "attention_mask", "text_given", "turn_ids"),
    *("pixel_values", "pixel_attention_mask", "image_given", "image_turn_ids"),
    "class_labels",
)
_OWNERS = dict.fromkeys(MODEL_INPUTS[1:4], "input_ids")
_OWNERS |= dict.fromkeys(MODEL_INPUTS[5:8], "pixel_values")
_INTEGERS = ("input_ids",)


@dataclass
class EncodedModality:
    """One modality of a batch: content, what the VAE must reconstruct, and its posterior.

    target: word ids (b, t), or patches or code vectors (b, n, values).
    posterior_mean, posterior_logvar: (b, n, d). symbols: ids (b, n) of words or codes, None for
        pixels.
    """

    content: ModalityContent
    target: Tensor
    posterior_mean: Tensor
    posterior_logvar: Tensor
    symbols: Tensor | None = None

    def rows(self, index: Tensor) -> "EncodedModality":
        """Some items (m,)."""
        tensors = (self.target, self.posterior_mean, self.posterior_logvar, self.symbols)
        chosen = (None if t is None else t.index_select(0, index) for t in tensors)
        return EncodedModality(self.content.rows(index), *chosen)


@dataclass
class EncodedInputs:
    """A batch after encoding.

    class_labels: (b,), -1 = none. grid: (pictures, rows, columns), zeros without images.
    content: by modality. has_class: items with a class label, (b,) bool.
    """

    modalities: dict[str, EncodedModality]
    class_labels: Tensor
    grid: tuple[int, int, int]
    content: dict[str, ModalityContent] = field(init=False)
    has_class: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.content = {modality: own.content for modality, own in self.modalities.items()}
        self.has_class = self.class_labels >= 0

    def rows(self, index: Tensor) -> "EncodedInputs":
        """Some items (m,)."""
        modalities = {modality: own.rows(index) for modality, own in self.modalities.items()}
        return EncodedInputs(modalities, self.class_labels.index_select(0, index), self.grid)

    def with_whole_pictures_written(self) -> "EncodedInputs":
        """The same, with no patch given of a picture that is partly written."""
        own = self.modalities.get("image")
        if own is None:
            return self
        noisy = own.content.noisy.unflatten(1, (self.grid[0], -1))  # (b, pictures, patches)
        repainted = noisy.any(-1, keepdim=True).expand_as(noisy).flatten(1)  # (b, n)
        if not bool((own.content.given & repainted).any()):
            return self
        content = replace(own.content, given=own.content.given & ~repainted)
        modalities = {**self.modalities, "image": replace(own, content=content)}
        return EncodedInputs(modalities, self.class_labels, self.grid)

    def sample_posterior(self, noise: dict[str, Tensor], vae: MDMVAE) -> dict[str, Tensor]:
        """Draw standardised z_0 of every position (b, n, d), by modality."""
        return {
            modality: vae.statistics[modality](
                encoding.posterior_mean
                + torch.exp(0.5 * encoding.posterior_logvar)
                * noise[modality].to(encoding.posterior_mean.dtype)
            )
            for modality, encoding in self.modalities.items()
        }


def check_inputs(inputs: Mapping[str, Tensor | None], config: MDMConfig) -> None:
    """Check a model's inputs by name, before anything is made of them.

    Raises:
        ValueError: as `check_kinds`, or shapes or values that do not fit.
    """
    check_kinds(inputs)
    words, pixels, labels = map(inputs.get, ("input_ids", "pixel_values", "class_labels"))
    if words is not None:
        names = ("attention_mask", "text_given", "turn_ids")
        _check_words(config.vocab_size, words, *map(inputs.get, names))
    if pixels is not None:
        channels = 3 if config.vq_config else config.num_channels
        masks = map(inputs.get, ("pixel_attention_mask", "image_given"))
        _check_pictures(channels, config.patch_size, pixels, *masks)
    sizes = [len(value) for value in (words, pixels) if value is not None]
    if labels is not None:
        batch = sizes[0] if sizes else labels.shape[0] if labels.dim() else 1
        encode_classes(labels, config.num_classes, batch, labels.device)
    check_sizes(words, pixels)


def check_kinds(inputs: Mapping[str, Tensor | None]) -> None:
    """Check what a model's inputs are, without reading them: encoding checks what they hold.

    Raises:
        ValueError: an unknown name, no tensor, numbers of another kind, or a mask of nothing.
    """
    if unknown := sorted(set(inputs) - set(MODEL_INPUTS)):
        raise ValueError(
            f"{', '.join(f'`{name}`' for name in unknown)} is no input of this model: leave it "
            f"out; the inputs are {', '.join(MODEL_INPUTS)}."
        )
    for name, value in inputs.items():
        _check_kind(name, value)
    for name, owner in _OWNERS.items():
        if inputs.get(name) is not None and inputs.get(owner) is None:
            raise ValueError(
                f"`{name}` is of `{owner}`, which is None: pass both, or leave it out."
            )


def _check_kind(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise ValueError(
            f"`{name}` is a {type(value).__name__}: pass a tensor, as the processor gives with "
            "return_tensors='pt'."
        )
    is_whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    if name in _INTEGERS and not is_whole:
        raise ValueError(f"`{name}` holds {value.dtype}: pass integers, such as torch.long.")
    if name == "pixel_values" and not value.is_floating_point():
        raise ValueError(
            f"`{name}` holds {value.dtype}: pass floats in [-1, 1], as the image processor gives "
            "them."
        )


def check_sizes(words: Tensor | None, pixels: Tensor | None) -> None:
    """Refuse words and pictures of different numbers of items."""
    if words is not None and pixels is not None and len(words) != len(pixels):
        raise ValueError(
            f"`input_ids` holds {len(words)} items, `pixel_values` {len(pixels)}: pass as many of "
            "both."
        )


def encode_text(
    vae: MDMVAE,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    text_given: Tensor | None = None,
    turn_ids: Tensor | None = None,
) -> EncodedModality:
    """Encode words; arguments as in `MDMForJointGeneration.forward`.

    Raises:
        ValueError: shapes that differ from `input_ids`, or ids outside the vocabulary.
    """
    _check_words(vae.config.vocab_size, input_ids, attention_mask, text_given, turn_ids)
    content = text_content(input_ids, attention_mask, text_given, turn_ids)
    mean, logvar = vae.encode(input_ids, "text")
    content = replace(content, latents=vae.statistics["text"](mean))
    return EncodedModality(content, input_ids, mean, logvar, input_ids)


def text_content(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    text_given: Tensor | None = None,
    turn_ids: Tensor | None = None,
) -> ModalityContent:
    """Lay words out, arguments as for `encode_text`; without latents, (b, t, 0)."""
    valid = (
        torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is None
        else attention_mask.bool()
    )
    given = torch.zeros_like(valid) if text_given is None else text_given.bool()
    turn = torch.zeros_like(input_ids) if turn_ids is None else turn_ids.long()
    latents = valid.new_empty(*valid.shape, 0)
    return ModalityContent(latents, given, valid, turn, _index_in_turn(valid, turn))


def encode_images(
    vae: MDMVAE,
    pixel_values: Tensor,
    pixel_attention_mask: Tensor | None = None,
    image_given: Tensor | None = None,
    image_turn_ids: Tensor | None = None,
    front_end: VQFrontEnd | None = None,
    image_codes: Tensor | None = None,
) -> tuple[EncodedModality, tuple[int, int, int]]:
    """Encode pictures; arguments as in `MDMForJointGeneration.forward`.

    With a VQ-VAE in front, patches are its code vectors. Where codes are passed beside it, of
    `pixel_values` the shape alone is read.

    Returns:
        the encoded patches of all pictures of an item in a row, and (pictures, rows, columns).

    Raises:
        ValueError: shapes that do not fit, NaN, or pixels outside [-1, 1].
    """
    patch_size = vae.config.patch_size
    channels = 3 if front_end else vae.patch_embedding.in_features // patch_size**2
    _check_pictures(channels, patch_size, pixel_values, pixel_attention_mask, image_given)
    content, grid = image_content(
        patch_size, pixel_values, pixel_attention_mask, image_given, image_turn_ids
    )
    batch, length = content.valid.shape
    flat, symbols = pixel_values.flatten(0, -4), None
    if front_end is None:
        patches = patchify(flat, patch_size).reshape(batch, length, -1)
    else:
        symbols = front_end(flat) if image_codes is None else image_codes.long()
        symbols = symbols.view(batch, -1)
        patches = front_end.codebook[symbols]
    patches = patches.to(vae.patch_embedding.bias.dtype)
    mean, logvar = vae.encode(patches, "image")
    content = replace(content, latents=vae.statistics["image"](mean))
    return EncodedModality(content, patches, mean, logvar, symbols), grid


def unread_pixels(image_codes: Tensor, patch_size: int) -> Tensor:
    """Stand for the pixels of coded pictures (b, [m,] rows, columns), in shape alone: 0 bytes."""
    rows, columns = image_codes.shape[-2:]
    shape = (*image_codes.shape[:-2], 3, rows * patch_size, columns * patch_size)
    return torch.zeros((), device=image_codes.device).expand(shape)


def check_codes(
    image_codes: Any, pixel_values: Tensor | None, front_end: VQFrontEnd | None
) -> None:
    """Check codes of pictures, which stand in the place of their pixels.

    Raises:
        ValueError: if this model has no codes or pixels are passed too, or shape or values do not
            fit.
    """
    if pixel_values is not None:
        raise ValueError("`image_codes` and `pixel_values` are of the same pictures: pass one.")
    if front_end is None:
        raise ValueError(
            "`image_codes` are of a VQ-VAE, and this model, without `vq_config`, has none: pass "
            "`pixel_values`."
        )
    is_whole = isinstance(image_codes, Tensor) and not (
        image_codes.is_floating_point() or image_codes.dtype == torch.bool
    )
    if not is_whole or image_codes.dim() not in (3, 4):
        raise ValueError(
            "`image_codes` must be integers of shape (batch, rows, columns) or (batch, pictures, "
            f"rows, columns), not {getattr(image_codes, 'dtype', type(image_codes).__name__)} of "
            f"{tuple(getattr(image_codes, 'shape', ()))}."
        )
    if _may_read_values(image_codes) and image_codes.numel():
        low, high = int(image_codes.min()), int(image_codes.max())
        if low < 0 or high >= len(front_end.codebook):
            raise ValueError(
                f"`image_codes` holds codes from {low} to {high}, outside the codebook of "
                f"{len(front_end.codebook)}: use the VQ-VAE that made them."
            )


def image_content(
    patch_size: int,
    pixel_values: Tensor,
    pixel_attention_mask: Tensor | None = None,
    image_given: Tensor | None = None,
    image_turn_ids: Tensor | None = None,
) -> tuple[ModalityContent, tuple[int, int, int]]:
    """Lay patches out, arguments as for `encode_images`; without latents, (b, n, 0).

    A patch is given if all of its pixels are.

    Returns:
        the patches of all pictures of an item in a row, and (pictures, rows, columns).
    """
    height, width = pixel_values.shape[-2:]
    batch, pictures = pixel_values.shape[:-3] if pixel_values.dim() == 5 else (len(pixel_values), 1)
    rows, columns = height // patch_size, width // patch_size

    def all_pixels(mask: Tensor | None, default: bool) -> Tensor:
        """Reduce a mask of pixels (b, m, height, width) to patches (b, n): all of its pixels."""
        if mask is None:
            return torch.full(
                (batch, pictures * rows * columns), default, device=pixel_values.device
            )
        return patchify(mask.bool().flatten(0, -3)[:, None], patch_size).all(-1).view(batch, -1)

    if image_turn_ids is None:
        image_turn_ids = torch.zeros(batch, pictures, dtype=torch.long, device=pixel_values.device)
    if image_turn_ids.shape != (batch, pictures):
        raise ValueError(
            f"`image_turn_ids` has shape {tuple(image_turn_ids.shape)}: pass one turn for each "
            f"picture, ({batch}, {pictures})."
        )
    valid = all_pixels(pixel_attention_mask, True)
    shown = valid.view(batch, pictures, -1).any(-1)
    content = ModalityContent(
        valid.new_empty(*valid.shape, 0),
        all_pixels(image_given, False),
        valid,
        image_turn_ids.long().repeat_interleave(rows * columns, dim=1),
        patch_places(image_turn_ids, shown, rows, columns),
    )
    return content, (pictures, rows, columns)


def lay_out_content(patch_size: int, inputs: Mapping[str, Tensor]) -> dict[str, ModalityContent]:
    """Lay out the inputs of [`MDMForJointGeneration.forward`] by name; without latents.

    Raises:
        ValueError: neither words nor pictures are among them.
    """
    content = {}
    if (words := inputs.get("input_ids")) is not None:
        names = ("attention_mask", "text_given", "turn_ids")
        content["text"] = text_content(words, *(inputs.get(name) for name in names))
    pixels, codes = inputs.get("pixel_values"), inputs.get("image_codes")
    if codes is not None:
        pixels = unread_pixels(codes, patch_size)
    if pixels is not None:
        names = ("pixel_attention_mask", "image_given", "image_turn_ids")
        masks = (inputs.get(name) for name in names)
        content["image"], _ = image_content(patch_size, pixels, *masks)
    if not content:
        raise ValueError(NOTHING_PASSED)
    return content


def patch_places(turn: Tensor, shown: Tensor, rows: int, columns: int) -> Tensor:
    """Row and column of every patch; the pictures of a turn stand side by side.

    Without that, patches of two pictures of one turn would differ in the order of reading alone,
    which attention does not see.

    Args:
        turn, shown: (b, m), of every picture; one that is not shown takes no room.

    Returns:
        (b, m * rows * columns, 2) long.
    """
    batch, pictures = turn.shape
    row = torch.arange(rows, device=turn.device)[:, None].expand(rows, columns)
    column = torch.arange(columns, device=turn.device)[None].expand(rows, columns)
    place = torch.stack([row, column], -1).view(1, 1, -1, 2).repeat(batch, pictures, 1, 1)
    together = (turn[:, :, None] == turn[:, None]) & shown[:, None]  # (b, m, m)
    before = together.tril(-1).sum(-1)  # (b, m), pictures to the left of each
    place[..., 1] += columns * before[:, :, None]
    return place.view(batch, -1, 2)


def encode_classes(
    class_labels: Tensor | None, num_classes: int, batch: int, device: torch.device
) -> Tensor:
    """Check class labels (b,); all -1 where None.

    Raises:
        ValueError: a wrong shape, or a label outside [-1, num_classes).
    """
    if class_labels is None:
        return torch.full((batch,), -1, dtype=torch.long, device=device)
    if class_labels.shape != (batch,):
        raise ValueError(
            f"`class_labels` has shape {tuple(class_labels.shape)}: pass one label an item, "
            f"({batch},)."
        )
    if _may_read_values(class_labels) and batch:
        low, high = int(class_labels.min()), int(class_labels.max())
        if low < -1 or high >= num_classes:
            fix = f"{num_classes} classes, use 0 to {num_classes - 1}, or -1 for none."
            raise ValueError(
                f"`class_labels` holds {low if low < -1 else high}: this model knows "
                + (fix if num_classes else "no classes, leave them out or use -1.")
            )
    return class_labels.long()


def _check_words(
    vocabulary: int,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    text_given: Tensor | None,
    turn_ids: Tensor | None,
) -> None:
    if input_ids.dim() != 2:
        raise ValueError(
            f"`input_ids` has shape {tuple(input_ids.shape)}: pass (batch, text_length)."
        )
    for name, value in (
        ("attention_mask", attention_mask),
        ("text_given", text_given),
        ("turn_ids", turn_ids),
    ):
        if value is not None and value.shape != input_ids.shape:
            raise ValueError(
                f"`{name}` has shape {tuple(value.shape)}: it must have that of `input_ids`, "
                f"{tuple(input_ids.shape)}."
            )
    if _may_read_values(input_ids) and input_ids.numel():
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"`input_ids` holds ids from {low} to {high}, outside the vocabulary of "
                f"{vocabulary} words: use the processor that belongs to this model."
            )


def _check_pictures(
    channels: int,
    patch_size: int,
    pixel_values: Tensor,
    pixel_attention_mask: Tensor | None,
    image_given: Tensor | None,
) -> None:
    if pixel_values.dim() not in (4, 5):
        raise ValueError(
            f"`pixel_values` has {pixel_values.dim()} axes: pass (batch, channels, height, width), "
            "or (batch, pictures, channels, height, width)."
        )
    if pixel_values.shape[-3] != channels:
        raise ValueError(
            f"`pixel_values` has {pixel_values.shape[-3]} channels: this model reads {channels}."
        )
    height, width = pixel_values.shape[-2:]
    if not height or not width or height % patch_size or width % patch_size:
        raise ValueError(
            f"`pixel_values` is {height} x {width} pixels: both sides must be multiples of "
            f"`patch_size` = {patch_size}."
        )
    expected = (*pixel_values.shape[:-3], height, width)
    for name, mask in (
        ("image_given", image_given),
        ("pixel_attention_mask", pixel_attention_mask),
    ):
        if mask is not None and mask.shape != expected:
            raise ValueError(
                f"`{name}` has shape {tuple(mask.shape)}: it is by pixel, without channels, "
                f"{expected}."
            )
    if _may_read_values(pixel_values) and pixel_values.numel():
        low, high = float(pixel_values.min()), float(pixel_values.max())
        if not (low >= -1.001 and high <= 1.001):  # false for NaN too
            raise ValueError(
                f"`pixel_values` spans {low} to {high}: pixels must be numbers in [-1, 1], as the "
                "image processor gives them."
            )


def _may_read_values(tensor: Tensor) -> bool:
    """Whether values may be read: on an accelerator that waits, in a compiled graph it breaks."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _index_in_turn(valid: Tensor, turn: Tensor) -> Tensor:
    """Count real words from the start of their turn (b, t): alignment padding moves nothing."""
    before = valid.long().cumsum(-1) - valid.long()
    # Padding counts to the turn of the real word before it, whatever turn it is said to be of.
    places = torch.arange(turn.shape[1], device=turn.device)
    turn = turn.gather(1, torch.where(valid, places, 0).cummax(-1).values)
    starts = torch.ones_like(valid)
    starts[:, 1:] = turn[:, 1:] != turn[:, :-1]
    return before - torch.where(starts, before, 0).cummax(-1).values
