# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Articles, plurals and numbers, by the library `inflect`."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from .reviewed import MASS, PAIRS, PLURAL, PROPER, SINGULAR, UNIQUE

NUMBERS = ("zero", "one", "two", "three", "four", "five")
# Where the noun of a name ends: before a preposition, or before what somebody or something does.
_END = re.compile(
    r" (?:of|with|without|on|in|at|behind|facing|showing|pointing|pointed|turned|tilted|for) "
    r"|(?:(?<=\bman)|(?<=woman)|(?<=person)|(?<=face|head|leaf)|(?<=chart|arrow)) [a-z]+ing\b"
)
# What a library takes for another word, or makes an old plural of.
_PLURALS = {
    **{word: f"{word}s" for word in ("burrito", "banjo", "flamingo", "dodo", "mango", "DVD")},
    **{word: word for word in ("bison", "moai", "squid", "shrimp", "fish", "deer", "moose")},
    "die": "dice",
}
# After these words of a label an article is missing where a single thing follows.
_LACKING = re.compile(
    r" (with|without|in|wearing|getting|feeding|rowing|bouncing|taking|raising|tipping|behind) "
    r"(?!an? |the |its )(.+?)(?= facing | and | over | from |$)"
)
_WITHOUT_ARTICLE = (
    *("sweat", "snow", "rain", "lightning", "silhouette", "bed", "hair", "steam", "fear", "wind"),
    "yen",
)


@cache
def _engine() -> Any:
    try:
        import inflect
    except ImportError as error:
        raise ImportError(f"{error}: articles and plurals are made by inflect") from error
    return inflect.engine()


def head_and_rest(name: str) -> tuple[str, str]:
    """Split a name before its first preposition: ("ear", " of corn")."""
    match = _END.search(name)
    return (name, "") if match is None else (name[: match.start()], name[match.start() :])


@cache
def is_plural(name: str) -> bool:
    """Tell whether a name means several already: "grapes", "people hugging"."""
    head = head_and_rest(name)[0]
    first, last = head.split()[0], head.split()[-1]
    if first in PLURAL or name in PLURAL:
        return True
    if last.lower() in SINGULAR or last.endswith(("fish", "ss", "us", "is")):
        return False
    return bool(_engine().singular_noun(last))


def is_countable(name: str) -> bool:
    """Tell whether "two ..." can be said: of a singular noun, or of a pair."""
    if name in MASS or name in UNIQUE or name in PROPER:
        return False
    return name in PAIRS or not is_plural(name)


@cache
def with_article(name: str) -> str:
    """Return a name as a caption begins with it: "an apple", "grapes", "the Kaaba"."""
    if name in PAIRS:
        return f"a pair of {name}"
    if name in UNIQUE or name.startswith(("flag of ", "letter ", "sign of ", "number sign")):
        return f"the {name}"
    if name in MASS or name in PROPER or is_plural(name):
        return name
    if name.startswith(("A ", "SOS ")):  # letters, each said by its name
        return f"an {name}"
    return str(_engine().a(name))


@cache
def plural(name: str) -> str:
    """Return the plural of a countable name: "ears of corn", "pairs of jeans"."""
    if name in PAIRS:
        return f"pairs of {name}"
    head, rest = head_and_rest(name)
    before, _, noun = head.rpartition(" ")
    owners = re.sub(r"\b(wo)?man's$", r"\1men's", before)  # a man's shoe, men's shoes
    return f"{owners} {_plural_of_word(noun)}{rest}".strip()


def _plural_of_word(noun: str) -> str:
    return _PLURALS[noun] if noun in _PLURALS else str(_engine().plural_noun(noun))


def with_inner_articles(name: str) -> str:
    """Put in the articles that labels leave out: "cup with straw", "cup with a straw"."""

    def lengthened(match: re.Match[str]) -> str:
        noun = match[2]
        bare = noun in PAIRS or {noun.split()[0], noun.split()[-1]} & {*_WITHOUT_ARTICLE}
        return f" {match[1]} {noun if bare else with_article(noun)}"

    return _LACKING.sub(lengthened, name.replace("with tongue", "with its tongue out"))


def counted(name: str, count: int) -> str:
    """Return a number and a noun: "a dog", "three dogs"."""
    return with_article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"


def listed(names: list[str]) -> str:
    """Join phrases by commas and an "and"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def words_of(text: str) -> set[str]:
    """Return the words of a text: letters alone, in lower case."""
    return set(re.findall(r"[^\W\d_]+", text.lower()))
