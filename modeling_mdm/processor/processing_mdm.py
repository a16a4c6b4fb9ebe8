# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Processor: texts and pictures to model inputs, and generated tensors back to texts and pictures.

Every task is one choice: which positions are given and which are noisy, that is, to be written.

Axes: b items, t text positions, m images per item, c channels, h height, w width.
"""

import re
from collections.abc import Mapping
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
    lay_out_words,
    pictures_of,
    read_chats,
    read_conversations,
)
from .compatibility import warn_if_untested
from .features import as_tensors, encode_texts, image_features, stack_words, text_rows
from .keywords import Keywords, check_names, names_of
from .request import Passed, Request, TextOptions, read_generation_mode, read_request
from .samples import SampleReader
from .values import check_length, integer, whole_number

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
        generation_mode: str | None = None,
        class_labels: int | list[int | None] | torch.Tensor | None = None,
        image_mask: Any = None,
        max_new_tokens: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        generate: str | None = None,
        continue_text: bool | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """Prepare one item or a batch: what is passed is given, the rest is to be written.

        `generation_mode` says what that is:

        * `None` (training, scoring): all is given, except `<mask>` words and repainted pixels.
        * `"image"`: a new image. Text is its prompt; so are pictures, unless `image_mask` says what
          to repaint in them.
        * `"text"`: a text region, after the text if there is one, about pictures if there are any.
        * `"joint"`: both; from nothing, a class label, a prompt and/or a picture.

        A text with `<mask>` in it is written in place and gets no region: each `<mask>`, with the
        space before it, is one token. A region after a text, or an image after a picture, makes all
        that is written turn 1; everything else is turn 0. With `continue_text` a text is no prompt
        but the start of what is written: a caption that is half given.

        Args:
            images: a picture, B pictures, or B lists of pictures, as the image processor reads
                them; None in a list is an absent picture, and so is what a shorter list lacks.
            text: a string or a list of B; None in a list is an absent text.
            generation_mode: None, "image", "text" or "joint".
            class_labels: a class or a list of B; -1 or None is no class.
            image_mask: 1 to repaint a pixel, 0 to keep it, at the size that the model sees:
                (h, w) for all pictures, (b, h, w), or (b, m, h, w).
            max_new_tokens: length of the text region; `max_text_length` if None, and with
                `continue_text` what the text leaves of it.
            image_size: side, or (h, w), of the images; the image processor's if None.
            generate: another name of `generation_mode`; pass one of them.
            continue_text: write what follows the text, `<end>` included, instead of an answer to
                it. Training teaches it by the task `prefix_to_joint`.
            kwargs: what processors usually take, alone or in `text_kwargs` and `images_kwargs`.
                Of texts: `max_length` instead of `max_text_length`; `padding`, "longest" or True
                unless it is "max_length", for at least so many words; `truncation`, to cut the last
                words of a longer text and keep `<end>`; `padding_side`; `pad_to_multiple_of`. Of
                images: what the image processor takes. `return_tensors`: "pt", "np", or None for
                lists. `videos` and `audio`, which pipelines pass, must be None.

        Returns:
            With any text, `input_ids`, `attention_mask` and `text_given` (b, t), and `turn_ids`
            (b, t) unless all are 0. With any image, `pixel_values` (b, m, c, h, w) and
            `image_given` (b, m, h, w), without the axis M where it is 1; `pixel_attention_mask`,
            shaped like `image_given`, if a picture is absent; and `image_turn_ids` (b, m) unless
            all are 0. `class_labels` (b,) if passed.

        Raises:
            ValueError: if arguments contradict each other or do not fit the model.
        """
        if any(kwargs.pop(other, None) is not None for other in ("videos", "audio")):
            raise ValueError("videos and audio are not read by MDM; leave them None.")
        keywords = self._read_keywords(kwargs)
        size = self._resolve_size(image_size, keywords.images)
        max_new_tokens = check_length(max_new_tokens)
        mode = read_generation_mode(generation_mode, generate)
        passed = Passed(
            text, images, class_labels, image_mask, mode, max_new_tokens, bool(continue_text)
        )
        request = read_request(passed, self.tokenizer.mask_token, size)
        features = {}
        if any(request.opens_region) or any(text is not None for text in request.texts):
            longest = self.max_text_length
            words = encode_texts(request.texts, self.tokenizer, keywords.text, longest)
            rows = text_rows(request, words, max_new_tokens, longest, self.tokenizer)
            features |= stack_words(rows, self.tokenizer, keywords.text, longest)
        if request.opens_image or any(request.images):
            features |= image_features(request, self.image_processor, size, keywords.images)
        if request.class_labels is not None:
            features["class_labels"] = self._label_tensor(request.class_labels)
        return as_tensors(features, keywords.return_tensors)

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

        A region for the reply is opened where `generation_mode` says what it holds, or
        `max_new_tokens` how long its text is; otherwise `model.generate` opens it. A picture in the
        reply has the turn of the reply if it follows a picture or comes with words, else 0, as
        elsewhere.

        Args:
            conversation: messages with `role` (system, user, assistant) and `content`, a string or
                a list of `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`.
            chat_template: a Jinja template, or the name of one of the processor's.
            add_generation_prompt: the assistant is to speak next.
            continue_final_message: open a region that goes on with the last message.
            return_assistant_tokens_mask: add `assistant_masks` (b, t), 1 on what the template shows
                within `{% generation %}`, or on words of odd turns where it marks nothing.
            tokenize: False gives text, with `<image>` for a picture.
            return_tensors: "pt", "np", or None for lists.
            return_dict: all inputs instead of `input_ids` alone.
            processor_kwargs: generation_mode (or its other name, generate), max_new_tokens, images
                and image_size (see `ChatOptions`), and the keyword arguments of `__call__`, of
                which `max_length` has no default here. They may be among `kwargs` too.
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
        _check_chat_arguments(chat_template, processor_kwargs)
        if not tokenize:
            plain = conversations if is_batch else conversations[0]
            return super().apply_chat_template(plain, chat_template, **asks, **kwargs)
        options, keywords = self._read_chat_keywords(kwargs, processor_kwargs or {}, return_tensors)
        if options.generation_mode and not any(asks.values()):
            raise ValueError(
                f"generation_mode={options.generation_mode!r} opens a region for a reply; say that "
                "one is due by add_generation_prompt=True or continue_final_message=True."
            )
        if continue_final_message:
            options.generation_mode = options.generation_mode or "text"
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
        features = self._chat_features(chats, options, keywords, return_assistant_tokens_mask)
        inputs = as_tensors(features, keywords.return_tensors)
        return inputs if return_dict else inputs["input_ids"]

    def _read_chat_keywords(
        self, kwargs: dict[str, Any], processor_kwargs: dict[str, Any], return_tensors: str | None
    ) -> tuple[ChatOptions, Keywords]:
        """Take out of `kwargs` what is said of a chat; what is left there is for its template."""
        own = ChatOptions.names()
        names = own | names_of(self.valid_processor_kwargs, self.image_processor.valid_kwargs)
        settings = {name: kwargs.pop(name) for name in names & set(kwargs)}
        settings |= {"return_tensors": return_tensors} | processor_kwargs
        options = ChatOptions(**{name: settings.pop(name) for name in own & set(settings)})
        return options, self._read_keywords(settings)

    def _chat_features(
        self, chats: list[Chat], options: ChatOptions, keywords: Keywords, with_roles: bool
    ) -> dict[str, torch.Tensor]:
        region = options.max_new_tokens or self.max_text_length
        region *= options.writes_text
        mask, side = self.tokenizer.mask_token_id, self.tokenizer.truncation_side
        rows, by_assistant = [], []
        laid_out = lay_out_words(chats, self.tokenizer)
        for chat, words in zip(chats, laid_out, strict=True):
            words = keywords.text.cut(words, side)
            row = [(word, True, True, turn) for word, turn, _ in words]
            rows.append(row + [(mask, True, False, chat.reply)] * region)
            by_assistant.append([said for *_, said in words] + [chat.reply % 2 == 1] * region)
        features = stack_words(rows, self.tokenizer, keywords.text)
        if with_roles:
            masks = torch.tensor(keywords.text.align(by_assistant, False, None)).long()
            features["assistant_masks"] = masks
        size = self._resolve_size(options.image_size, keywords.images)
        if not options.writes_image and not any(chat.pictures for chat in chats):
            return features
        pictures, turns = align_pictures(chats, options.writes_image, options.writes_text)
        task = "image" if options.writes_image else None
        request = Request([None] * len(chats), pictures, None, None, task, [])
        return features | image_features(
            request, self.image_processor, size, keywords.images, torch.tensor(turns)
        )

    def _read_keywords(self, kwargs: dict[str, Any]) -> Keywords:
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
        return Keywords(
            TextOptions.read(text_kwargs),
            merged["images_kwargs"],
            text_kwargs.get("return_tensors"),
        )

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


def _check_chat_arguments(chat_template: Any, processor_kwargs: Any) -> None:
    """Refuse a template that is no string, and keyword arguments that are no dictionary."""
    if not isinstance(chat_template, str | None):
        raise ValueError(
            f"chat_template is {chat_template!r:.60}; pass a template, a name, or None."
        )
    if not isinstance(processor_kwargs, Mapping | None):
        raise ValueError(
            f"processor_kwargs is {processor_kwargs!r:.60}; pass a dictionary of arguments."
        )


MDMProcessor.register_for_auto_class()
