# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Captions as words, by the rules of the Penn Treebank that COCO's evaluation goes by.

COCO's evaluation calls Stanford's tokenizer, which needs Java. These are its rules for what
captions are written with: English words, contractions, abbreviations, numbers, dates, prices,
brackets, quotes, dashes and addresses. Spellings, smileys and other scripts are left as they are.
Where they differ from Stanford's they do so for model and people alike.
"""

from __future__ import annotations

import re

# What COCO's evaluation drops. Brackets stay: it looks for -LRB- after everything is lower case.
DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
BRACKETS = dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))
_WRITTEN_OUT = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "–": "--", "—": "--", "\u00a0": " "}
    | {"½": "1/2", "¼": "1/4", "¾": "3/4", "£": "#", "€": "$", "¢": " cents "}
)
# Abbreviations that keep their full stop: always, and before a number only.
_ABBREVIATIONS = (
    *("mr", "mrs", "ms", "dr", "prof", "rev", "gen", "sen", "gov", "capt", "lt", "sgt", "col"),
    *("st", "jr", "sr", "vs", "etc", "inc", "ltd", "corp", "co", "bros", "ave", "blvd", "ft"),
    *("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sept", "sep", "oct", "nov", "dec"),
    *("dept", "est", "approx"),
)
_SPLIT = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
    "'tis": "'t is",
    "'twas": "'t was",
    "more'n": "more 'n",
}
_LETTER = r"[^\W\d_]"
_ENDING = r"(?:n't|'(?:s|m|d|re|ve|ll))"
_WORD = rf"(?:{_LETTER}|\d)(?:\w|&(?={_LETTER}))*"

TOKEN = re.compile(
    "|".join(
        (
            r"https?://[^\s\"<>]*[^\s\"<>.,;:!?')]",
            r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
            r"</?\w+>",
            r"\.{3,}|-{2,}|[?!]{2,}|''",
            rf"'(?:tis|twas|em|n'|\d0s)(?!{_LETTER})",
            rf"(?:{'|'.join(_ABBREVIATIONS)})\.(?!\w)|(?:no|pp?)\.(?=\s*\d)",
            rf"(?<!\w)(?:{_LETTER}\.){{2,}}(?!\w)",
            r"(?<!\w)(?-i:[A-Z])\.(?!\w)",  # an initial, or a unit
            r"o'clock|ma'am|d'ye|more'n|ph\.(?!\w)",
            rf"(?<!\w)[dlo]'{_LETTER}{{3,}}?(?={_ENDING}|(?!\w))",
            r"[@#][^\W\d]\w*",
            r"y'(?=all\b)",
            # Numbers: 1,000 3.5 10:30 12/25/2014 555-1234 -5; 20th and 5ft are words.
            r"(?<![\w.])[-+]?\d+(?:[.,:/-]\d+)*(?![\w-])",
            r"\.\d+",
            # Words: hyphenated, with strokes or full stops inside, up to the ending that is split.
            rf"(?:(?!{_LETTER}*{_ENDING}(?!\w)){_WORD}(?:[-/.@]{_WORD})*)",
            rf"{_LETTER}+?(?={_ENDING}(?!\w))",
            rf"{_ENDING}(?!\w)",
            r"[^\s\U00010000-\U0010ffff]",  # Stanford's knows no emoji
        )
    ),
    re.IGNORECASE,
)


def ptb_tokens(caption: str) -> list[str]:
    """Cut a caption into lower-case words, without the punctuation that COCO's evaluation drops."""
    tokens = []
    for found in TOKEN.findall(caption.translate(_WRITTEN_OUT)):
        found = re.sub(r"^\.{3,}$", "...", found)
        tokens += _SPLIT.get(found.lower(), BRACKETS.get(found, found)).lower().split()
    return [token for token in tokens if token not in DROPPED and token != '"']
