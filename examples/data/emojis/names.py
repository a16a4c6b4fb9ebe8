# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What an emoji is called: emojibase's labels made noun phrases, and icons found by their names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .reviewed import NOT_IN_SCENES, REWRITTEN
from .sources import Names, Sources
from .words import NUMBERS, is_countable, listed, plural, with_article, with_inner_articles

OBJECT_GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
# Of other groups these may stand in scenes, too.
OBJECT_SUBGROUPS = (
    *("face-smiling", "face-affection", "face-tongue", "face-neutral-skeptical", "face-sleepy"),
    *("face-concerned", "face-negative", "face-costume", "cat-face", "monkey-face", "heart"),
    *("person-role", "person-fantasy", "geometric"),
)
NOT_OBJECT_SUBGROUPS = ("time", "place-map")
ROLES = ("person-role", "person-fantasy")
SIGNS = ("transport-sign", "warning")
COLOURED = re.compile(
    r"\b(?:red|orange|yellow|green|blue|purple|pink|brown|black|white|gr[ae]y|light|beige)\b"
)
UNSCENIC = re.compile(r"\b(?:waxing|waning|quarter|medium|medium-small)\b")  # too alike
HAIR = re.compile(r"(man|woman|person): (\w+) hair")


@dataclass(frozen=True)
class Concept:
    """Something that is drawn.

    Args:
        code: its code points, which identify it.
        name: a noun phrase without article: "red apple".
        phrase: with its article: "a red apple".
        plural: "red apples"; None where it is not counted.
        group: emojibase's group.
        keywords: emojibase's tags, without those that are no words.
        is_object: whether it may stand in scenes.
    """

    code: str
    name: str
    phrase: str
    plural: str | None
    group: str
    keywords: tuple[str, ...]
    is_object: bool

    @property
    def has_colour(self) -> bool:
        """Whether the name says a colour."""
        return COLOURED.search(self.name) is not None


def noun_phrase(label: str, subgroup: str) -> str:
    """Turn a label of emojibase into a noun phrase without article."""
    label = label.replace("’", "'").replace("“", "").replace("”", "").replace("&", "and")
    if label in REWRITTEN:
        return REWRITTEN[label]
    label = re.sub(r"\b(St|Mrs|Mr)\.", r"\1", label)
    label = re.sub(r" \(blood type\)$", "", label).replace(": facing", " facing")
    if label.startswith("regional indicator "):
        return f"letter {label[-1]}"
    kind, _, rest = label.partition(": ")
    if rest:
        return _with_detail(kind, rest)
    if label.endswith((" facing right", " facing left")):
        return with_inner_articles(label)
    if subgroup == "time" and label.endswith("o'clock"):
        return f"clock at {label}"
    if subgroup == "time" and label.endswith("-thirty"):
        return f"clock at half past {label.removesuffix('-thirty')}"
    if subgroup == "zodiac":
        return f"sign of {label}"
    if subgroup in SIGNS and not label.endswith(("sign", "symbol", "room")):
        return f"{label} sign"
    if subgroup == "keycap":
        return f"keycap {label}"
    if subgroup in ROLES:
        label = re.sub(r"^(man|woman) (?!with|in|wearing|feeding)", _as_adjective, label)
    return with_inner_articles(label)


def _as_adjective(match: re.Match[str]) -> str:
    return {"man": "male ", "woman": "female "}[match[1]]


def _with_detail(kind: str, rest: str) -> str:
    if kind == "flag":
        return f"flag of {rest}"
    if kind == "keycap":
        return f"keycap {({'#': 'with a hash', '*': 'with an asterisk'}).get(rest, rest)}"
    if hair := HAIR.fullmatch(f"{kind}: {rest}"):
        return f"{hair[1]} with {hair[2]} hair"
    if rest == "bald":
        return f"bald {kind}"
    if rest == "beard":
        return f"{kind} with a beard"
    people = rest.split(", ")
    counts = {name: people.count(name) for name in people}
    said = listed(
        [with_article(n) if c == 1 else f"{NUMBERS[c]} {plural(n)}" for n, c in counts.items()]
    )
    if kind == "kiss":
        return f"kiss of {said}"
    if kind == "couple with heart":
        return f"couple of {said} with a heart"
    if kind == "family":
        return f"family of {said}"
    return with_inner_articles(f"{kind} {rest}")


