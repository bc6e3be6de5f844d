"""Learning rates at transitions: restarts, and rates by the age of a parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.models import MLP
from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelAdam,
    MultilevelConfig,
    MultilevelOptimizer,
    prolongate_preserving,
    scale_by_parameter_age,
)
from tolerances import rounding

X = jnp.linspace(0, 1, 12)[:, None]


def loss(model, x):
    return jnp.mean((model(x) - jnp.sin(3 * x)) ** 2)


def hierarchy():
    return [MLP(1, 1, [w], rngs=nnx.Rngs(w)) for w in (3, 5)]


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("by_hand", [True, False])
def test_restart_forgets_everything(by_hand):
    trainer = CascadeTrainer(
        hierarchy(),
        MultilevelAdam(1e-2, width_scaling=True, on_transition="restart"),
        config=MultilevelConfig(num_levels=2, level_epochs=[5, 1]),
    )
    if by_hand:
        trainer.step(nnx.grad(loss)(trainer.model, X))
        trainer.advance_level()
        smoother = trainer.optimizer.smoother_at(trainer.current_level)
        fresh = smoother.init(nnx.state(trainer.model, nnx.Param))
        state = trainer.optimizer.state
        # The factors of the widths, last in the chain, say how wide the level is.
        for found, wanted in zip(leaves(state[:-1]), leaves(fresh[:-1]), strict=True):
            np.testing.assert_array_equal(found, wanted)
        factors = state[-1].factor
        assert float(factors.output.kernel[...]) == pytest.approx(3 / 5)
        assert float(factors.hidden[0].dense.kernel[...]) == 1.0
    else:
        trainer.fit(loss, (X,))
        assert all(np.all(age == 1) for age in leaves(trainer.optimizer.state[0].age))


def test_age_counts_updates_and_new_entries_are_young():
    optimizer = MultilevelOptimizer(
        optax.chain(optax.sgd(1.0), scale_by_parameter_age(optax.linear_schedule(0.0, 1.0, 4)))
    )
    coarse, fine = hierarchy()
    optimizer.init(coarse)
    ones = jax.tree.map(jnp.ones_like, nnx.state(coarse, nnx.Param))
    start = leaves(nnx.state(coarse, nnx.Param))
    for _ in range(3):
        optimizer.update(coarse, ones)
    # Ages 0, 1 and 2 are scaled by 0, 1/4 and 2/4.
    rtol = rounding(np.float32, operations=4)
    for before, after in zip(start, leaves(nnx.state(coarse, nnx.Param)), strict=True):
        np.testing.assert_allclose(before - after, 0.75, rtol=rtol)
    new = prolongate_preserving(coarse, fine)
    optimizer.resize_state(new, prolongate_preserving)
    kernel = new.hidden[0].dense.kernel[...]
    optimizer.update(new, jax.tree.map(jnp.ones_like, nnx.state(new, nnx.Param)))
    step = np.asarray(kernel - new.hidden[0].dense.kernel[...])
    np.testing.assert_allclose(step[:, :3], 0.75, rtol=rtol)
    np.testing.assert_array_equal(step[:, 3:], 0.0)


def test_schedule_must_be_callable():
    with pytest.raises(TypeError, match="schedule must be callable"):
        scale_by_parameter_age(0.5)
