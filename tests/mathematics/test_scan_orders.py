# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scan orders (Sec. 3.2, Fig. 2f-g) against the lists of places that a reader would visit."""

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from modeling_mdm.configuration_mdm import JOINT_SCANS
from modeling_mdm.scan_orders import (
    Reading,
    add_rows,
    given_first_order,
    image_rank,
    joint_rank,
    merge,
    reorder,
    spread,
    text_rank,
)

float64 = torch.float64
sides = st.integers(1, 6)


def words_in(order, length):
    """The words in the order in which a scan reads them."""
    return list(range(length)) if order == 1 else list(range(length))[::-1]


def places_in(order, height, width):
    """The (row, column) places of a grid in the order in which a scan reads them."""
    if order in (1, 2):
        places = [(row, column) for row in range(height) for column in range(width)]
    else:
        places = [(row, column) for column in range(width) for row in range(height)]
    return places if order in (1, 3) else places[::-1]


def by_rank(labels, ranks):
    """Labels sorted by rank; no two ranks may be equal."""
    ranks = ranks.tolist()
    assert len(set(ranks)) == len(ranks) == len(labels)
    return [label for _, label in sorted(zip(ranks, labels, strict=True))]


# --- Each order's definition


@examples(length=st.integers(0, 9), order=st.sampled_from([1, 2]))
def test_text_orders_read_forward_and_in_reverse(length, order):
    assert by_rank(list(range(length)), text_rank(length, order)) == words_in(order, length)
    assert sorted(text_rank(length, order).tolist()) == list(range(length))


@examples(height=sides, width=sides, order=st.sampled_from([1, 2, 3, 4]))
def test_image_orders_read_rows_and_columns_forward_and_in_reverse(height, width, order):
    stored = [(row, column) for row in range(height) for column in range(width)]
    ranks = image_rank(height, width, order)
    assert by_rank(stored, ranks) == places_in(order, height, width)
    assert sorted(ranks.tolist()) == list(range(height * width))


def test_image_orders_of_a_grid_of_two_by_three():
    assert image_rank(2, 3, 1).tolist() == [0, 1, 2, 3, 4, 5]
    assert image_rank(2, 3, 2).tolist() == [5, 4, 3, 2, 1, 0]
    assert image_rank(2, 3, 3).tolist() == [0, 2, 4, 1, 3, 5]
    assert image_rank(2, 3, 4).tolist() == [5, 3, 1, 4, 2, 0]


def test_joint_scans_pair_each_image_order_with_a_text_order():
    assert JOINT_SCANS == ((1, 1), (2, 2), (3, 1), (4, 2))


@examples(
    num_words=st.integers(0, 5),
    pictures=st.integers(0, 3),
    height=sides,
    width=sides,
    pair=st.sampled_from(JOINT_SCANS),
)
def test_words_come_before_patches_in_forward_scans_and_after_them_in_reverse_ones(
    num_words, pictures, height, width, pair
):
    words, patches = joint_rank(num_words, (pictures, height, width), pair)
    stored = [("word", n) for n in range(num_words)]
    stored += [(m, r, c) for m in range(pictures) for r in range(height) for c in range(width)]
    read_words = [("word", n) for n in words_in(pair[1], num_words)]
    order_of_pictures = words_in(1 if pair[0] in (1, 3) else 2, pictures)
    read_patches = [
        (m, *place) for m in order_of_pictures for place in places_in(pair[0], height, width)
    ]
    expected = read_words + read_patches if pair[1] == 1 else read_patches + read_words
    assert by_rank(stored, torch.cat([words, patches])) == expected


# --- Given first


@st.composite
def joint_sequences(draw):
    """Ranks (k, l) and masks (b, l) of every kind."""
    length, scans, batch = draw(st.integers(1, 9)), draw(st.integers(1, 3)), 2
    ranks = torch.tensor([draw(st.permutations(range(length))) for _ in range(scans)])

    def mask():
        return torch.tensor(
            draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length))
        ).view(batch, length)

    turns = st.lists(st.integers(0, 3), min_size=batch * length, max_size=batch * length)
    return ranks, mask(), mask(), mask(), torch.tensor(draw(turns)).view(batch, length)


@examples(joint_sequences())
@settings(max_examples=50)
def test_given_first_sorts_by_padding_noisy_turn_and_rank(sequence):
    ranks, valid, given, special, turn = sequence
    order, inverse = given_first_order(*sequence)
    for b in range(valid.shape[0]):
        for k in range(ranks.shape[0]):

            def key(n, b=b, k=k):
                leads = special[b, n].item()
                return (
                    not valid[b, n],
                    valid[b, n].item() and not given[b, n].item(),
                    not leads,
                    0 if leads else turn[b, n].item(),
                    n if leads else ranks[k, n].item(),
                )

            real = int(valid[b].sum())
            expected = sorted(range(valid.shape[1]), key=key)
            read = order[b, k].tolist()
            assert read[:real] == expected[:real]  # among padding, no order is asked for
            assert sorted(read) == list(range(valid.shape[1]))
            assert order[b, k][inverse[b, k]].tolist() == list(range(valid.shape[1]))


@examples(joint_sequences())
@settings(max_examples=50)
def test_what_is_given_is_read_in_the_same_places_whatever_else_is_there(sequence):
    """Noisy positions and padding can be taken away, and the given ones are read as before."""
    ranks, valid, given, special, turn = sequence
    order, _ = given_first_order(*sequence)
    alone, _ = given_first_order(ranks, valid & given, given, special, turn)
    for b in range(valid.shape[0]):
        count = int((valid & given)[b].sum())
        assert torch.equal(order[b, :, :count], alone[b, :, :count])


