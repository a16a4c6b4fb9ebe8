# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations: messages with roles, words and pictures become numbered turns.

The user speaks in turns 0, 2, ... and the assistant in turns 1, 3, ...; a system message is the
beginning of turn 0. So a question with its answer is what `processor(text=...,
generation_mode="text")` makes of it, and a role is known by its turn.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field, fields, is_dataclass
from itertools import islice, repeat
from typing import Any

from .request import read_generation_mode
from .values import check_length, is_list, is_picture

# What ends a turn and what stands for a picture, `<end>` and `<image>`, come from the tokenizer.
CHAT_TEMPLATE = """\
{%- macro show(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {{- image_token if part.type == 'image' else part.text -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {{- show(message.content) -}}
    {{- '\\n' if message.role == 'system' else eos_token -}}
{%- endfor -%}
"""

_MESSAGES = (
    "pass messages, [{'role': 'user', 'content': ...}], or a list of such lists for a batch."
)

# A noncharacter of Unicode: inside a special token that somebody typed, it makes it plain words.
_TYPED = "\ufdd0"


@dataclass
class Chat:
    """One conversation, turn by turn.

    Attributes:
        texts: the words of each turn, the user's first.
        pictures: all pictures, in order.
        picture_turns: the turn of each picture.
        is_open: whether the last text goes on: nothing has ended it.
        spoken: of each turn, whether the assistant said each character, `<end>` included; None
            where turns tell.
    """

    texts: list[str]
    pictures: list[Any] = field(default_factory=list)
    picture_turns: list[int] = field(default_factory=list)
    is_open: bool = False
    spoken: list[list[bool]] | None = None

    @property
    def reply(self) -> int:
        """The turn of what is written next."""
        return len(self.texts) - self.is_open


@dataclass
class ChatOptions:
    """What `apply_chat_template` takes beside what any processor takes; as in `__call__`.

    `images` are the pictures of messages that only say `{"type": "image"}`: a list for a
    conversation, a list of lists for a batch.
    """

    generation_mode: str | None = None
    max_new_tokens: int | None = None
    images: Any = None
    image_size: int | tuple[int, int] | None = None
    generate: InitVar[str | None] = None  # another name of `generation_mode`

    def __post_init__(self, generate: str | None) -> None:
        self.generation_mode = read_generation_mode(self.generation_mode, generate)
        self.max_new_tokens = check_length(self.max_new_tokens)
        if self.generation_mode is None and self.max_new_tokens is not None:
            self.generation_mode = "text"
        if self.generation_mode == "image" and self.max_new_tokens is not None:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} is the length of a text region, and "
                "generation_mode='image' opens none; use 'text' or 'joint', or leave it out."
            )

    @classmethod
    def names(cls) -> set[str]:
        """The names of all options."""
        return {"generate", *(option.name for option in fields(cls))}

    @property
    def writes_text(self) -> bool:
        """Whether the reply holds words."""
        return self.generation_mode in ("text", "joint")

    @property
    def writes_image(self) -> bool:
        """Whether the reply holds a picture."""
        return self.generation_mode in ("image", "joint")

    def pictures(self, is_batch: bool) -> list[list[Any]]:
        """List `images` by conversation; a picture alone is the only one of its conversation.

        Raises:
            ValueError: if they are no pictures.
        """
        rows = self.images if is_batch else [self.images]
        if not is_list(rows) or not all(is_list(row) or is_picture(row) for row in rows):
            raise ValueError(
                f"images is {self.images!r:.60}; pass a list of pictures, and a list of such lists "
                "for a batch of conversations."
            )
        return [[row] if is_picture(row) else list(row) for row in rows]


