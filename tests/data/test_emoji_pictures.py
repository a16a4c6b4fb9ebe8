# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawings and scenes: pixels, colours, boxes, and edits that change one thing."""

from random import Random

import numpy as np
import pytest
import tiny_emojis

from emojis.build import Neighbours, mean_squared_error
from emojis.drawing import (
    BACKGROUNDS,
    NothingDrawnError,
    colours_of,
    draw,
    nearest_error,
    resized,
)
from emojis.edits import edits_of
from emojis.names import Concept
from emojis.scenes import (
    BESIDE,
    STACKED,
    Drawing,
    backgrounds_for,
    paint,
    pair,
    several,
    single,
)
from emojis.splits import alike

RED, GREEN = (214, 48, 49), (64, 168, 84)


def concept(name):
    return Concept(name, name, f"a {name}", f"{name}s", "objects", (), True)


def disc(radius=25, colour=RED, middle=(30, 30)):
    """A disc without any half-transparent pixel: (60, 60, 4)."""
    rows, columns = np.mgrid[:60, :60]
    inside = (rows - middle[1]) ** 2 + (columns - middle[0]) ** 2 <= radius**2
    return np.where(inside[..., None], (*colour, 255), 0).astype(np.uint8)


def drawing(name="ball", style="plain", **how):
    return Drawing(concept(name), style, 0, disc(**how))


def test_an_icon_is_drawn():
    pytest.importorskip("resvg_py", reason='needs resvg-py: pip install "modeling-mdm[emoji]"')
    body = '<rect x="16" y="16" width="32" height="32" fill="#0000ff"/>'
    shape = {"left": 0, "top": 0, "width": 64, "height": 64}
    pixels = draw({"body": body, **shape}, 64)
    assert pixels.shape == (64, 64, 4) and pixels.dtype == np.uint8
    inside = np.zeros((64, 64), bool)
    inside[16:48, 16:48] = True
    assert (pixels[inside] == (0, 0, 255, 255)).all() and not pixels[~inside][:, 3].any()
    for bad in ("<rect", "", '<rect width="1" height="1" fill="none"/>'):
        with pytest.raises(NothingDrawnError):
            draw({"body": bad, **shape})


@pytest.mark.parametrize("name", [*BACKGROUNDS])
def test_colours_are_called_as_backgrounds_are(name):
    assert [*colours_of(disc(colour=BACKGROUNDS[name]))] == [name]


def test_shares_of_colours():
    both = disc()
    both[30:, :, :3] = GREEN
    shares = colours_of(both)
    assert set(shares) == {"red", "green"} and abs(shares["red"] - 0.5) < 0.03
    assert backgrounds_for([Drawing(concept("x"), "plain", 0, both)]) == [
        name for name in BACKGROUNDS if name not in ("red", "green")
    ]


def test_the_nearest_background_is_the_one_of_ten_painted():
    """Against pictures that are painted and compared pixel by pixel."""
    first, second = drawing(), drawing(radius=22, colour=GREEN, middle=(26, 31))
    painted = [
        mean_squared_error(paint(single(first, bg))[0], paint(single(second, bg))[0])
        for bg in BACKGROUNDS
    ]
    found = nearest_error(first.pixels, second.pixels, BACKGROUNDS)
    assert found == pytest.approx(min(painted), rel=1e-3)
    white = nearest_error(first.pixels, second.pixels, ["white"])
    assert white == pytest.approx(painted[0], rel=1e-3) and white > found
    assert nearest_error(first.pixels, first.pixels, BACKGROUNDS) == 0
    assert nearest_error(first.pixels, first.pixels, []) == np.inf


def test_resizing_does_not_mix_in_hidden_colours():
    """Transparent black must not darken the rim."""
    small = resized(disc(), 28)
    seen = small[small[..., 3] > 20][:, :3].astype(int)
    assert np.abs(seen - RED).max() <= 8