def _keywords(tags: Iterable[str], name: str) -> tuple[str, ...]:
    """Keep tags that are words, lower case ones first as they come, and not the name itself."""
    words = [tag.replace("’", "'").replace("_", " ") for tag in tags]
    kept = [word for word in words if re.fullmatch(r"[a-zA-Z][a-z' -]{2,}", word)]
    return tuple(word for word in dict.fromkeys(kept) if word.lower() != name.lower())


def read_concepts(names: Names) -> dict[str, Concept]:
    """Make the concepts of all emojis, by code; skin tones and other parts are left out."""
    found: dict[str, Concept] = {}
    taken: set[str] = set()
    for emoji in names.emojis:
        group = names.groups.get(emoji.get("group", -1), "symbols")
        subgroup = names.subgroups.get(emoji.get("subgroup", -1), "alphanum")
        if group == "component":
            continue
        name = noun_phrase(emoji["label"], subgroup)
        if name.lower() in taken:
            name = f"{name} symbol"
        taken.add(name.lower())
        is_object = _is_object(name, group, subgroup)
        code = bare(emoji["hexcode"])
        found[code] = Concept(
            code=code,
            name=name,
            phrase=with_article(name),
            plural=plural(name) if is_object else None,
            group=group,
            keywords=_keywords(emoji.get("tags", ()), name),
            is_object=is_object,
        )
    return found


def _is_object(name: str, group: str, subgroup: str) -> bool:
    if group in OBJECT_GROUPS:
        fits = subgroup not in NOT_OBJECT_SUBGROUPS
    else:
        fits = subgroup in OBJECT_SUBGROUPS
    words = name.split()
    short = len(words) <= 5 and "and" not in words and not UNSCENIC.search(name)
    return fits and short and name not in NOT_IN_SCENES and is_countable(name)


def bare(code: str) -> str:
    """Return code points without those that only say how an emoji is shown."""
    return "-".join(c for c in code.upper().split("-") if c not in ("FE0F", "FE0E"))


def slug(name: str) -> str:
    """Return the letters and digits of a name alone: packages differ in all else."""
    plain = unicodedata.normalize("NFKD", name.replace("&", "and"))
    return re.sub(r"[^a-z0-9]", "", plain.encode("ascii", "ignore").decode().lower())


def codes_by_name(sources: Sources) -> dict[str, str]:
    """Return code points by the names that emojis have; the surest source of a name counts."""
    names = sources.names
    known: dict[str, str] = {}

    def note(name: str, code: str) -> None:
        known.setdefault(slug(name), bare(code))

    for emoji in names.emojis:
        note(emoji["label"], emoji["hexcode"])
    for icons in sources.icon_sets.values():
        for code, name in icons.chars.items():
            note(name, code)
    for table in names.shortcodes[:2]:
        _note_shortcodes(table, note)
    for code, name in names.unicode_names.items():
        note(name, code)
    for icons in sources.icon_sets.values():
        for alias, parent in icons.aliases.items():
            if slug(parent) in known:
                note(alias, known[slug(parent)])
    for table in names.shortcodes[2:]:
        _note_shortcodes(table, note)
    for name in list(known):
        if name.startswith("flag"):  # the oldest sets say "flag for"
            known.setdefault(f"flagfor{name.removeprefix('flag')}", known[name])
    return known


def _note_shortcodes(table: Mapping[str, str | Sequence[str]], note: object) -> None:
    assert callable(note)
    for code, names in table.items():
        for name in [names] if isinstance(names, str) else names:
            note(name, code)


def icons_of(sources: Sources, style: str, known: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the icons of a style by the code of what they show; several where it drew several."""
    icons = sources.icon_sets[style]
    codes = {name: bare(code) for code, name in icons.chars.items()}
    found: dict[str, list[str]] = {}
    for name in sorted(icons.icons):
        numbered = re.sub(r"-\d$", "", name)
        code = codes.get(name) or known.get(slug(name)) or known.get(slug(numbered))
        if code is not None:
            found.setdefault(code, []).append(name)
    return found
