"""Samples of several accuracies: measurement, allocation and correction, against closed forms."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from opifex.data import OperatorData
from opifex.models import FNO
from opifex.training.sample_levels import (
    SampleAllocation,
    SampleLevels,
    allocate_samples,
    compare_sample_levels,
    correct_samples,
    measure_sample_levels,
)

POINTS = 32


def waves(level: int, num_samples: int, seed: int) -> OperatorData:
    """Two waves; the cheap solver damps the short one, and the field where it is positive."""
    random = np.random.default_rng(seed).uniform(-1, 1, (num_samples, 2, 1))
    x = 2 * np.pi * np.arange(POINTS) / POINTS
    exact = random[:, 0] * np.sin(x) + random[:, 1] * np.cos(3 * x)
    damped = random[:, 0] * np.sin(x) + 0.5 * random[:, 1] * np.cos(3 * x)
    outputs = exact if level == 1 else damped - 0.1 * np.maximum(damped, 0)
    return OperatorData(exact[..., None].astype(np.float32), outputs[..., None].astype(np.float32))


def build(rngs: nnx.Rngs) -> FNO:
    """A small correction."""
    return FNO(6, 12, input_dim=2, num_layers=2, grid_kind="periodic", rngs=rngs)


def measured(seconds: tuple[float, ...], differences: list[list[float]]) -> SampleLevels:
    """Measurements that were made up."""
    return SampleLevels(seconds, 1.0, np.asarray(differences), 16)


class TestMeasurement:
    """Costs and differences."""

    def test_differences_are_variances_relative_to_that_of_the_highest_level(self) -> None:
        found = measure_sample_levels(waves, 2, num_samples=64, seed=3)
        low, high = (waves(level, 64, 3).outputs.astype(np.float64) for level in (0, 1))
        apart = np.var(low - high, axis=0).mean() / np.var(high, axis=0).mean()
        np.testing.assert_allclose(found.differences, [[0, apart], [apart, 0]], rtol=1e-12)
        np.testing.assert_allclose(found.variance, np.var(high, axis=0).mean(), rtol=1e-12)

    def test_samples_that_are_solved_and_costs_that_are_known_say_the_same(self) -> None:
        found = compare_sample_levels([waves(level, 16, 0) for level in (0, 1)], (0.5, 2.0))
        expected = measure_sample_levels(waves, 2)
        assert found.seconds == (0.5, 2.0)
        assert (found.variance, found.num_samples) == (expected.variance, 16)
        np.testing.assert_array_equal(found.differences, expected.differences)

    def test_the_highest_level_solves_its_samples_twice(self) -> None:
        calls = []

        def solve(level: int, num_samples: int, seed: int) -> OperatorData:
            calls.append((level, num_samples))
            return waves(level, num_samples, seed)

        measure_sample_levels(solve, 2, num_samples=4)
        assert [n for level, n in calls if level == 1] == [4, 4]

    @pytest.mark.parametrize(
        ("samples", "seconds", "error", "words"),
        [
            ([waves(1, 4, 0)], (1.0,), ValueError, "at least two levels, got 1 and 1"),
            ([waves(0, 4, 0), waves(1, 4, 0)], (1.0,), ValueError, "as many.*got 2 and 1"),
            ([waves(0, 4, 0), waves(1, 4, 0)], (1.0, 0.0), ValueError, "seconds"),
            ([waves(0, 1, 0), waves(1, 1, 0)], (1.0, 2.0), ValueError, "at least 2 on each level"),
            ([waves(0, 4, 0), waves(1, 5, 0)], (1.0, 2.0), ValueError, "must return 4 samples"),
            ([waves(0, 4, 0), waves(1, 4, 1)], (1.0, 2.0), ValueError, "same inputs"),
            ([waves(0, 4, 0), waves(1, 4, 0).inputs], (1.0, 2.0), TypeError, "pair of arrays"),
            (7, (1.0, 2.0), TypeError, "samples"),
        ],
    )
    def test_what_can_be_compared(self, samples, seconds, error, words) -> None:
        with pytest.raises(error, match=words):
            compare_sample_levels(samples, seconds)

    def test_the_dearer_level_costs_more(self) -> None:
        def solve(level: int, num_samples: int, seed: int) -> OperatorData:
            end = time.process_time() + 0.002 * num_samples * 10**level
            while time.process_time() < end:
                pass
            return waves(level, num_samples, seed)

        found = measure_sample_levels(solve, 2, num_samples=4)
        assert found.seconds[1] > 3 * found.seconds[0]

    def test_other_inputs_on_another_level_are_refused(self) -> None:
        with pytest.raises(ValueError, match="same inputs on every level"):
            measure_sample_levels(lambda level, n, seed: waves(level, n, seed + level), 2)

    @pytest.mark.parametrize(
        ("broken", "error", "words"),
        [
            (lambda level, n, seed: waves(level, n, seed).inputs, TypeError, "pair of arrays"),
            (lambda level, n, seed: waves(level, n + 1, seed), ValueError, "16 samples"),
            (
                lambda level, n, seed: tuple(part * np.nan for part in waves(level, n, seed)),
                ValueError,
                "not all finite",
            ),
            (
                lambda level, n, seed: (waves(level, n, seed)[0][:, ::2], waves(level, n, seed)[1]),
                ValueError,
                "one grid",
            ),
        ],
    )
    def test_what_a_solver_must_give(self, broken, error, words) -> None:
        with pytest.raises(error, match=words):
            measure_sample_levels(broken, 2)

    def test_equal_outputs_are_refused(self) -> None:
        with pytest.raises(ValueError, match="same outputs for all samples"):
            measure_sample_levels(lambda *_: (np.ones((16, 8, 1)), np.ones((16, 8, 1))), 2)

    @pytest.mark.parametrize("name", ["num_levels", "num_samples"])
    def test_at_least_two(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} must be at least 2"):
            measure_sample_levels(waves, **{"num_levels": 2, name: 1})


class TestAllocation:
    """Against the formula, and against all other allocations."""

    def test_the_formula(self) -> None:
        found = allocate_samples(measured((0.01, 1.0), [[0, 0.01], [0.01, 0]]), 100.0)
        assert found == SampleAllocation((0, 1), (5000, 50))
        assert found.seconds(measured((0.01, 1.0), [[0, 0.01], [0.01, 0]])) == pytest.approx(100)

    def test_a_cheap_level_that_is_wrong_is_left_out(self) -> None:
        found = allocate_samples(measured((0.5, 1.0), [[0, 0.9], [0.9, 0]]), 100.0)
        assert found == SampleAllocation((1,), (100,))

    def test_a_level_between_that_does_not_pay_is_left_out(self) -> None:
        apart = [[0, 0.02, 0.02], [0.02, 0, 0.019], [0.02, 0.019, 0]]
        assert allocate_samples(measured((0.01, 0.5, 1.0), apart), 100.0).levels == (0, 2)

    @given(
        ratio=st.floats(2.0, 50.0),
        close=st.floats(2.0, 50.0),
        budget=st.floats(50.0, 1000.0),
    )
    def test_within_the_budget_and_nested(self, ratio: float, close: float, budget: float) -> None:
        seconds = (1 / ratio**2, 1 / ratio, 1.0)
        apart = [[0.0] * 3 for _ in range(3)]
        for i, j in itertools.permutations(range(3), 2):
            apart[i][j] = close ** -(1 + min(i, j))
        levels = measured(seconds, apart)
        found = allocate_samples(levels, budget)
        assert found.levels[-1] == 2
        assert found.seconds(levels) <= budget * (1 + 1e-6)
        assert list(found.counts) == sorted(found.counts, reverse=True)

    @given(ratio=st.floats(5.0, 50.0), close=st.floats(10.0, 100.0))
    def test_no_neighbouring_allocation_has_a_smaller_error(self, ratio, close) -> None:
        levels = measured((1 / ratio, 1.0), [[0, 1 / close], [1 / close, 0]])
        found = allocate_samples(levels, 1000.0)
        assert found.levels == (0, 1)

        def error(count: int) -> float:
            rest = (1000.0 - count) * ratio
            return 1 / rest + 1 / close / count

        best = found.counts[1]
        assert error(best) <= min(error(best * 3 // 4), error(best * 5 // 4)) * (1 + 1e-9)
        assert math.isclose(found.counts[0], (1000.0 - best) * ratio, rel_tol=0.02)

    @given(
        ratio=st.floats(2.0, 50.0),
        close=st.floats(2.0, 50.0),
        training=st.floats(0.0, 400.0),
    )
    def test_counting_corrections_is_never_worse_than_ignoring_them(
        self, ratio: float, close: float, training: float
    ) -> None:
        """In the formula's own model, against all other choices of levels, too."""
        seconds = (1 / ratio**2, 1 / ratio, 1.0)
        apart = [[0.0] * 3 for _ in range(3)]
        for i, j in itertools.permutations(range(3), 2):
            apart[i][j] = close ** -(1 + min(i, j))
        levels, budget = measured(seconds, apart), 1000.0

        def error(chosen: tuple[int, ...]) -> float:
            pairs = list(itertools.pairwise(chosen))
            parts = [seconds[chosen[0]] ** 0.5] + [
                (apart[i][j] * seconds[j]) ** 0.5 for i, j in pairs
            ]
            rest = budget - training * len(pairs)
            return sum(parts) ** 2 / rest if rest > 0 else math.inf

        ignoring = allocate_samples(levels, budget, least=1)
        assert allocate_samples(levels, budget, least=1, correction_seconds=0.0) == ignoring
        found = allocate_samples(levels, budget, least=1, correction_seconds=training)
        subsets = [(2,), (0, 2), (1, 2), (0, 1, 2)]
        assert error(found.levels) <= min(map(error, subsets)) * (1 + 1e-9)
        assert error(found.levels) <= error(ignoring.levels)
        spent = found.seconds(levels) + training * (len(found.levels) - 1)
        assert spent <= budget * (1 + 1e-6)

    def test_dear_corrections_mean_fewer_levels(self) -> None:
        apart = [[0, 0.02, 0.02], [0.02, 0, 0.001], [0.02, 0.001, 0]]
        levels = measured((0.01, 0.1, 1.0), apart)
        found = [
            allocate_samples(levels, 100.0, correction_seconds=seconds).levels
            for seconds in (0.0, 40.0, 98.0)
        ]
        assert found == [(0, 1, 2), (0, 2), (2,)]

    @pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, "much"])
    def test_costs_of_corrections_that_make_no_sense(self, seconds: float) -> None:
        levels = measured((0.01, 1.0), [[0, 0.01], [0.01, 0]])
        with pytest.raises((TypeError, ValueError), match="correction_seconds"):
            allocate_samples(levels, 100.0, correction_seconds=seconds)

    def test_too_small_a_budget(self) -> None:
        with pytest.raises(ValueError, match="budget must pay for least=8"):
            allocate_samples(measured((0.01, 1.0), [[0, 0.01], [0.01, 0]]), 5.0)

    @pytest.mark.parametrize(
        ("levels", "counts", "words"),
        [
            ((), (), "at least one"),
            ((0, 1), (5,), "as many"),
            ((1, 0), (5, 5), "levels must rise"),
            ((0, 1), (5, 6), "must not rise"),
            ((0, 1), (5, 0), r"counts\[1\]"),
        ],
    )
    def test_allocations_that_make_no_sense(self, levels, counts, words) -> None:
        with pytest.raises(ValueError, match=words):
            SampleAllocation(levels, counts)


