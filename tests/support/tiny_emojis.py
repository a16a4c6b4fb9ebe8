# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A small emoji world: hand-made icons and names, in archives as npm packs them."""

import base64
import hashlib
import io
import json
import random
import tarfile

from emojis.sources import SHORTCODES, Package, Style

WORDS = ("plain", "classic", "flat", "glossy")
# Several of one word, so that a held-out one has to be another; "turtle soup" names a turtle.
OBJECTS = (
    *("lamp", "turtle", "turtle soup", "hammer", "rocket", "pencil", "red apple", "green apple"),
    *("guitar", "violin", "trumpet", "candle", "bucket", "hourglass", "glasses", "cactus", "goose"),
    *("octopus", "balloon", "anchor", "key", "old key", "clock", "camera", "umbrella", "kite"),
    *("drum", "spoon", "ladder", "mirror"),
)
OTHERS = ("cooking", "flag: Brazil", "thumbs up")
SAME_DRAWING = ("lamp", "drum", "kite", "spoon")  # in the styles "plain" and "classic"
COLOURS = ("#e53935", "#4caf50", "#2196f3", "#fdd835", "#9c27b0", "#795548", "#212121", "#eeeeee")


def code_of(label):
    return f"1F{(*OBJECTS, *OTHERS).index(label):03X}"


def icon(label, style):
    """Some shapes that a label and a style tell; flat and glossy ones differ in shade alone."""
    drawn = {"classic": "plain"}.get(style, style) if label in SAME_DRAWING else style
    dice = random.Random(f"{label} {'flat' if drawn == 'glossy' else drawn}")
    shapes = []
    for _ in range(4):
        x, y, r = dice.randint(18, 46), dice.randint(18, 46), dice.randint(8, 17)
        fill = dice.choice(COLOURS)
        if dice.random() < 0.5:
            shapes.append(f'<circle cx="{x}" cy="{y}" r="{r}" fill="{fill}"/>')
        else:
            edges = f'x="{x - r}" y="{y - r}" width="{2 * r}" height="{2 * r}"'
            shapes.append(f'<rect {edges} fill="{fill}"/>')
    shade = '<circle cx="32" cy="32" r="4" fill="#fff"/>' if style == "glossy" else ""
    return {"body": "".join(shapes) + shade}


def archive(path, files):
    """Write a tar file as npm does, and return its hash."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def icons_json(style):
    labels = (*OBJECTS, *OTHERS)
    icons = {label.replace(": ", "-").replace(" ", "-"): icon(label, style) for label in labels}
    hidden = {**icon("lamp", style), "hidden": True}
    return {"prefix": style, "icons": {**icons, "ghost": hidden}, "width": 64, "height": 64}


def info_json(style):
    author = {"name": f"Who draws {style}", "url": f"https://example.org/{style}"}
    licence = {"title": "Apache 2.0", "spdx": "Apache-2.0", "url": "https://example.org/licence"}
    return {"prefix": style, "name": style.title(), "author": author, "license": licence}


def write_icons(folder, style, icons=None):
    package = Package(f"@test/{style}", "1.0.0", "")
    files = {"icons.json": icons or icons_json(style), "info.json": info_json(style)}
    digest = archive(folder / package.archive, files)
    return Style(style, Package(package.name, package.version, digest))


def write_names(folder):
    def emoji(label, group, subgroup):
        tags = [word for word in label.replace(":", "").split() if word.islower()]
        tags += ["thing", "gift"] if label == "balloon" else ["thing", "lamp"]
        places = {"group": group, "subgroup": subgroup}
        return {"label": label, "hexcode": code_of(label), "tags": tags, **places}

    emojis = [emoji(label, 7, 81) for label in OBJECTS]
    emojis += [emoji("cooking", 4, 44), emoji("flag: Brazil", 9, 98), emoji("thumbs up", 1, 19)]
    groups = {"1": "people-body", "4": "food-drink", "7": "objects", "9": "flags"}
    subgroups = {"19": "hand-fingers-closed", "44": "food-prepared", "81": "household"}
    files = {
        "en/data.json": emojis,
        "meta/groups.json": {"groups": groups, "subgroups": {**subgroups, "98": "country-flag"}},
        "meta/unicode-names.json": {},
        **{f"en/shortcodes/{name}.json": {} for name in SHORTCODES},
        "LICENSE": "MIT License\n\nCopyright (c) nobody",
    }
    package = Package("test-names", "1.0.0", "")
    digest = archive(folder / package.archive, files)
    return Package(package.name, package.version, digest)


def write_sources(folder):
    """Write all archives, and return the styles and names that they belong to."""
    return [write_icons(folder, style) for style in WORDS], write_names(folder)


GLOSSES = {
    "lamp": (6, "an artificial source of light that is seen"),
    "turtle": (5, "an animal with a shell"),
    "hammer": (6, 'a hand tool with a heavy head; "a hammer for nails"'),
    "guitar": (6, "a stringed instrument (usually having six strings)"),
    "trumpet": (6, "a brass wind instrument like no guitar"),
    "kite": (6, "plaything that flies in the wind"),
    "key": (15, "a coral reef off the southern coast of Florida"),
}


def write_wordnet(folder):
    """Write nouns as WordNet's database files hold them: by their offset in bytes."""
    head = "  1 a line of the licence, which begins with two blanks\n"
    data, index = head, head
    for noun, (file, gloss) in GLOSSES.items():
        at = len(data.encode())
        data += f"{at:08d} {file:02d} n 01 {noun} 0 000 | {gloss}  \n"
        index += f"{noun} n 1 1 @ 1 0 {at:08d}  \n"
    (folder / "data.noun").write_text(data, encoding="utf-8")
    (folder / "index.noun").write_text(index, encoding="utf-8")


TALKS = {"num_talks": 60, "num_edit_talks": 40}


def build(folder, **options):
    """Build the world in a folder, and return the set's own."""
    import emoji_world
    from emojis.sources import read_sources

    write_wordnet(folder)
    sources = read_sources(folder, *write_sources(folder))
    options = {"num_scenes": 80, **TALKS, **options}
    options |= {"wordnet_dir": str(folder), "disable_tqdm": True}
    emoji_world.build(sources, emoji_world.EmojiArguments(str(folder / "made"), **options))
    return folder / "made"
