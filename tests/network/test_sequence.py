# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The joint sequence: what stands in it and in which order every scan reads it, given first."""

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_mdm.configuration_mdm import JOINT_SCANS
from modeling_mdm.content import ModalityContent
from modeling_mdm.scan_orders import image_rank
from modeling_mdm.sequence import build_sequence, drop_prompt, take_part

ALL_ORDERS = {"image": (1, 2, 3, 4), "text": (1, 2)}


def make_content(kinds, turns, axes=1):
    """One modality from a string by item, g given, n noisy, . padding, and from turns."""
    given = torch.tensor([[kind == "g" for kind in item] for item in kinds])
    valid = torch.tensor([[kind != "." for kind in item] for item in kinds])
    shape = given.shape
    return ModalityContent(
        torch.randn(*shape, 3),
        given,
        valid,
        torch.tensor(turns).view(shape),
        torch.zeros(*shape, axes, dtype=torch.long),
    )


def labels_of(num_null, num_words, grid):
    """Names of all positions in storage order."""
    names = ["class", *(f"null{i}" for i in range(num_null))]
    if num_words is not None:
        names += ["start text", "time text", *(f"w{i}" for i in range(num_words))]
    if grid[0]:
        places = [
            f"p{m}{r}{c}" for m in range(grid[0]) for r in range(grid[1]) for c in range(grid[2])
        ]
        names += ["start image", "time image", *places]
    return names


def read_by(sequence, item, scan, names):
    """What a scan reads of an item, in order, padding left out."""
    steps = [n for n in sequence.orders[item, scan].tolist() if sequence.valid[item, n]]
    return " ".join(names[n].replace(" ", "-") for n in steps)


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


# --- What is read in which order


def test_every_scan_of_a_conversation_with_two_pictures_and_two_turns():
    """Turn 0: two words and a picture of 2 x 2; turn 1: two words and a picture to be written."""
    text = make_content(["ggnn."], [[0, 0, 1, 1, 1]])
    image = make_content(["ggggnnnn"], [[0] * 4 + [1] * 4], axes=2)
    content = {"text": text, "image": image}
    sequence = build_sequence(
        content, flags(True), flags(False), 2, (2, 2, 2), JOINT_SCANS, ALL_ORDERS
    )
    names = labels_of(2, 5, (2, 2, 2))
    leading = "class start-text start-image"
    clocks = "time-text time-image"
    expected = [
        f"{leading} w0 w1 p000 p001 p010 p011 {clocks} w2 w3 p100 p101 p110 p111",
        f"{leading} p011 p010 p001 p000 w1 w0 {clocks} p111 p110 p101 p100 w3 w2",
        f"{leading} w0 w1 p000 p010 p001 p011 {clocks} w2 w3 p100 p110 p101 p111",
        f"{leading} p011 p001 p010 p000 w1 w0 {clocks} p111 p101 p110 p100 w3 w2",
    ]
    assert [read_by(sequence, 0, k, names) for k in range(4)] == expected
    assert sequence.all_active and sequence.scan_active.all()


def test_older_turns_are_read_before_newer_ones_across_modalities():
    """A picture shown in turn 0, words of turns 1 and 2, a picture of turn 4, words to write."""
    text = make_content(["ggggnn"], [[1, 1, 2, 2, 3, 3]])
    image = make_content(["gggg"], [[0, 0, 4, 4]], axes=2)
    sequence = build_sequence(
        {"text": text, "image": image},
        flags(False),
        flags(False),
        0,
        (2, 1, 2),
        JOINT_SCANS[:2],
        ALL_ORDERS,
    )
    names = labels_of(0, 6, (2, 1, 2))
    forward = "start-text start-image p000 p001 w0 w1 w2 w3 p100 p101 time-text w4 w5"
    reverse = "start-text start-image p001 p000 w1 w0 w3 w2 p101 p100 time-text w5 w4"
    assert [read_by(sequence, 0, k, names) for k in range(2)] == [forward, reverse]


