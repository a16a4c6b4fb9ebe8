# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Processor: texts and pictures to model inputs, and generated tensors back to texts and pictures.

Every task is one choice: which positions are given and which are noisy, that is, to be written.

Axes: B items, T text positions, M images per item, C channels, H height, W width.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils.chat_template_utils import render_jinja_template

from .chat import (
    CHAT_TEMPLATE,
    Chat,
    ChatOptions,
    align_pictures,
    check_conversation,
    find_template,
    pictures_of,
    read_chats,
    read_conversations,
)
from .compatibility import warn_if_untested
from .request import (
    Request,
    TextOptions,
    check_length,
    check_names,
    integer,
    names_of,
    read_request,
    whole_number,
)
from .samples import SampleReader

warn_if_untested()


class MDMProcessor(SampleReader):
    """Turn texts and pictures into what `MDMForJointGeneration` reads, and back.

    Args:
        image_processor: an `MDMImageProcessor` or `MDMImageProcessorPil`.
        tokenizer: a tokenizer with `<pad>`, `<mask>` and `<end>` (its eos token).
        chat_template: Jinja template for `apply_chat_template`; MDM's own if None.
        patch_size: side of a patch; divides both sides of every image.
        max_text_length: longest text in tokens, `<end>` included; usual length of a text region.
        num_classes: number of classes, against which class labels are checked; None if unknown.

    Raises:
        ValueError: if the image processor's size is no multiple of `patch_size`.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        patch_size: int = 4,
        max_text_length: int = 32,
        num_classes: int | None = None,
    ):
        chat_template = CHAT_TEMPLATE if chat_template is None else chat_template
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        fix = "give an integer of at least 1."
        self.patch_size = integer("patch_size", patch_size, fix)
        self.max_text_length = integer("max_text_length", max_text_length, fix)
        self.num_classes = num_classes
        if num_classes is not None:
            fix = "give an integer of at least 0, or None."
            self.num_classes = integer("num_classes", num_classes, fix, least=0)
        self._resolve_size(None, {})

    @property
    def model_input_names(self) -> list[str]:
        """What a text with a picture becomes; `__call__` says when there is more."""
        return ["input_ids", "attention_mask", "text_given", "pixel_values", "image_given"]

    def to_dict(self) -> dict[str, Any]:
        """Serialise, with the place of the code, which a copy that was loaded has forgotten."""
        config = super().to_dict()
        if self._auto_class is not None:
            *_, module = type(self).__module__.split(".")
            config["auto_map"] = {self._auto_class: f"{module}.{type(self).__name__}"}
        return config

    def __call__(
        self,
        images: Any = None,
        text: str | list[str | None] | None = None,
        generate: str | None = None,
        class_labels: int | list[int | None] | torch.Tensor | None = None,
        image_mask: Any = None,
        max_new_tokens: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """Prepare one item or a batch: what is passed is given, `generate` says what is written.

        * `None` (training, scoring): all is given, except `<mask>` words and repainted pixels.
        * `"image"`: a new image. Text is its prompt; so are pictures, unless `image_mask` says what
          to repaint in them.
        * `"text"`: a text region, after the text if there is one, about pictures if there are any.
        * `"joint"`: both; from nothing, a class label, a prompt and/or a picture.

        A text with `<mask>` in it is written in place and gets no region: each `<mask>`, with the
        space before it, is one token. A region after a text, or an image after a picture, makes all
        that is written turn 1; everything else is turn 0.

        Args:
            images: a picture, B pictures, or B lists of pictures, as the image processor reads
                them; None in a list is an absent picture, and so is what a shorter list lacks.
            text: a string or a list of B; None in a list is an absent text.
            generate: None, "image", "text" or "joint".
            class_labels: a class or a list of B; -1 or None is no class.
            image_mask: 1 to repaint a pixel, 0 to keep it, at the size that the model sees:
                (H, W) for all pictures, (B, H, W), or (B, M, H, W).
            max_new_tokens: length of the text region; `max_text_length` if None.
            image_size: side, or (H, W), of the images; the image processor's if None.
            kwargs: what processors usually take, alone or in `text_kwargs` and `images_kwargs`.
                Of texts: `max_length` instead of `max_text_length`; `padding`, "longest" or True
                unless it is "max_length", for at least so many words; `truncation`, to cut the last
                words of a longer text and keep `<end>`; `padding_side`; `pad_to_multiple_of`. Of
                images: what the image processor takes. `return_tensors`: "pt", "np", or None for
                lists. `videos` and `audio`, which pipelines pass, must be None.

        Returns:
            With any text, `input_ids`, `attention_mask` and `text_given` (B, T), and `turn_ids`
            (B, T) unless all are 0. With any image, `pixel_values` (B, M, C, H, W) and
            `image_given` (B, M, H, W), without the axis M where it is 1; `pixel_attention_mask`,
            shaped like `image_given`, if a picture is absent; and `image_turn_ids` (B, M) unless
            all are 0. `class_labels` (B,) if passed.

        Raises:
            ValueError: if arguments contradict each other or do not fit the model.
        """
        if any(kwargs.pop(other, None) is not None for other in ("videos", "audio")):
            raise ValueError("videos and audio are not read by MDM; leave them None.")
        options, images_kwargs, return_tensors = self._read_kwargs(kwargs)
        size = self._resolve_size(image_size, images_kwargs)
        max_new_tokens = check_length(max_new_tokens)
        request = read_request(
            *(text, images, class_labels, image_mask, generate, max_new_tokens),
            mask_token=self.tokenizer.mask_token,
            size=size,
        )
        features = {}
        if any(request.opens_region) or any(text is not None for text in request.texts):
            region = max_new_tokens or self.max_text_length
            features |= self._text_features(request, options, region)
        if request.opens_image or any(request.images):
            features |= self._image_features(request, size, images_kwargs)
        if request.class_labels is not None:
            features["class_labels"] = self._label_tensor(request.class_labels)
        return _as_tensors(features, return_tensors)

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = None,
        return_dict: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Show a conversation or a batch as text, or make model inputs of it.

        The words of a turn end with `<end>`. Turns of the user are even and those of the assistant
        odd; a picture has the turn of its message, and a system message is part of turn 0. What
        looks like a special token in a message is plain words. Turns may be of any length.

        A region for the reply is opened where `generate` says what it holds, or `max_new_tokens`
        how long its text is; otherwise `model.generate` opens it. A picture in the reply has the
        turn of the reply if it follows a picture or comes with words, else 0, as elsewhere.

        Args:
            conversation: messages with `role` (system, user, assistant) and `content`, a string or
                a list of `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`.
            chat_template: a Jinja template, or the name of one of the processor's.
            add_generation_prompt: the assistant is to speak next.
            continue_final_message: open a region that goes on with the last message.
            return_assistant_tokens_mask: add `assistant_masks` (B, T), 1 on what the template shows
                within `{% generation %}`, or on words of odd turns where it has no such part.
            tokenize: False gives text, with `<image>` for a picture.
            return_tensors: "pt", "np", or None for lists.
            return_dict: all inputs instead of `input_ids` alone.
            processor_kwargs: generate, max_new_tokens, images and image_size (see `ChatOptions`),
                and the keyword arguments of `__call__`, of which `max_length` has no default here.
                They may be among `kwargs` too.
            kwargs: further variables of the template.

        Returns:
            Text, or what `__call__` returns; always with the axis M of pictures if some
            conversation has several.

        Raises:
            ValueError: if roles do not alternate, or arguments contradict each other.
        """
        asks = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        conversations, is_batch = read_conversations(conversation)
        if not isinstance(chat_template, str | None):
            raise ValueError(
                f"chat_template is {chat_template!r:.60}; pass a template, a name, or None."
            )
        if not isinstance(processor_kwargs, Mapping | None):
            raise ValueError(
                f"processor_kwargs is {processor_kwargs!r:.60}; pass a dictionary of arguments."
            )
        if not tokenize:
            return super().apply_chat_template(conversation, chat_template, **asks, **kwargs)
        options, settings = self._chat_settings(kwargs, processor_kwargs or {}, return_tensors)
        if options.generate and not any(asks.values()):
            raise ValueError(
                f"generate={options.generate!r} opens a region for a reply; say that one is due by "
                "add_generation_prompt=True or continue_final_message=True."
            )
        for messages in conversations:
            check_conversation(messages, awaits_reply=add_generation_prompt)
        if options.images is None:
            pictures = list(map(pictures_of, conversations))
        else:
            pictures = options.pictures(is_batch)
        template = find_template(self.chat_template, chat_template)
        # A template may mark what the assistant says; turns tell where it does not.
        marked = re.search(r"{%-?\s*generation\s*-?%}", template) is not None

        def render(defused: list[list[dict[str, Any]]]) -> tuple[list[str], list[Any]]:
            return render_jinja_template(
                defused,
                chat_template=template,
                return_assistant_tokens_mask=return_assistant_tokens_mask and marked,
                **asks,
                **{**self.tokenizer.special_tokens_map, **kwargs},
            )

        chats = read_chats(conversations, pictures, render, self.tokenizer)
        if continue_final_message:
            options.generate = options.generate or "text"
        return_tensors = settings.pop("return_tensors")
        features = self._chat_features(chats, options, return_assistant_tokens_mask, **settings)
        inputs = _as_tensors(features, return_tensors)
        return inputs if return_dict else inputs["input_ids"]

    def _chat_settings(
        self, kwargs: dict[str, Any], processor_kwargs: dict[str, Any], return_tensors: str | None
    ) -> tuple[ChatOptions, dict[str, Any]]:
        """Part what is said of a chat; what is left in `kwargs` is for its template."""
        own = {option.name for option in fields(ChatOptions)}
        names = own | names_of(self.valid_processor_kwargs, self.image_processor.valid_kwargs)
        settings = {name: kwargs.pop(name) for name in names & set(kwargs)}
        settings |= {"return_tensors": return_tensors} | processor_kwargs
        options = ChatOptions(**{name: settings.pop(name) for name in own & set(settings)})
        text_options, images_kwargs, return_tensors = self._read_kwargs(settings)
        return options, {
            "text_options": text_options,
            "images_kwargs": images_kwargs,
            "return_tensors": return_tensors,
        }

    def _chat_features(
        self,
        chats: list[Chat],
        options: ChatOptions,
        with_roles: bool,
        text_options: TextOptions,
        images_kwargs: dict[str, Any],
    ) -> dict[str, torch.Tensor]:
        region = options.max_new_tokens or self.max_text_length
        region *= options.generate in ("text", "joint")
        mask, side = self.tokenizer.mask_token_id, self.tokenizer.truncation_side
        rows, by_assistant = [], []
        for chat in chats:
            words = text_options.cut(chat.words(self.tokenizer), side)
            row = [(word, True, True, turn) for word, turn, _ in words]
            rows.append(row + [(mask, True, False, chat.reply)] * region)
            by_assistant.append([said for *_, said in words] + [chat.reply % 2 == 1] * region)
        features = self._stack_rows(rows, text_options)
        if with_roles:
            masks = torch.tensor(text_options.align(by_assistant, False, None)).long()
            features["assistant_masks"] = masks
        size = self._resolve_size(options.image_size, images_kwargs)
        opens_image = options.generate in ("image", "joint")
        if not opens_image and not any(chat.pictures for chat in chats):
            return features
        pictures, turns = align_pictures(chats, opens_image, options.generate == "joint")
        task = "image" if opens_image else None
        request = Request([None] * len(chats), pictures, None, None, task, [])
        return features | self._image_features(request, size, images_kwargs, torch.tensor(turns))

    def _read_kwargs(
        self, kwargs: dict[str, Any]
    ) -> tuple[TextOptions, dict[str, Any], str | None]:
        """Part the usual keyword arguments: of text, of images, and the kind of tensors."""
        kwargs = {
            name: value or {} if name.endswith("_kwargs") else value
            for name, value in kwargs.items()
        }
        kind = kwargs.get("return_tensors")
        if not isinstance(kind, str | None) or kind not in (None, "pt", "np"):
            raise ValueError(f"return_tensors={kind!r:.80} is unknown; use 'pt', 'np' or None.")
        check_names(kwargs, self.valid_processor_kwargs, self.image_processor.valid_kwargs)
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        text_kwargs = merged["text_kwargs"]
        options = TextOptions.read(text_kwargs)
        return options, merged["images_kwargs"], text_kwargs.get("return_tensors")

    def _resolve_size(
        self, image_size: int | tuple[int, int] | None, images_kwargs: Mapping[str, Any]
    ) -> tuple[int, int]:
        if image_size is None:
            image_size = images_kwargs.get("size")
        if image_size is None:
            size = (self.image_processor.size.height, self.image_processor.size.width)
        elif isinstance(image_size, Mapping):
            size = (image_size.get("height", 0), image_size.get("width", 0))
        else:
            several = isinstance(image_size, list | tuple | np.ndarray)
            size = tuple(image_size) if several else (image_size, image_size)
        found = [whole_number(side) for side in size]
        if len(found) != 2 or any(
            side is None or side < 1 or side % self.patch_size for side in found
        ):
            raise ValueError(
                f"image_size={size!r:.80} must be two positive multiples of "
                f"patch_size={self.patch_size}."
            )
        return found[0], found[1]

    def _label_tensor(self, labels: list[int]) -> torch.Tensor:
        highest = max(labels) if self.num_classes is None else self.num_classes - 1
        for label in labels:
            if not -1 <= label <= highest:
                known = "0 or more" if self.num_classes is None else f"0 to {highest}"
                raise ValueError(f"class_labels has {label}; use {known}, or -1 for no class.")
        return torch.tensor(labels)

    def _text_features(
        self, request: Request, options: TextOptions, region_length: int
    ) -> dict[str, torch.Tensor]:
        """Lay out each item's words, `<end>` and its region, then align the rows."""
        mask, end = self.tokenizer.mask_token_id, self.tokenizer.eos_token_id
        rows = []
        items = zip(
            self._encode(request.texts, options),
            request.opens_region,
            request.written_turn,
            strict=True,
        )
        for words, opens_region, written_turn in items:
            text_turn = written_turn if request.writes_text and not opens_region else 0
            spoken = [] if words is None else [*words, end]
            row = [(word, True, word != mask, text_turn) for word in spoken]
            if opens_region:
                row += [(mask, True, False, written_turn)] * region_length
            rows.append(row)
        return self._stack_rows(rows, options, self.max_text_length)

    def _stack_rows(
        self,
        rows: list[list[tuple[int, bool, bool, int]]],
        options: TextOptions,
        usual: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Align rows of (word, is real, is given, turn)."""
        filling = (self.tokenizer.pad_token_id, False, False, 0)
        table = torch.tensor(options.align(rows, filling, usual))  # (B, T, 4)
        input_ids, attention_mask, text_given, turn_ids = table.permute(2, 0, 1).contiguous()
        features = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "text_given": text_given.bool(),
        }
        return features | ({"turn_ids": turn_ids} if turn_ids.any() else {})

    def _encode(self, texts: list[str | None], options: TextOptions) -> list[list[int] | None]:
        """Token ids of each text, without `<end>`, with the mask id for each `<mask>`."""
        # The space before <mask> goes with it, because a token is a word and the space before it.
        mask = re.compile(" ?" + re.escape(self.tokenizer.mask_token))
        parts = {row: mask.split(text) for row, text in enumerate(texts) if text is not None}
        flat = [part for between_masks in parts.values() for part in between_masks]
        as_words = {"add_special_tokens": False, "split_special_tokens": True}
        pieces = iter(self.tokenizer(flat, **as_words)["input_ids"] if flat else ())
        limit, length = "max_length", options.max_length
        if length is None:
            limit, length = "max_text_length", self.max_text_length
        encoded: list[list[int] | None] = [None] * len(texts)
        for row, between_masks in parts.items():
            words = list(next(pieces))
            for _ in between_masks[1:]:
                words += [self.tokenizer.mask_token_id, *next(pieces)]
            if len(words) >= length and not options.truncation:
                raise ValueError(
                    f"text {texts[row]!r:.60} has {len(words) + 1} tokens with <end>, more than "
                    f"{limit}={length}; shorten it, or pass truncation=True."
                )
            encoded[row] = words[: length - 1]
        return encoded

    def _image_features(
        self,
        request: Request,
        size: tuple[int, int],
        images_kwargs: dict[str, Any],
        turns: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Stack each item's pictures, and a blank where a new image is to be written.

        `turns` (B, M) are those of the pictures if they are not all written now.
        """
        known = len(request.images[0])
        shape = (len(request.images), known + request.opens_image)  # (B, M)
        present = torch.ones(shape, dtype=torch.bool)
        present[:, :known] = torch.tensor(
            [[picture is not None for picture in pictures] for pictures in request.images]
        )
        pixel_values = torch.zeros(*shape, self.image_processor.num_channels, *size)
        pictures = [picture for row in request.images for picture in row if picture is not None]
        if pictures:
            side = dict(zip(("height", "width"), size, strict=True))
            prepared = self.image_processor(
                pictures, **{**images_kwargs, "size": side, "return_tensors": "pt"}
            )
            pixel_values[:, :known][present[:, :known]] = prepared["pixel_values"].cpu()

        given = torch.ones(*shape, *size, dtype=torch.bool)
        if request.image_mask is not None:
            given &= ~request.image_mask | ~present[..., None, None]
            if request.writes_image:  # a call that only scores needs the true pixels
                pixel_values *= given[:, :, None]
        if request.opens_image:
            given[:, -1] = False
        if turns is None:
            turns = torch.zeros(shape, dtype=torch.long)
            if request.writes_image:
                written = slice(-1, None) if request.opens_image else slice(None)
                turns[:, written] = torch.tensor(request.written_turn)[:, None]

        features = {"pixel_values": pixel_values, "image_given": given}
        if not present.all():
            features["pixel_attention_mask"] = present[..., None, None].expand_as(given).long()
        if shape[1] == 1:
            features = {name: value.squeeze(1) for name, value in features.items()}
        return features | ({"image_turn_ids": turns} if turns.any() else {})


def _as_tensors(features: dict[str, torch.Tensor], kind: str | None) -> BatchFeature:
    """Give features as torch tensors ("pt"), arrays ("np") or lists (None)."""
    if kind == "pt":
        return BatchFeature(features)
    if kind is None:
        return BatchFeature({name: value.tolist() for name, value in features.items()})
    arrays = {name: value.numpy() for name, value in features.items()}
    return BatchFeature(arrays, tensor_type=kind)


MDMProcessor.register_for_auto_class()
