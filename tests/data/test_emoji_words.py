# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What emojis are called: articles, plurals, and noun phrases of labels that are none."""

import pytest
import tiny_emojis

from emojis.names import noun_phrase, slug
from emojis.splits import forms
from emojis.wordnet import WordNet, read_wordnet
from emojis.words import counted, is_countable, listed, plural, with_article, words_of

pytest.importorskip("inflect", reason='articles need inflect: pip install "modeling-mdm[emoji]"')


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        *{"red apple": "a red apple", "hourglass": "an hourglass", "unicorn": "a unicorn"}.items(),
        *{"ewe": "a ewe", "OK button": "an OK button", "A button": "an A button"}.items(),
        *{
            "grapes": "grapes",
            "cooked rice": "cooked rice",
            "people hugging": "people hugging",
        }.items(),
        *{"headphones": "a pair of headphones", "glasses": "a pair of glasses"}.items(),
        *{"flag of Brazil": "the flag of Brazil", "Kaaba": "the Kaaba"}.items(),
        *{
            "octopus": "an octopus",
            "bus": "a bus",
            "compass": "a compass",
            "fish": "a fish",
        }.items(),
    ],
)
def test_articles(name, phrase):
    assert with_article(name) == phrase


@pytest.mark.parametrize(
    ("name", "several"),
    [
        *{"red apple": "red apples", "mouse": "mice", "goose": "geese", "wolf": "wolves"}.items(),
        *{"ear of corn": "ears of corn", "glass of milk": "glasses of milk"}.items(),
        *{
            "cup with a straw": "cups with a straw",
            "house with a garden": "houses with a garden",
        }.items(),
        *{"man feeding a baby": "men feeding a baby", "woman dancing": "women dancing"}.items(),
        *{"face blowing a kiss": "faces blowing a kiss", "woman's hat": "women's hats"}.items(),
        *{"jeans": "pairs of jeans", "burrito": "burritos", "banjo": "banjos"}.items(),
        *{"deer": "deer", "jellyfish": "jellyfish", "game die": "game dice"}.items(),
        *{"sad but relieved face": "sad but relieved faces", "octopus": "octopuses"}.items(),
    ],
)
def test_plurals(name, several):
    assert plural(name) == several
    assert counted(name, 3) == f"three {several}"
    assert is_countable(name)


@pytest.mark.parametrize(
    "name", ["bread", "grapes", "popcorn", "Santa Claus", "Kaaba", "ping pong"]
)
def test_what_is_not_counted(name):
    assert not is_countable(name)


@pytest.mark.parametrize(
    ("label", "subgroup", "name"),
    [
        ("cooking", "food-prepared", "egg in a frying pan"),
        ("headphone", "music", "headphones"),
        ("flag: St. Lucia", "country-flag", "flag of St Lucia"),
        ("person: blond hair", "person", "person with blond hair"),
        ("man: bald", "person", "bald man"),
        ("family: man, woman, boy, boy", "family", "family of a man, a woman and two boys"),
        ("kiss: man, man", "family", "kiss of two men"),
        ("woman walking: facing right", "person-activity", "woman walking facing right"),
        ("twelve o’clock", "time", "clock at twelve o'clock"),
        ("one-thirty", "time", "clock at half past one"),
        ("A button (blood type)", "alphanum", "A button"),
        ("man health worker", "person-role", "male health worker"),
        ("man with veil", "person-role", "man with a veil"),
        ("cup with straw", "drink", "cup with a straw"),
        ("face with tears of joy", "face-smiling", "face with tears of joy"),
        ("cloud with rain", "sky-weather", "cloud with rain"),
        ("no smoking", "warning", "no smoking sign"),
        ("Aries", "zodiac", "sign of Aries"),
        ("keycap: 1", "keycap", "keycap 1"),
        ("regional indicator B", "alphanum", "letter B"),
        ("Japanese “here” button", "alphanum", "Japanese here button"),
    ],
)
def test_noun_phrases(label, subgroup, name):
    assert noun_phrase(label, subgroup) == name


def test_names_of_icons_are_found_by_their_letters():
    assert slug("Flag: Côte d’Ivoire") == slug("flag-cote-divoire") == "flagcotedivoire"
    assert slug("piñata") == slug("pinata") and slug("a & b") == slug("a and b")


def test_forms_of_a_name():
    """What a training text must not hold where the name is held out."""
    assert forms("pea pod") == {"pea", "peas", "pod", "pods"}
    assert forms("piñata") == {"piñata", "piñatas"} and forms("wolf") == {"wolf", "wolves"}


def test_joining():
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert words_of("A T-Rex's 2 legs") == {"a", "t", "rex", "s", "legs"}


def test_glosses(tmp_path):
    assert read_wordnet(tmp_path) is None
    tiny_emojis.write_wordnet(tmp_path)
    wordnet = read_wordnet(tmp_path)
    assert wordnet.gloss("hammer", "objects") is None  # reviewed: it is one of a gun
    assert wordnet.gloss("guitar", "objects") == "a stringed instrument"  # without the bracket
    assert wordnet.gloss("turtle", "animals-nature") == "an animal with a shell"
    assert wordnet.gloss("turtle", "objects") is None  # another kind of thing
    assert wordnet.gloss("key", "objects") is None
    assert wordnet.gloss("no such word", "objects") is None


def test_a_damaged_wordnet(tmp_path):
    tiny_emojis.write_wordnet(tmp_path)
    data = (tmp_path / "data.noun").read_text()
    (tmp_path / "data.noun").write_text("one line more\n" + data)
    with pytest.raises(ValueError, match=r"data\.noun has no synset at \d+: it does not belong"):
        WordNet(tmp_path).gloss("turtle", "animals-nature")
    (tmp_path / "data.noun").unlink()
    with pytest.raises(FileNotFoundError, match=r"wordnet_dir=.* has no data\.noun"):
        read_wordnet(tmp_path)