def test_inpainting_and_infill_read_the_known_parts_first():
    text = make_content(["gng"], [[0, 0, 0]])
    image = make_content(["ngng"], [[0] * 4], axes=2)
    sequence = build_sequence(
        {"text": text, "image": image},
        flags(False),
        flags(False),
        0,
        (1, 2, 2),
        JOINT_SCANS,
        ALL_ORDERS,
    )
    names = labels_of(0, 3, (1, 2, 2))
    starts, clocks = "start-text start-image", "time-text time-image"
    assert [read_by(sequence, 0, k, names) for k in range(4)] == [
        f"{starts} w0 w2 p001 p011 {clocks} w1 p000 p010",
        f"{starts} p011 p001 w2 w0 {clocks} p010 p000 w1",
        f"{starts} w0 w2 p001 p011 {clocks} w1 p000 p010",
        f"{starts} p011 p001 w2 w0 {clocks} p010 p000 w1",
    ]


@pytest.mark.parametrize("words", ["", "gg", "nn", ".."])
@pytest.mark.parametrize("patches", ["", "gg", "nn", ".."])
def test_special_tokens_stand_where_they_have_something_to_say(words, patches):
    """A start token for a modality that is there, a time token for one that is to be written."""
    if not words and not patches:
        return
    content = {}
    if words:
        content["text"] = make_content([words], [[0, 0]])
    if patches:
        content["image"] = make_content([patches], [[0, 0]], axes=2)
    grid = (1, 1, 2) if patches else (0, 0, 0)
    sequence = build_sequence(
        content, flags(False), flags(False), 1, grid, JOINT_SCANS[:1], ALL_ORDERS
    )
    names = labels_of(1, 2 if words else None, grid)
    standing = {name for name, there in zip(names, sequence.valid[0], strict=True) if there}
    expected = set()
    for name, kinds, positions in (
        ("text", words, ("w0", "w1")),
        ("image", patches, ("p000", "p001")),
    ):
        expected |= {f"start {name}", *positions} if "g" in kinds or "n" in kinds else set()
        expected |= {f"time {name}"} if "n" in kinds else set()
    assert standing == expected
    first_noisy = [n for n in sequence.orders[0, 0].tolist() if sequence.valid[0, n]]
    first_noisy = [names[n] for n in first_noisy if not sequence.given[0, n]]
    clocks = [f"time {g}" for g, kinds in (("text", words), ("image", patches)) if "n" in kinds]
    assert first_noisy[: len(clocks)] == clocks


def test_class_and_null_tokens_stand_only_in_the_items_that_have_them():
    text = make_content(["nn", "nn", "nn"], [[0, 0]] * 3)
    sequence = build_sequence(
        {"text": text},
        flags(True, False, False),
        flags(False, True, False),
        2,
        (0, 0, 0),
        JOINT_SCANS[:2],
        ALL_ORDERS,
    )
    names = labels_of(2, 2, (0, 0, 0))
    for scan, words in enumerate(("w0 w1", "w1 w0")):
        assert read_by(sequence, 0, scan, names) == f"class start-text time-text {words}"
        assert read_by(sequence, 1, scan, names) == f"null0 null1 start-text time-text {words}"
        assert read_by(sequence, 2, scan, names) == f"start-text time-text {words}"


@st.composite
def batches(draw):
    """Words and patches of any kind, with turns; (height, width) and the number of pictures."""
    num_words = draw(st.integers(1, 4))
    grid = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    patches = grid[0] * grid[1] * grid[2]
    content = {}
    for modality, count in (("text", num_words), ("image", patches)):
        kinds = draw(st.text("gn.", min_size=count, max_size=count))
        turns = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
        content[modality] = make_content([kinds], [turns], axes=1 if modality == "text" else 2)
    return content, grid


@examples(batches(), st.booleans())
@settings(max_examples=40)
def test_any_joint_sequence_is_read_given_first_and_padding_last(batch, has_class):
    content, grid = batch
    sequence = build_sequence(
        content, flags(has_class), flags(False), 1, grid, JOINT_SCANS, ALL_ORDERS
    )
    length = sequence.valid.shape[1]
    turns = torch.zeros(length, dtype=torch.long)
    turns[sequence.words] = content["text"].turn[0]
    turns[sequence.patches] = content["image"].turn[0]
    assert torch.equal(sequence.valid[0, sequence.words], content["text"].valid[0])
    assert torch.equal(sequence.valid[0, sequence.patches], content["image"].valid[0])
    reads_first = []
    for k in range(len(JOINT_SCANS)):
        order = sequence.orders[0, k].tolist()
        assert sorted(order) == list(range(length))
        assert sequence.inverses[0, k][order].tolist() == list(range(length))
        kinds = "".join(
            ("g" if sequence.given[0, n] else "n") if sequence.valid[0, n] else "." for n in order
        )
        assert kinds == "".join(sorted(kinds, key="gn.".index))
        for part in "gn":
            members = [n for n, kind in zip(order, kinds, strict=True) if kind == part]
            special = [bool(sequence.special[0, n]) for n in members]
            assert special == sorted(special, reverse=True)
            ordinary = [int(turns[n]) for n in members if not sequence.special[0, n]]
            assert ordinary == sorted(ordinary)
            reads_first.append((part, tuple(n for n in members if sequence.special[0, n])))
    assert len(set(reads_first)) == 2  # the special tokens come in the same order in every scan