def as_dictionary(value: Any) -> Any:
    """Give the fields of a dataclass or of a pydantic model by name; all else as it is."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    return value.model_dump() if callable(getattr(value, "model_dump", None)) else value


def read_conversations(conversation: Any) -> tuple[list[list[dict[str, Any]]], bool]:
    """Give a batch of conversations, and whether several were passed.

    `{"type": "image_url", "image_url": {"url": ...}}` becomes `{"type": "image", "url": ...}`.

    Raises:
        ValueError: if these are no lists of messages, or the content of one is neither words nor a
            list.
    """

    def usual(piece: Any) -> Any:
        piece = as_dictionary(piece)
        if isinstance(piece, dict) and piece.get("type") == "image_url":
            address = piece.get("image_url")
            address = address.get("url") if isinstance(address, dict) else address
            return {"type": "image", "url": address}
        return piece

    def read(message: Any) -> dict[str, Any]:
        message = as_dictionary(message)
        if not isinstance(message, Mapping):
            raise ValueError(f"conversation has {message!r:.60}; {_MESSAGES}")
        if not isinstance(message.get("content"), str | list | tuple | None):
            raise ValueError(
                f"content is {message['content']!r:.60}; use a string, or a list of "
                "{'type': 'text', 'text': ...} and {'type': 'image', 'image': ...}."
            )
        message = {name: value for name, value in message.items() if value is not None}
        if isinstance(message.get("content"), list | tuple):
            message["content"] = list(map(usual, message["content"]))
        return message

    if not is_list(conversation):
        raise ValueError(f"conversation is {conversation!r:.60}; {_MESSAGES}")
    conversation = list(conversation)
    is_batch = bool(conversation) and isinstance(conversation[0], list | tuple)
    if is_batch and not all(isinstance(messages, list | tuple) for messages in conversation):
        raise ValueError(f"conversation is {conversation!r:.60}; {_MESSAGES}")
    conversations = conversation if is_batch else [conversation]
    return [list(map(read, messages)) for messages in conversations], is_batch


def pictures_of(conversation: list[dict[str, Any]]) -> list[Any]:
    """List the pictures that the messages hold or name, in order."""
    return [
        piece[source]
        for message in conversation
        if not isinstance(message.get("content", ""), str)
        for piece in message["content"]
        if piece["type"] == "image"
        for source in ("image", "url", "path", "base64")
        if source in piece
    ]


def find_template(templates: Any, wanted: str | None) -> str:
    """Choose among a processor's templates by name; another string is a template itself.

    Raises:
        ValueError: if none is wanted and there is no default.
    """
    named = templates if isinstance(templates, dict) else {"default": templates}
    template = named.get("default") if wanted is None else named.get(wanted, wanted)
    if template is None:
        raise ValueError(
            f"chat_template=None, and there is no default among {sorted(named)}; name one, or pass "
            "a template."
        )
    return template


def read_chats(
    conversations: list[list[dict[str, Any]]],
    pictures: list[list[Any]],
    render: Callable[[list[list[dict[str, Any]]]], tuple[list[str], list[list[tuple[int, int]]]]],
    tokenizer: Any,
) -> list[Chat]:
    """Split conversations into turns, as their chat template shows them.

    Args:
        conversations: messages with `role` and `content`, a string or a list of pieces
            `{"type": "text", "text": ...}` and `{"type": "image", ...}`.
        pictures: of each conversation, in order.
        render: applies the chat template; gives texts, and the spans of each that the template
            marks as the assistant's, or no spans at all.
        tokenizer: knows `<end>`, `<image>` and the other special tokens.

    Raises:
        ValueError: if the template shows other pictures than there are.
    """
    specials = "|".join(map(re.escape, sorted(tokenizer.all_special_tokens)))
    shown, spans = render([_defused(conversation, specials) for conversation in conversations])
    marks = re.compile(f"({re.escape(tokenizer.eos_token)}|{re.escape(tokenizer.image_token)})")
    return [
        _split(marks.split(text), tokenizer.image_token, own, said)
        for text, own, said in zip(shown, pictures, spans or [None] * len(shown), strict=True)
    ]


def lay_out_words(chats: list[Chat], tokenizer: Any) -> list[list[tuple[int, int, bool]]]:
    """Lay out all words of each conversation, `<end>` after each turn.

    Returns:
        for each conversation its words: (word, turn, whether the assistant's).
    """
    marked = any(chat.spoken is not None for chat in chats)
    encoded = tokenizer(
        [text for chat in chats for text in chat.texts],
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=marked,
    )
    words = iter(encoded["input_ids"])
    places = iter(encoded["offset_mapping"]) if marked else repeat([])
    rows = []
    for chat in chats:
        turns = len(chat.texts)
        rows.append(_words(chat, [*islice(words, turns)], [*islice(places, turns)], tokenizer))
    return rows


def _words(
    chat: Chat, words: list[list[int]], places: list[list[tuple[int, int]]], tokenizer: Any
) -> list[tuple[int, int, bool]]:
    """Lay out one conversation by the words of each turn and their places in its text."""
    row = []
    for turn, (own, spans) in enumerate(zip(words, places, strict=True)):
        said, ended = [turn % 2 == 1] * len(own), turn % 2 == 1
        if chat.spoken is not None:
            said = [any(chat.spoken[turn][start:stop]) for start, stop in spans]
            ended = turn < chat.reply and chat.spoken[turn][-1]
        row += [(word, turn, by) for word, by in zip(own, said, strict=True)]
        if turn < chat.reply:
            row.append((tokenizer.eos_token_id, turn, ended))
    return row


def align_pictures(
    chats: list[Chat], opens_image: bool, with_words: bool
) -> tuple[list[list[Any]], list[list[int]]]:
    """Give every conversation equally many pictures, absent ones last.

    Args:
        opens_image: whether a picture is written after them. with_words: whether words are, too.

    Returns:
        the pictures known, None where absent, and the turns of all, one to be written included.
    """
    most = max(len(chat.pictures) for chat in chats)
    pictures, turns = [], []
    for chat in chats:
        absent = most - len(chat.pictures)
        pictures.append([*chat.pictures, *[None] * absent])
        written = chat.reply if with_words or chat.pictures else 0
        turns.append([*chat.picture_turns, *[0] * absent, *[written] * opens_image])
    return pictures, turns


def check_conversation(conversation: list[dict[str, Any]], awaits_reply: bool) -> None:
    """Refuse conversations that have no turns, or pieces that are neither words nor pictures.

    Raises:
        ValueError: if roles do not alternate, a reply is asked for after a reply, or a piece has an
            unknown type.
    """
    for message in conversation:
        content = message.get("content") or []
        for piece in [] if isinstance(content, str) else content:
            kind = piece.get("type") if isinstance(piece, dict) else None
            if kind != "image" and not (kind == "text" and isinstance(piece.get("text"), str)):
                raise ValueError(
                    f"content has {piece!r:.80}; use {{'type': 'text', 'text': ...}} and "
                    "{'type': 'image', 'image': ...}."
                )
    roles = [message.get("role") for message in conversation]
    if unknown := sorted({str(role) for role in roles} - {"system", "user", "assistant"}):
        raise ValueError(f"conversation has the roles {unknown}; use system, user and assistant.")
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or any(
        role != ("user", "assistant")[turn % 2] for turn, role in enumerate(spoken)
    ):
        raise ValueError(
            f"conversation has the roles {roles}; start with user, after at most one system "
            "message, then alternate assistant and user."
        )
    if awaits_reply and len(spoken) % 2 == 0:
        raise ValueError(
            "add_generation_prompt=True asks for a reply, but the conversation ends with the "
            "assistant's; add a message of the user, or pass continue_final_message=True."
        )


def _defused(conversation: list[dict[str, Any]], specials: str) -> list[dict[str, Any]]:
    """Copy a conversation, with what looks like a special token in its texts made plain words."""

    def plain(text: str) -> str:
        return re.sub(specials, lambda match: match[0][:1] + _TYPED + match[0][1:], text)

    def content_of(content: Any) -> Any:
        if isinstance(content, str):
            return plain(content)
        return [
            {**piece, "text": plain(piece["text"])}
            if piece["type"] == "text"
            else {"type": "image"}
            for piece in content or []
        ]

    return [{**m, "content": content_of(m.get("content"))} for m in conversation]


def _split(
    pieces: list[str],
    image_token: str,
    pictures: list[Any],
    spans: list[tuple[int, int]] | None,
) -> Chat:
    """Make turns of text, mark, text, mark, ..., text."""
    said = [False] * sum(map(len, pieces))
    for start, stop in spans or ():
        said[start:stop] = [True] * (stop - start)
    chat = Chat([""], pictures, spoken=None if spans is None else [[]])
    place = 0
    for text, mark in zip(pieces[::2], [*pieces[1::2], None], strict=True):
        chat.texts[-1] += text.replace(_TYPED, "")
        if spans is not None:
            characters = zip(text, said[place : place + len(text)], strict=True)
            chat.spoken[-1] += [by for character, by in characters if character != _TYPED]
        place += len(text) + len(mark or "")
        if mark == image_token:
            chat.picture_turns.append(len(chat.texts) - 1)
        elif mark is not None:
            chat.texts.append("")
            if spans is not None:
                chat.spoken[-1].append(said[place - 1])
                chat.spoken.append([])
    chat.is_open = bool(chat.texts[-1])
    if not chat.is_open:
        chat.texts.pop()
    if len(chat.picture_turns) != len(pictures):
        raise ValueError(
            f"conversation shows {len(chat.picture_turns)} pictures and {len(pictures)} were "
            "passed; give each {'type': 'image'} its own under 'image', 'url' or 'path', or all "
            "of them in processor_kwargs={'images': ...}."
        )
    return chat