def changed_box(pixels, background):
    rows, columns = np.nonzero((np.abs(pixels.astype(int) - BACKGROUNDS[background]) > 30).any(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("places", [BESIDE, STACKED])
def test_objects_lie_where_the_truth_says(places):
    scene = pair(drawing("ball"), drawing("cup", colour=GREEN), places, "white", Random(0))
    pixels, ((first,), (second,)) = paint(scene)
    assert pixels.shape == (64, 64, 3)
    axis = 0 if places == BESIDE else 1
    assert first[axis + 2] <= 33 and second[axis] >= 31
    for box, colour in ((first, RED), (second, GREEN)):
        middle = pixels[(box.top + box.bottom) // 2, (box.left + box.right) // 2]
        assert (middle == colour).all()
    outside = np.ones((64, 64), bool)
    for box in (first, second):
        outside[box.top : box.bottom, box.left : box.right] = False
    assert (np.abs(pixels[outside].astype(int) - 255) <= 26).all()  # a tenth of its colour
    assert scene.combination == ("ball", "cup")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_copies_are_as_many_as_is_said(count):
    for seed in range(10):
        scene = several(drawing(), count, "blue", Random(seed))
        pixels, (boxes,) = paint(scene)
        assert len(boxes) == count == scene.things[0].count
        quarters = {(b.left + b.right > 64, b.top + b.bottom > 64) for b in boxes}
        assert len(quarters) == count
        for box in boxes:
            part = pixels[box.top : box.bottom, box.left : box.right]
            assert (part == RED).all(-1).mean() > 0.5


def test_edits_change_one_thing():
    """What a request does not name stays, pixel by pixel."""
    pytest.importorskip("inflect", reason='needs inflect: pip install "modeling-mdm[emoji]"')
    two = pair(drawing("ball"), drawing("cup", colour=GREEN), BESIDE, "white", Random(1))
    three = several(drawing("ball"), 3, "white", Random(2))
    box, seen = drawing("box", colour=(90, 60, 20)), {}
    for scene in (two, three):
        for seed in range(30):
            for edit in edits_of(scene, lambda style: box, Random(seed)):
                seen.setdefault((edit.kind, scene is two), []).append((scene, edit))
    kinds = {"background", "swap", "move", "remove", "replace", "more", "less"}
    assert {kind for kind, _ in seen} == kinds
    for (kind, _), pairs in seen.items():
        for scene, edit in pairs[:5]:
            check_edit(kind, scene, edit)


def check_edit(kind, scene, edit):
    before, after = paint(scene), paint(edit.scene)
    names = [thing.concept.name for thing in scene.things]
    theirs = [thing.concept.name for thing in edit.scene.things]
    same = (before[0] == after[0]).all(-1)  # (64, 64)
    if kind == "background":
        assert edit.request.endswith(edit.scene.background) and before[1] == after[1]
        box = before[1][0][0]
        assert same[(box.top + box.bottom) // 2, (box.left + box.right) // 2]
        return
    assert edit.scene.background == scene.background
    if kind in ("more", "less"):
        given, edited = scene.things[0], edit.scene.things[0]
        assert edited.count - given.count == {"more": 1, "less": -1}[kind]
        assert len(set(given.spots) ^ set(edited.spots)) == 1 and "ball" in edit.request
        return
    if kind == "swap":
        assert theirs == names[::-1] and [t.place for t in edit.scene.things] == ["left", "right"]
    if kind == "remove":
        (kept,) = theirs
        assert edit.request == f"remove the {({*names} - {kept}).pop()}"
        box = after[1][0][0]
        assert same[box.top : box.bottom, box.left : box.right].all()
    if kind == "move":
        assert edit.scene.layout == "stacked"
        assert edit.request == f"put the {theirs[0]} above the {theirs[1]}"
    if kind == "replace":
        assert "box" in " ".join(theirs) and "box" in edit.request
        for number, box in enumerate(before[1]):
            if names[number] == theirs[number]:
                assert same[box[0].top : box[0].bottom, box[0].left : box[0].right].all()


def test_like_drawings_are_grouped():
    """By design, as near copies, and by way of a third."""
    far = disc(radius=12, colour=GREEN, middle=(12, 12))
    shifted = [half_shifted(step) for step in range(5)]
    styles = {"flat": shifted[0], "glossy": far, "plain": disc(radius=20, colour=(52, 110, 220))}
    given = {style: [Drawing(concept("x"), style, 0, px)] for style, px in styles.items()}
    assert sorted(alike(given)) == [["flat", "glossy"], ["plain"]]
    chain = {f"s{n}": [Drawing(concept("x"), f"s{n}", 0, px)] for n, px in enumerate(shifted)}
    grounds = backgrounds_for([chain["s0"][0]])
    steps = [nearest_error(shifted[0], px, grounds) for px in shifted]
    assert steps[1] <= 0.02 < steps[4]  # neighbours are near, the ends are not
    assert alike(chain) == [[f"s{n}" for n in range(5)]]


def half_shifted(step):
    """A red disc with a green one that lies a little to the right."""
    pixels, spot = disc(), disc(radius=7, colour=GREEN, middle=(26 + step, 30))
    return np.where(spot[..., 3:] > 0, spot, pixels)


def test_near_copies_of_training_pictures_are_found():
    known = Neighbours()
    scene = single(Drawing(concept("ball"), "plain", 0, half_shifted(0)), "white")
    known.add(scene, paint(scene)[0])
    for step, near in ((0, True), (1, True), (9, False)):
        other = single(Drawing(concept("ball"), "classic", 0, half_shifted(step)), "white")
        assert known.has_near_copy(other, paint(other)[0]) is near
        error = mean_squared_error(paint(scene)[0], paint(other)[0])
        assert (error <= 0.02) is near
    stranger = single(drawing("cup"), "white")
    assert not known.has_near_copy(stranger, paint(stranger)[0])  # of another concept


def test_icons_of_the_tiny_world_draw():
    pytest.importorskip("resvg_py", reason='needs resvg-py: pip install "modeling-mdm[emoji]"')
    shape = {"left": 0, "top": 0, "width": 64, "height": 64}
    assert draw({**tiny_emojis.icon("lamp", "plain"), **shape}).shape == (60, 60, 4)