def test_positions_know_which_time_is_theirs():
    """Time 0 is that of what is given, 1 of noisy words, 2 of noisy patches."""
    text = make_content(["gn"], [[0, 0]])
    image = make_content(["ng"], [[0, 0]], axes=2)
    sequence = build_sequence(
        {"text": text, "image": image},
        flags(True),
        flags(True),
        1,
        (1, 1, 2),
        JOINT_SCANS[:1],
        ALL_ORDERS,
    )
    names = labels_of(1, 2, (1, 1, 2))
    times = dict(zip(names, sequence.time_index[0].tolist(), strict=True))
    assert times == {
        "class": 0,
        "null0": 0,
        "start text": 0,
        "time text": 1,
        "w0": 0,
        "w1": 1,
        "start image": 0,
        "time image": 2,
        "p000": 2,
        "p001": 0,
    }
    values = torch.randn(1, 3, 2, 4)
    shift, scale = sequence.at_positions(values)
    for n, time in enumerate(sequence.time_index[0].tolist()):
        assert torch.equal(shift[0, n], values[0, time, 0])
        assert torch.equal(scale[0, n], values[0, time, 1])


def test_times_are_spread_item_by_item():
    text = make_content(["gn", "ng"], [[0, 0]] * 2)
    sequence = build_sequence(
        {"text": text},
        flags(False, False),
        flags(False, False),
        0,
        (0, 0, 0),
        JOINT_SCANS[:1],
        ALL_ORDERS,
    )
    values = torch.randn(2, 3, 1, 4)
    (spread,) = sequence.at_positions(values)
    assert torch.equal(spread[:, sequence.words][0], values[0, [0, 1], 0])
    assert torch.equal(spread[:, sequence.words][1], values[1, [1, 0], 0])


@pytest.mark.parametrize(
    ("pairs", "used", "silent"),
    [
        (JOINT_SCANS, ALL_ORDERS, []),
        (JOINT_SCANS[:2], {"image": (1, 2), "text": (1,)}, [(1, "text")]),
        (JOINT_SCANS[:2], {"image": (2,), "text": (1,)}, [(0, "image"), (1, "text")]),
        (JOINT_SCANS[:3], {"image": (1, 3), "text": (1, 2)}, [(1, "image")]),
    ],
)
def test_a_modality_is_silent_in_a_scan_whose_order_is_not_in_use(pairs, used, silent):
    text = make_content(["gn"], [[0, 0]])
    image = make_content(["gnn"], [[0] * 3], axes=2)
    sequence = build_sequence(
        {"text": text, "image": image}, flags(True), flags(False), 1, (1, 1, 3), pairs, used
    )
    expected = torch.ones(len(pairs), sequence.valid.shape[1], dtype=torch.bool)
    for scan, modality in silent:
        expected[scan, sequence.words if modality == "text" else sequence.patches] = False
    assert torch.equal(sequence.scan_active, expected)
    assert sequence.all_active == (not silent)


def test_some_scans_can_be_taken_out():
    text = make_content(["gnn"], [[0] * 3])
    sequence = build_sequence(
        {"text": text}, flags(True), flags(False), 0, (0, 0, 0), JOINT_SCANS, ALL_ORDERS
    )
    for scans in ((0, 1, 2, 3), (2,), (3, 1)):
        orders, inverses = sequence.orders_of(scans)
        for i, k in enumerate(scans):
            assert torch.equal(orders[:, i], sequence.orders[:, k])
            assert torch.equal(inverses[:, i], sequence.inverses[:, k])


