"""Bad arguments of the public API raise what the docstrings say, and nothing else."""

from __future__ import annotations

import contextlib
import importlib
import signal
import warnings

import jaxtyping
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bad_inputs import BAD, ENTRIES, NOT_CALLED, ROOMS, documented_errors

# Seconds after which a call counts as one that does not end.
PATIENCE = 60
BY_NAME = {entry.name: entry for entry in ENTRIES}

# Small enough that a size which is allowed is allocated at once, or so large that it never is.
NUMBERS = st.one_of(
    st.integers(-3, 6),
    st.integers(min_value=2**64),
    st.integers(max_value=-(2**63)),
    st.floats(-4.0, 4.0),
    st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e-320]),
    st.booleans(),
    st.complex_numbers(max_magnitude=9.0),
)
LEAVES = st.one_of(NUMBERS, st.none(), st.text(max_size=4), st.binary(max_size=3))
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=2),
    ),
    max_leaves=5,
)


def filled(shape, dtype, fill):
    with np.errstate(all="ignore"):
        return np.full(shape, fill).astype(dtype)


ARRAYS = st.builds(
    filled,
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(["float32", "float64", "float16", "int32", "int8", "bool", "complex64", "U2"]),
    st.sampled_from([0, 1, -2, 3.5, float("nan"), float("inf")]),
)


@st.composite
def bad_calls(draw, entry):
    """Valid arguments with bad values in one or two places: what to say of them, and the arguments."""
    arguments = entry.arguments()
    places = draw(st.lists(st.sampled_from(list(arguments)), min_size=1, max_size=2, unique=True))
    said = {}
    for place in places:
        if draw(st.booleans()):
            said[place] = draw(st.sampled_from(sorted(BAD)))
            arguments[place] = BAD[said[place]]()
        else:
            said[place] = arguments[place] = draw(st.one_of(NESTED, ARRAYS))
    return said, arguments


@contextlib.contextmanager
def as_for_users():
    """Without the checks of shapes that tests add; warnings are no errors; endless calls are."""

    def stop(*_):
        raise AssertionError(f"does not end within {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(entry, said, arguments) -> None:
    """Fail where a call ends by an error that is not documented."""
    allowed = documented_errors(entry.documented)
    with as_for_users():
        try:
            entry.call(**arguments)
        except allowed:
            return
        except Exception as error:
            error.add_note(f"{entry.name} with {said}; documented are {allowed}")
            raise


def search(entry, examples) -> int:
    """Check so many examples of an entry, always the same ones; how many were made."""
    made = []

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bad_calls(entry))
    def one(call):
        made.append(call)
        check(entry, *call)

    one()
    return len(made)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("OPIFEX_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_every_public_callable_is_called_or_excused():
    public = {name for room in ROOMS for name in importlib.import_module(room).__all__}
    called = {name.split(".")[0].split("(")[0] for name in BY_NAME}
    values = {
        name
        for room in ROOMS
        for name in importlib.import_module(room).__all__
        if not callable(getattr(importlib.import_module(room), name))
    }
    assert called <= public
    assert not called & set(NOT_CALLED)
    assert public - values - called == set(NOT_CALLED) - values


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - {"read_fields", "open_fields"}))
def test_arguments_of_the_table_are_valid(name):
    with as_for_users():
        BY_NAME[name].call(**BY_NAME[name].arguments())


def test_documented_errors_are_read_from_the_section_of_a_docstring():
    def function():
        """One.

        Raises:
            ValueError: if so,
                or ``KeyError``: not meant.
            TransferError: if not.

        Example:
            TypeError: no
        """

    found = [kind.__name__ for kind in documented_errors(function)]
    assert found == ["ValueError", "TransferError"]
    assert documented_errors(len) == ()


def test_an_error_that_is_not_documented_is_found():
    entry = BY_NAME["LossPlateau"]
    broken = type(entry)("broken", lambda **_: [][1], entry.documented, entry.arguments)
    with pytest.raises(IndexError) as raised:
        search(broken, 1)
    assert any("broken with" in note for note in raised.value.__notes__)


# What compiles a program for each example; the search on request calls it more often.
SLOW_TO_CALL = (
    "CascadeTrainer.fit",
    "fit_in_stages",
    "recommend_schedule",
    "transfer_optimizer_state",
    "tune_learning_rate",
    "generate_burgers_operator_data",
    "solve_burgers",
    "LevenbergMarquardt.step",
    "block_bidiagonal_solution",
)


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in SLOW_TO_CALL])
def test_bad_arguments_raise_what_is_documented(name):
    search(BY_NAME[name], 2)


@pytest.mark.slow
def test_bad_arguments_of_all_kinds_raise_what_is_documented():
    made, wrong = 0, []
    for entry in ENTRIES:
        try:
            made += search(entry, 30)
        except Exception as error:
            wrong.append(error)
    if wrong:
        raise ExceptionGroup("not as documented", wrong)
    assert made >= 2000


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_each_bad_value_in_each_place_raises_what_is_documented(name):
    entry = BY_NAME[name]
    for place in entry.arguments():
        for kind, make in BAD.items():
            check(entry, {place: kind}, {**entry.arguments(), place: make()})
