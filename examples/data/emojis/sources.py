# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the artwork and the names come from: packages of npm, of fixed version and content."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Package:
    """A package of npm: its name, version and the SHA-512 of its archive in base64."""

    name: str
    version: str
    sha512: str

    @property
    def archive(self) -> str:
        """The file name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class Style:
    """A set of icons and the word by which captions call how it is drawn."""

    word: str
    package: Package


def _icons(name: str, version: str, sha512: str) -> Package:
    return Package(f"@iconify-json/{name}", version, sha512)


# The hashes are those that npm's registry tells: `npm view NAME@VERSION dist.integrity`.
STYLES = (
    Style(
        "detailed",
        _icons(
            "noto",
            "1.2.9",
            "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        ),
    ),
    Style(
        "vintage",
        _icons(
            "noto-v1",
            "1.2.5",
            "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        ),
    ),
    Style(
        "plain",
        _icons(
            "twemoji",
            "1.2.5",
            "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        ),
    ),
    Style(
        "glossy",
        _icons(
            "fluent-emoji",
            "1.2.7",
            "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        ),
    ),
    Style(
        "flat",
        _icons(
            "fluent-emoji-flat",
            "1.2.6",
            "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        ),
    ),
    Style(
        "classic",
        _icons(
            "emojione",
            "1.2.3",
            "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        ),
    ),
    Style(
        "soft",
        _icons(
            "fxemoji",
            "1.2.2",
            "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        ),
    ),
    Style(
        "outlined",
        _icons(
            "streamline-emojis",
            "1.2.4",
            "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
        ),
    ),
)
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
# Styles that share their drawings: one is the other without its shades.
SHARED_DRAWINGS = (("glossy", "flat"),)
SHORTCODES = ("cldr-native", "cldr", "github", "emojibase", "joypixels", "iamcal")


@dataclass(frozen=True)
class IconSet:
    """Icons by name, the other names that they have, their code points, and who made them."""

    icons: Mapping[str, Any]
    aliases: Mapping[str, str]
    chars: Mapping[str, str]
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Names:
    """What emojibase says: emojis with labels, tags and groups; and their other names."""

    emojis: Sequence[Mapping[str, Any]]
    groups: Mapping[int, str]
    subgroups: Mapping[int, str]
    shortcodes: Sequence[Mapping[str, Any]]
    unicode_names: Mapping[str, str]
    licence: str


@dataclass(frozen=True)
class Sources:
    """All that the set is made of, by style."""

    icon_sets: Mapping[str, IconSet]
    names: Names


def fetch(package: Package, folder: Path) -> Path:
    """Return a package's archive in a folder, packed there by npm unless it is there already.

    Raises:
        RuntimeError: if npm is missing or fails.
        ValueError: if the archive is not the one that is known.
    """
    path = folder / package.archive
    if not path.is_file():
        _pack(package, folder)
    if not path.is_file():
        raise RuntimeError(f"npm packed no {package.archive}: see what it wrote to {folder}.")
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise ValueError(
            f"{path} is not {package.name}@{package.version}: its SHA-512 is {found:.16}..., not "
            f"{package.sha512:.16}... It may be cut off or of another version: remove it, and it "
            "is fetched again."
        )
    return path


def _pack(package: Package, folder: Path) -> None:
    wanted = f"{package.name}@{package.version}"
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            f"{wanted} comes from npm, and npm is not here: install Node.js (it brings npm), or "
            "name with --sources_dir a folder that holds the archives from a machine that has it."
        )
    with tempfile.TemporaryDirectory(dir=folder) as aside:  # a killed npm leaves half an archive
        command = [npm, "pack", "--ignore-scripts", "--silent", wanted]
        done = subprocess.run(command, cwd=aside, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise RuntimeError(f"`npm pack {wanted}` failed: {' '.join(said) or 'no reason'}")
        for path in Path(aside).glob("*.tgz"):
            path.replace(folder / path.name)


def _members(path: Path, names: Sequence[str], may_lack: Sequence[str] = ()) -> dict[str, bytes]:
    try:
        with tarfile.open(path) as archive:
            there = {m.name: m for m in archive if m.isfile()}
            return {
                name: archive.extractfile(there[f"package/{name}"]).read()  # type: ignore[union-attr]
                for name in names
                if f"package/{name}" in there or name not in may_lack
            }
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no whole archive of npm: {error}") from error
    except KeyError as error:
        raise ValueError(f"{path} has no file {error}: it is another package.") from error


def _json(path: Path, name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: {name} is no JSON: {error}") from error


def read_icons(path: Path) -> IconSet:
    """Read an archive of iconify's: every icon with its view box, hidden ones left out.

    Raises:
        ValueError: if it is cut off, or another package.
    """
    found = _members(path, ("icons.json", "info.json", "chars.json"), may_lack=("chars.json",))
    read = {name: _json(path, name, content) for name, content in found.items()}
    icons = read["icons.json"]
    if not isinstance(icons.get("icons"), dict):
        raise ValueError(f"{path}: icons.json has no icons: it is no set of iconify's.")
    shape = {"left": 0, "top": 0, "width": 16, "height": 16}
    shape |= {key: icons[key] for key in shape if key in icons}
    return IconSet(
        icons={
            k: {**shape, **icon} for k, icon in icons["icons"].items() if not icon.get("hidden")
        },
        aliases={k: alias["parent"] for k, alias in icons.get("aliases", {}).items()},
        chars=read.get("chars.json", {}),
        info=read["info.json"],
    )


def read_names(path: Path) -> Names:
    """Read emojibase's archive.

    Raises:
        ValueError: if it is cut off, or another package.
    """
    codes = [f"en/shortcodes/{name}.json" for name in SHORTCODES]
    fixed = ["en/data.json", "meta/groups.json", "meta/unicode-names.json"]
    found = _members(path, [*fixed, *codes, "LICENSE"])
    read = {name: _json(path, name, found[name]) for name in [*fixed, *codes]}
    groups = read["meta/groups.json"]
    return Names(
        emojis=read["en/data.json"],
        groups={int(k): v for k, v in groups["groups"].items()},
        subgroups={int(k): v for k, v in groups["subgroups"].items()},
        shortcodes=[read[name] for name in codes],
        unicode_names=read["meta/unicode-names.json"],
        licence=found["LICENSE"].decode("utf-8"),
    )


def read_sources(folder: Path, styles: Sequence[Style] = STYLES, names: Package = NAMES) -> Sources:
    """Fetch and read all packages.

    Args:
        folder: where their archives are, or are put.
        styles: the sets of icons.
        names: emojibase.

    Raises:
        RuntimeError: if npm is missing or fails.
        ValueError: if an archive is not the one that is known.
    """
    paths = {style.word: fetch(style.package, folder) for style in styles}
    named = fetch(names, folder)
    return Sources({word: read_icons(path) for word, path in paths.items()}, read_names(named))