def test_a_picture_of_another_shape_has_its_own_ranks():
    """Columns of a 3 x 2 grid are not those of a 2 x 3 grid."""
    image = make_content(["nnnnnn"], [[0] * 6], axes=2)
    for grid in ((1, 3, 2), (1, 2, 3)):
        sequence = build_sequence(
            {"image": image}, flags(False), flags(False), 0, grid, JOINT_SCANS, ALL_ORDERS
        )
        read = [n - 3 for n in sequence.orders[0, 2].tolist() if n >= 3]
        assert [read.index(n) for n in range(6)] == image_rank(*grid[1:], 3).tolist()


class _Operations(TorchDispatchMode):
    """Lists what is computed."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_what_every_block_asks_for_is_found_once():
    text = make_content(["gnn"], [[0] * 3])
    sequence = build_sequence(
        {"text": text}, flags(True), flags(False), 0, (0, 0, 0), JOINT_SCANS, ALL_ORDERS
    )
    values = torch.randn(1, 3, 2, 4)

    def block():
        with _Operations() as seen:
            sequence.orders_of((3, 1))
            (shift, _) = sequence.at_positions(values)
        return shift, seen.names

    first, found = block()
    again, left = block()
    assert torch.equal(first, again)
    assert {"stack", "arange"} <= set(found)
    assert {"stack", "arange", "mul"}.isdisjoint(left) and "index_select" in left
    assert not sequence.rows(torch.tensor([0, 0])).kept
    # Values of another number of rows are spread by another index.
    (spread,) = sequence.at_positions(torch.randn(1, 2, 1, 4))
    assert spread.shape == first.shape


def test_as_many_operations_order_a_long_sequence_as_a_short_one():
    """Python does no work that grows with words, pictures, items or turns."""
    counts = set()
    for words, pictures, batch in ((8, 1, 1), (300, 3, 4)):
        length = pictures * 4
        content = {
            "text": make_content(["gn" * (words // 2)] * batch, [[0, 1] * (words // 2)] * batch),
            "image": make_content(["g" * length] * batch, [[0] * length] * batch, axes=2),
        }
        with _Operations() as mode:
            has_class = torch.ones(batch, dtype=torch.bool)
            sequence = build_sequence(
                content, has_class, has_class, 2, (pictures, 2, 2), JOINT_SCANS, ALL_ORDERS
            )
            take_part(sequence, content, given=True)
            take_part(sequence, content, given=False)
        counts.add(len(mode.names))
    assert len(counts) == 1


# --- Content


def test_noisy_is_what_is_real_and_not_given():
    part = make_content(["gn."], [[0] * 3])
    assert part.noisy.tolist() == [[False, True, False]]
    assert part.without(flags(False, True, False)[None]).noisy.tolist() == [[False] * 3]
    twice = part.repeat(2)
    assert torch.equal(twice.latents, torch.cat([part.latents, part.latents]))
    assert twice.place.shape == (2, 3, 1) and twice.turn.shape == (2, 3)


@pytest.mark.parametrize(
    ("kinds", "turns", "prompt"),
    [
        ("ggg", [0, 0, 0], "ppp"),  # all known: it only conditions
        ("gg.nn", [0, 0, 0, 1, 1], "pp---"),  # a question and its answer
        ("gng", [0, 0, 0], "---"),  # a known word beside the missing one is not a prompt
        ("ggngn", [0, 1, 2, 2, 2], "pp---"),
        ("nn.", [0, 0, 0], "---"),
        ("nngg", [0, 0, 1, 0], "--p-"),  # what was said later conditions as well
        ("gngng.", [0, 1, 1, 3, 2, 3], "p---p-"),  # two regions, and turns before and between
    ],
)
def test_prompt_is_what_is_given_outside_the_region_being_written(kinds, turns, prompt):
    part = make_content([kinds], [turns])
    assert part.prompt().tolist() == [[mark == "p" for mark in prompt]]


def test_dropping_the_prompt_takes_words_picture_and_class_of_those_items_alone():
    content = {
        "text": make_content(["ggnn"] * 2, [[0, 0, 1, 1]] * 2),
        "image": make_content(["gg"] * 2, [[0, 0]] * 2, axes=2),
    }
    kept, has_class = drop_prompt(content, flags(True, True), flags(True, False))
    assert has_class.tolist() == [False, True]
    assert kept["text"].valid.tolist() == [[False, False, True, True], [True] * 4]
    assert kept["image"].valid.tolist() == [[False] * 2, [True] * 2]
    assert torch.equal(kept["text"].noisy, content["text"].noisy)
