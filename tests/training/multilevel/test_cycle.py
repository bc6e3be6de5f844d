"""Cycles as lists of moves, without any model: order, matching, and lengths that add up."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opifex.training.multilevel.cycle import (
    Cascade,
    Correct,
    Enter,
    FullMultigrid,
    Interpolate,
    Restrict,
    Smooth,
    VCycle,
    WCycle,
    as_cycle,
    draw,
)

MULTIGRID = [VCycle, WCycle, FullMultigrid]


def smoothings(moves, level=None):
    return [m for m in moves if isinstance(m, Smooth) and level in (None, m.level)]


def levels_seen(moves):
    """The levels in the order in which they are smoothed."""
    return [move.level for move in smoothings(moves)]


@st.composite
def runs(draw, kinds=(Cascade, *MULTIGRID), **options):
    """A cycle, a number of levels, a level to start on, and epochs for every level."""
    kind = draw(st.sampled_from(kinds))
    if kind is not Cascade:
        options = {name: draw(numbers) for name, numbers in options.items()}
        options["cycles"] = draw(st.integers(1, 6))
    num_levels = draw(st.integers(1, 4))
    start = draw(st.integers(0, num_levels - 1))
    epochs = draw(st.lists(st.integers(1, 60), min_size=num_levels, max_size=num_levels))
    return kind(**(options if kind is not Cascade else {})), num_levels, start, epochs


FEW = st.integers(0, 5)
GIVEN_LENGTHS = {"pre": FEW, "post": FEW, "coarsest": FEW}


# -- Lengths ---------------------------------------------------------------------------------


@given(runs())
def test_lengths_add_up_to_the_planned_epochs_of_each_level(run):
    cycle, num_levels, start, epochs = run
    done = Counter()
    for move in smoothings(cycle.moves(num_levels, start, epochs)):
        assert move.epochs >= 0
        done[move.level] += move.epochs
    # A cascade never comes back to a level below its first one.
    visited = range(start if isinstance(cycle, Cascade) else 0, num_levels)
    assert done == Counter({level: epochs[level] for level in visited})


@given(runs(MULTIGRID))
def test_a_level_shares_its_epochs_evenly_but_for_a_first_solve(run):
    cycle, num_levels, start, epochs = run
    moves = list(cycle.moves(num_levels, start, epochs))
    for level in range(num_levels):
        lengths = [move.epochs for move in smoothings(moves, level) if move.part != "solve"]
        assert max(lengths, default=0) - min(lengths, default=0) <= 1
        for solve in (move for move in smoothings(moves, level) if move.part == "solve"):
            # Half of the epochs, or all of them where the level is not visited again.
            assert level == 0
            assert solve.epochs == (epochs[0] // 2 if lengths else epochs[0])


@given(runs(MULTIGRID, **GIVEN_LENGTHS))
def test_given_lengths_are_taken_exactly(run):
    cycle, num_levels, start, _ = run
    wanted = {"pre": cycle.pre, "post": cycle.post}
    wanted |= dict.fromkeys(("coarsest", "solve"), cycle.coarsest)
    moves = list(cycle.moves(num_levels, start, None))
    assert smoothings(moves)
    assert all(move.epochs == wanted[move.part] for move in smoothings(moves))
    assert all(
        (move.level == 0) == (move.part in ("coarsest", "solve")) for move in smoothings(moves)
    )


@pytest.mark.parametrize(("kind", "visits"), [(VCycle, (1, 1, 1)), (WCycle, (2, 2, 1))])
def test_two_steps_before_and_one_after(kind, visits):
    moves = list(kind(cycles=3, pre=2, post=1, coarsest=7).moves(3, 0, None))
    lengths = [[m.epochs for m in smoothings(moves, level)] for level in range(3)]
    assert lengths[0] == [7] * 3 * visits[0]
    for level in (1, 2):
        per_level = lengths[level]
        assert sorted(per_level) == [1] * 3 * visits[level] + [2] * 3 * visits[level]
    assert lengths[2] == [2, 1] * 3


def test_epochs_are_given_once():
    with pytest.raises(ValueError, match="epochs must be None where the cycle says pre=1"):
        VCycle(pre=1, post=1, coarsest=2).moves(2, 0, [3, 3])
    for cycle in (Cascade(), VCycle(), WCycle(), FullMultigrid()):
        with pytest.raises(ValueError, match="epochs must be given"):
            list(cycle.moves(2, 0, None))


# -- Order -----------------------------------------------------------------------------------


@given(runs())
def test_every_restriction_is_matched_by_a_correction(run):
    cycle, num_levels, start, epochs = run
    position, visited_from = start, []
    for move in cycle.moves(num_levels, start, epochs):
        match move:
            case Smooth():
                assert move.level == position
            case Enter():
                assert not visited_from
            case Interpolate():
                assert not visited_from
                assert move.level == position + 1
            case Restrict():
                assert cycle.coarse is not None
                assert move.level == position - 1
                visited_from.append(position)
            case Correct():
                assert move.level == visited_from.pop()
        position = move.level
    assert not visited_from
    assert position == num_levels - 1


@given(runs(MULTIGRID))
def test_cycles_are_numbered_in_order_and_as_many_as_asked_for(run):
    cycle, num_levels, start, epochs = run
    numbers = [move.cycle for move in smoothings(cycle.moves(num_levels, start, epochs))]
    assert all(0 <= after - before <= 1 for before, after in pairwise(numbers))
    if isinstance(cycle, FullMultigrid):
        # Cycles on every level but the coarsest, from the one it begins on; 0 is the first solve.
        levels = num_levels - max(start, 1)
        assert set(numbers) == set(range(0 if start == 0 else 1, levels * cycle.cycles + 1))
    else:
        assert set(numbers) == set(range(1, cycle.cycles + 1))


@pytest.mark.parametrize(
    ("cycle", "levels"),
    [
        (Cascade(), [0, 1, 2]),
        (VCycle(cycles=2), [2, 1, 0, 1, 2, 2, 1, 0, 1, 2]),
        (WCycle(cycles=1), [2, 1, 0, 1, 1, 0, 1, 2]),
        (FullMultigrid(cycles=1), [0, 1, 0, 1, 2, 1, 0, 1, 2]),
    ],
    ids=["cascade", "v", "w", "full"],
)
def test_order_of_levels(cycle, levels):
    assert levels_seen(cycle.moves(3, 0, [12, 12, 12])) == levels


@given(runs([VCycle, WCycle]))
def test_cycles_begin_on_the_finest_level(run):
    cycle, num_levels, start, epochs = run
    moves = list(cycle.moves(num_levels, start, epochs))
    finest = num_levels - 1
    assert [move.level for move in moves if isinstance(move, Enter)] == [finest] * (start != finest)
    assert levels_seen(moves)[0] == finest


@given(st.integers(1, 6), st.integers(2, 4))
def test_full_multigrid_begun_on_the_finest_level_does_its_cycles_there(cycles, num_levels):
    moves = list(FullMultigrid(cycles=cycles).moves(num_levels, num_levels - 1, [50] * num_levels))
    assert not any(isinstance(move, Interpolate | Enter) for move in moves)
    parts = [move.part for move in smoothings(moves, num_levels - 1)]
    assert parts == ["pre", "post"] * cycles
    # From there on it is what V-cycles are.
    order = list(VCycle(cycles=cycles).moves(num_levels, num_levels - 1, [50] * num_levels))
    assert [m._replace(cycle=0) if isinstance(m, Smooth) else m for m in moves] == [
        m._replace(cycle=0) if isinstance(m, Smooth) else m for m in order
    ]


def test_one_level_is_smoothed_and_never_left():
    for cycle in (Cascade(), VCycle(cycles=3), WCycle(cycles=3), FullMultigrid(cycles=3)):
        moves = list(cycle.moves(1, 0, [10]))
        assert {type(move) for move in moves} == {Smooth}
        assert sum(move.epochs for move in moves) == 10


# -- Pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cycle", "epochs", "picture"),
    [
        (Cascade(), [5, 10, 20], ["   20", " 10", "5"]),
        (VCycle(cycles=1, pre=2, post=1, coarsest=4), None, ["2   1", " 2 1", "  4"]),
        (
            VCycle(cycles=2, pre=2, post=1, coarsest=4),
            None,
            ["2   12   1", " 2 1  2 1", "  4    4"],
        ),
        (
            WCycle(cycles=1, pre=2, post=1, coarsest=4),
            None,
            ["2      1", " 2 12 1", "  4  4"],
        ),
        (
            FullMultigrid(cycles=1, pre=2, post=1, coarsest=4),
            None,
            ["    2   1", " 2 1 2 1", "4 4   4"],
        ),
        (VCycle(cycles=1), [10, 4, 6], ["3    3", " 2  2", "  10"]),
    ],
    ids=["cascade", "v", "two v", "w", "full", "wide"],
)
def test_pictures(cycle, epochs, picture):
    assert draw(cycle, 3, epochs) == "\n".join(picture)


def test_a_picture_without_epochs_takes_one_each():
    assert draw(Cascade(), 2) == " 1\n1"


# -- Settings --------------------------------------------------------------------------------


def test_names_stand_for_cycles():
    assert as_cycle("cascade") == Cascade()
    assert as_cycle("v-cycle") == VCycle()
    assert as_cycle("w-cycle") == WCycle()
    assert as_cycle("full-multigrid") == FullMultigrid()
    assert VCycle().cycles > 1


@pytest.mark.parametrize(
    ("cycle", "error"), [("x-cycle", ValueError), (3, TypeError), (VCycle, TypeError)]
)
def test_what_is_no_cycle_is_named(cycle, error):
    with pytest.raises(error, match="cycle must be one of"):
        as_cycle(cycle)


@pytest.mark.parametrize("kind", MULTIGRID)
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cycles": 0}, ValueError),
        ({"cycles": 1.5}, TypeError),
        ({"gradient_scale": -1.0}, ValueError),
        ({"backtracking_steps": 0}, ValueError),
        ({"coarse": "block"}, ValueError),
        ({"pre": -1, "post": 1, "coarsest": 1}, ValueError),
        ({"coarsest": 2.0, "pre": 1, "post": 1}, TypeError),
    ],
)
def test_wrong_settings_are_named(kind, options, error):
    with pytest.raises(error, match=next(iter(options))):
        kind(**options)


@pytest.mark.parametrize("missing", ["pre", "post", "coarsest"])
def test_lengths_are_given_together_or_not_at_all(missing):
    given_lengths = {"pre": 1, "post": 1, "coarsest": 1}
    del given_lengths[missing]
    with pytest.raises(ValueError, match=f"given together, got no {missing}"):
        VCycle(**given_lengths)


def test_what_is_no_criterion_is_named():
    with pytest.raises(TypeError, match="stop must have a should_stop method, got 3"):
        Cascade(stop=3)
