# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Packages of npm: packed without running anything, checked, and refused where they are others."""

import os

import pytest
import tiny_emojis

from emojis.sources import NAMES, STYLES, fetch, read_icons, read_names, read_sources


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Put a script in npm's place, and nothing else on the path but the shell's tools."""

    def write(script):
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")

    return write


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


def test_hashes_are_of_sha_512():
    packages = [style.package for style in STYLES] + [NAMES]
    assert len({package.sha512 for package in packages}) == len(packages) == 9
    assert all(len(package.sha512) == 88 for package in packages)
    assert "openmoji" not in str(packages)  # its licence asks for the same of what is made of it


def test_npm_packs_without_running_scripts(folder, npm, tmp_path):
    style = tiny_emojis.write_icons(tmp_path, "plain")
    given = tmp_path / style.package.archive
    npm(f'echo "$@" > {tmp_path}/words; cp {given} .')
    path = fetch(style.package, folder)
    words = (tmp_path / "words").read_text().split()
    assert words == ["pack", "--ignore-scripts", "--silent", "@test/plain@1.0.0"]
    assert path == folder / "test-plain-1.0.0.tgz" and [*folder.iterdir()] == [path]
    npm("exit 1")
    assert fetch(style.package, folder) == path  # what is there is not packed again


def test_npm_is_missing(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(RuntimeError, match=r"npm is not here: install Node\.js.*--sources_dir"):
        fetch(NAMES, folder)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 404 not found >&2; exit 1", "npm pack emojibase-data@17.0.0` failed: 404 not found"),
        ("exit 0", "npm packed no emojibase-data-17.0.0.tgz"),
        ("touch emojibase-data-17.0.1.tgz", "npm packed no emojibase-data-17.0.0.tgz"),
    ],
)
def test_npm_fails(folder, npm, script, said):
    npm(script)
    with pytest.raises(RuntimeError, match=said):
        fetch(NAMES, folder)


def test_a_killed_npm_leaves_no_archive(folder, npm):
    npm("echo half > emojibase-data-17.0.0.tgz; kill -9 $$")
    with pytest.raises(RuntimeError, match="failed"):
        fetch(NAMES, folder)
    assert not [*folder.iterdir()]


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_another_content_is_refused(folder, cut):
    """Cut off, or of another version under this one's name."""
    style = tiny_emojis.write_icons(folder, "plain")
    path = folder / style.package.archive
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] if cut >= 0 else whole + b"\0")
    with pytest.raises(ValueError, match=r"is not @test/plain@1.0.0: its SHA-512 .* remove it"):
        fetch(style.package, folder)


def test_an_archive_that_is_none(folder):
    path = folder / "a.tgz"
    for content in (b"", b"no archive", tiny_archive(folder)[:200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tgz is no whole archive of npm"):
            read_icons(path)


def tiny_archive(folder):
    style = tiny_emojis.write_icons(folder, "plain")
    return (folder / style.package.archive).read_bytes()


def test_an_archive_of_another_package(folder):
    path = folder / "b.tgz"
    tiny_emojis.archive(path, {"package.json": {}})
    with pytest.raises(ValueError, match=r"has no file 'package/icons\.json'"):
        read_icons(path)
    with pytest.raises(ValueError, match=r"has no file 'package/en/data\.json'"):
        read_names(path)
    tiny_emojis.archive(path, {"icons.json": {}, "info.json": {}})
    with pytest.raises(ValueError, match="no set of iconify's"):
        read_icons(path)
    tiny_emojis.archive(path, {"icons.json": "{cut", "info.json": {}})
    with pytest.raises(ValueError, match=r"icons\.json is no JSON"):
        read_icons(path)


def test_what_is_read(folder):
    sources = read_sources(folder, *tiny_emojis.write_sources(folder))
    assert [*sources.icon_sets] == [*tiny_emojis.WORDS]
    plain = sources.icon_sets["plain"]
    assert "ghost" not in plain.icons and len(plain.icons) == len(sources.names.emojis)
    lamp = plain.icons["lamp"]
    assert {k: lamp[k] for k in ("left", "top", "width", "height")} == {
        "left": 0,
        "top": 0,
        "width": 64,
        "height": 64,
    }
    assert sources.names.licence.startswith("MIT License")
