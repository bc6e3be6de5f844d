"""The rivals that the benchmarks implement themselves."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tolerances import distance, rounding

Load = Callable[[str], ModuleType]
STEPS = 25  # with two improvements of the basis


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module


def directions(transformation: optax.GradientTransformation, gradients: list[jax.Array]) -> list:
    state, found = transformation.init(gradients[0]), []
    update = jax.jit(transformation.update)
    for gradient in gradients:
        direction, state = update(gradient, state)
        found.append(direction)
    return found


def random_gradients(*shape: int) -> list[jax.Array]:
    return list(jax.random.normal(jax.random.key(3), (STEPS, *shape)))


def test_soap_is_adam_for_vectors_after_the_step_that_sets_it_up(load: Load) -> None:
    with jax.enable_x64(True):
        gradients = random_gradients(5)
        ours = directions(load("soap").scale_by_soap(eps=0.0), gradients)
        adam = directions(optax.scale_by_adam(0.95, 0.95, eps=0.0), gradients[1:])
    assert not np.any(ours[0])
    assert distance(ours[1:], adam) <= rounding(np.float64, operations=STEPS)


def test_soap_does_not_see_a_rotation_of_the_coordinates(load: Load) -> None:
    # Adam does, which is what SOAP is for.
    with jax.enable_x64(True):
        gradients = random_gradients(4, 4)
        left, right = (
            jnp.linalg.qr(jax.random.normal(jax.random.key(k), (4, 4)))[0] for k in (0, 1)
        )
        turned = [left @ g @ right for g in gradients]
        results = {}
        for name, kind in (("soap", load("soap").scale_by_soap), ("adam", optax.scale_by_adam)):
            plain = directions(kind(), gradients)
            results[name] = distance(directions(kind(), turned), [left @ d @ right for d in plain])
        # An eigenvector is as exact as the gap to the next eigenvalue is wide.
        values = np.linalg.eigvalsh(np.asarray(gradients[0] @ gradients[0].T))
        condition = values[-1] / np.min(np.diff(values))
    assert results["soap"] <= rounding(np.float64, condition=condition, operations=4 * STEPS)
    assert results["adam"] > 0.1


def test_random_features_solve_a_linear_equation_to_many_digits(load: Load) -> None:
    features, cases = load("random_features"), load("second_order").CASES
    with jax.enable_x64(True):
        settings = features.Settings(features=150, points=3.0, slope=1.5, slope_second=1.5)
        solutions = list(features.solve(cases["poisson"], settings, 0, nullcontext))
        error = float(cases["poisson"].problem.relative_l2_error(solutions[-1].model))
    assert len(solutions) == 1
    assert error < 1e-6


def test_least_squares_is_that_of_numpy(load: Load) -> None:
    rng = np.random.default_rng(0)
    matrix, right = rng.standard_normal((30, 8)), rng.standard_normal(30)
    expected, *_, values = np.linalg.lstsq(matrix, right)
    found = load("random_features").least_squares(matrix, right, 1e-14)
    tolerance = rounding(np.float64, condition=(values[0] / values[-1]) ** 2, operations=30)
    assert distance(found, expected) <= tolerance
