"""The damping that follows the success of steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opifex.optimization.second_order import AdaptiveDamping
from opifex.optimization.second_order.candidates import Choice
from tolerances import distance, rounding


def choice(winner: int, accepted: bool) -> Choice:
    return Choice(jnp.zeros(1), jnp.asarray(winner), jnp.asarray(accepted))


@pytest.mark.parametrize(
    ("winner", "accepted", "factor"), [(0, True, 0.3), (2, True, 1.0), (0, False, 10.0)]
)
def test_it_follows_the_success_of_steps(winner, accepted, factor):
    with jax.enable_x64(True):
        damping = AdaptiveDamping()
        start = damping.start(jnp.float64)
        new = jax.jit(damping.update)(start, choice(winner, accepted))
        assert distance(new, 1e-3 * factor) <= rounding(np.float64)


def test_it_stays_within_its_bounds_and_above_the_machine_precision():
    damping = AdaptiveDamping(1e-3, minimum=5e-4, maximum=2e-3)
    start = damping.start(jnp.float32)
    assert damping.update(start, choice(0, True)) == np.float32(5e-4)
    assert damping.update(start, choice(0, False)) == np.float32(2e-3)
    smallest = AdaptiveDamping().clip(jnp.asarray(0.0, jnp.float32))
    assert smallest == np.finfo(np.float32).eps


def test_a_decrease_of_one_keeps_it():
    damping = AdaptiveDamping(decrease=1.0)
    start = damping.start(jnp.float32)
    assert damping.update(start, choice(0, True)) == start


@pytest.mark.parametrize(
    ("settings", "error", "name"),
    [
        ({"initial": 0.0}, ValueError, "initial"),
        ({"minimum": -1.0}, ValueError, "minimum"),
        ({"maximum": "big"}, TypeError, "maximum"),
        ({"minimum": 1.0, "maximum": 0.1}, ValueError, "maximum"),
        ({"decrease": 1.5}, ValueError, "decrease"),
        ({"increase": 0.5}, ValueError, "increase"),
    ],
)
def test_bad_settings_are_named(settings, error, name):
    with pytest.raises(error, match=name):
        AdaptiveDamping(**settings)