def test_many_turns_stay_within_their_part():
    turn = torch.tensor([[70_000, 5, 0, 100_000]])
    given = torch.tensor([[True, True, False, True]])
    order, _ = given_first_order(
        torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool), given, given & False, turn
    )
    assert order.tolist() == [[[1, 0, 3, 2]]]


# --- Moving features into scan order and back


def random_orders(batch, scans, length):
    order = torch.stack(
        [torch.stack([torch.randperm(length) for _ in range(scans)]) for _ in range(batch)]
    )
    return order, order.argsort(-1)


@pytest.mark.parametrize("dtype", [torch.float32, float64])
@examples(batch=st.integers(1, 3), scans=st.integers(1, 4), length=st.integers(1, 7))
@settings(max_examples=25)
def test_spread_reorder_and_merge_equal_loops(dtype, batch, scans, length):
    order, inverse = random_orders(batch, scans, length)
    shared = torch.randn(batch, length, 3, dtype=dtype)
    own = torch.randn(batch, scans, length, 3, dtype=dtype)
    spread_out, reordered = spread(shared, order, inverse), reorder(own, order, inverse)
    merged = torch.zeros(batch, length, 3, dtype=float64)
    for b in range(batch):
        for k in range(scans):
            for step, n in enumerate(order[b, k].tolist()):
                assert torch.equal(spread_out[b, k, step], shared[b, n])
                assert torch.equal(reordered[b, k, step], own[b, k, n])
                merged[b, n] += own[b, k, step]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert (merge(own, order, inverse).double() - merged).abs().max() < tolerance
    assert torch.equal(reorder(reordered, inverse, order), own)


@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("scans", [1, 3])
def test_gradients_of_moving_equal_those_of_plain_indexing(scans, dtype):
    order, inverse = random_orders(2, scans, 6)
    rows = torch.arange(2)[:, None, None]
    shared = torch.randn(2, 6, 4, dtype=dtype, requires_grad=True)
    own = torch.randn(2, scans, 6, 4, dtype=dtype, requires_grad=True)
    columns = torch.arange(scans)[None, :, None]
    weights = torch.randn(2, scans, 6, 4, dtype=dtype)

    def gradient(output, source, factor):
        return torch.autograd.grad((output * factor).sum(), source)[0]

    expected = gradient(shared[rows, order], shared, weights)
    torch.testing.assert_close(gradient(spread(shared, order, inverse), shared, weights), expected)
    expected = gradient(own[rows, columns, order], own, weights)
    torch.testing.assert_close(gradient(reorder(own, order, inverse), own, weights), expected)
    expected = gradient(own[rows, columns, inverse].sum(1), own, weights[:, 0])
    torch.testing.assert_close(gradient(merge(own, order, inverse), own, weights[:, 0]), expected)


@pytest.mark.parametrize("length", [0, 6])
@pytest.mark.parametrize("targets", [1, 3])
def test_rows_are_added_up_where_they_belong(targets, length):
    read = length // 2
    positions = random_orders(2, 3, length)[0][..., :read]
    rows = torch.randn(2, 3, read, 4, dtype=float64, requires_grad=True)
    before = torch.randn(2, targets, length, 4, dtype=float64)
    added = add_rows(before.clone(), rows, positions)
    weights = torch.randn_like(added)
    expected, expected_gradient = before.clone(), torch.zeros_like(rows)
    for b, k, step in torch.cartesian_prod(*map(torch.arange, rows.shape[:3])).tolist():
        place = b, k if targets > 1 else 0, positions[b, k, step]
        expected[place] += rows[b, k, step].detach()
        expected_gradient[b, k, step] = weights[place]
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-12)
    assert torch.equal(torch.autograd.grad((added * weights).sum(), rows)[0], expected_gradient)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("with_others", [True, False])
@pytest.mark.parametrize("read", [None, 4])
def test_what_is_read_goes_back_to_where_it_stood(read, with_others, grad):
    """Of 6 items 4 are read, the last of which is a filler: it adds nothing anywhere."""
    order, inverse = random_orders(2, 3, 6)
    steps = None if read is None else torch.rand(2, 3, 6).argsort(-1)[..., :read]
    real = None if read is None else torch.tensor([True] * 3 + [False]).expand(2, 3, 4)
    reading = Reading(order, inverse, steps, real)
    values = torch.randn(2, 3, 6, 5, dtype=float64)
    y = torch.randn(2, 3, read or 6, 5, dtype=float64, requires_grad=grad)
    others = torch.randn(2, 6, 5, dtype=float64, requires_grad=grad) if with_others else None
    back = torch.zeros(2, 3, 6, 5, dtype=float64)
    for b in range(2):
        for k in range(3):
            for m in range(read or 6):
                position = order[b, k, m if read is None else steps[b, k, m]]
                assert torch.equal(reading.read(values)[b, k, m], values[b, k, position])
                if read is None or real[b, k, m]:
                    back[b, k, position] = y[b, k, m].detach()
    expected = back.sum(1) if others is None else back.sum(1) + others.detach()
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(reading.bring_back(y.clone()), back)
        merged = reading.merge(y.clone(), None if others is None else others.clone())
    torch.testing.assert_close(merged, expected)
    if grad:
        factor = torch.randn_like(merged)
        (gradient,) = torch.autograd.grad((merged * factor).sum(), y)
        for b, k, m in torch.cartesian_prod(*map(torch.arange, y.shape[:3])).tolist():
            position = order[b, k, m if read is None else steps[b, k, m]]
            share = 1 if read is None else real[b, k, m]
            torch.testing.assert_close(gradient[b, k, m], factor[b, position] * share)