class TestCorrection:
    """A correction that a network can learn."""

    def test_the_many_cheap_samples_become_nearly_exact(self) -> None:
        made = correct_samples(waves, SampleAllocation((0, 1), (200, 32)), build, steps=600)
        exact = waves(1, 200, 0)
        np.testing.assert_array_equal(made.data.inputs, exact.inputs)
        np.testing.assert_array_equal(made.data.outputs[:32], exact.outputs[:32])
        cheap = waves(0, 200, 0).outputs[32:]
        before = np.linalg.norm(cheap - exact.outputs[32:])
        after = np.linalg.norm(made.data.outputs[32:] - exact.outputs[32:])
        assert after < 0.2 * before
        (correction,) = made.corrections
        assert correction.pairs == 28
        assert correction.seconds > 0
        # What was measured on four pairs is what the other samples have, within a factor.
        found = after / np.sqrt(cheap.size) / np.std(exact.outputs)
        assert found / 3 < correction.error < 3 * found

    def test_one_level_is_solved_and_nothing_else(self) -> None:
        made = correct_samples(waves, SampleAllocation((1,), (10,)), build)
        assert made.corrections == ()
        np.testing.assert_array_equal(made.data.outputs, waves(1, 10, 0).outputs)

    def test_a_correction_that_cannot_be_learned_is_told(self) -> None:
        def noise(level: int, num_samples: int, seed: int) -> OperatorData:
            data = waves(0, num_samples, seed)
            added = np.random.default_rng(level).standard_normal(data.outputs.shape)
            return OperatorData(data.inputs, data.outputs + added.astype(np.float32))

        with pytest.warns(UserWarning, match="does not halve the difference"):
            correct_samples(noise, SampleAllocation((0, 1), (20, 12)), build, steps=20)

    def test_bad_arguments(self) -> None:
        good = SampleAllocation((0, 1), (20, 12))
        with pytest.raises(TypeError, match="allocation must be a SampleAllocation"):
            correct_samples(waves, (20, 12), build)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="at least 2 samples on its highest level"):
            correct_samples(waves, SampleAllocation((0, 1), (20, 1)), build)
        with pytest.raises(ValueError, match="steps"):
            correct_samples(waves, good, build, steps=0)
        with pytest.raises(TypeError, match="build"):
            correct_samples(waves, good, None)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="same inputs on every level"):
            correct_samples(lambda level, n, seed: waves(level, n, seed + level), good, build)
