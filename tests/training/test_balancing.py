"""Weights of residual terms that are computed, alone and inside `fit`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.core.physics import GradNormBalancer, gradient_norms
from opifex.core.residuals import ResidualTerm, mean_square_loss, residual_vector
from opifex.models import MLP
from opifex.optimization.second_order import (
    EnergyNaturalGradient,
    GaussNewton,
    LevenbergMarquardt,
    MatrixFreeGaussNewton,
)
from opifex.optimization.second_order.flat_residuals import FlatResiduals
from opifex.training.balancing import Balance, JacobianBalancing
from opifex.training.multilevel import (
    Balanced,
    CascadeTrainer,
    MultilevelConfig,
    NonFiniteLossError,
    Resampled,
    VCycle,
)
from opifex.training.multilevel.monitor import Monitor
from opifex.training.objective import Objective, split_model
from tolerances import distance, rounding

# u' = cos, times a hundred, and u(0) = 0, u'(0) = 1 as one term of two components.
TERMS = (
    ResidualTerm("equation", lambda u, x: 100.0 * (slope(u, x) - jnp.cos(x[0]))),
    ResidualTerm("start", lambda u, x: jnp.stack([u(x)[0], slope(u, x) - 1.0]), 10.0),
)
GIVEN = np.array([1.0, 10.0])
X = jnp.linspace(0.0, 1.0, 15)[:, None]
POINTS = (X, X[:1])


def slope(u, x):
    return jax.jvp(u, (x,), (jnp.ones_like(x),))[1][0]


STILL, ADAM = optax.sgd(0.0), optax.adam(1e-2)
# `fit` warns that nothing moves, which is meant here.
STANDING = pytest.mark.filterwarnings("ignore:the optimizer leaves all parameters:UserWarning")
SOLVERS = {
    "LevenbergMarquardt": LevenbergMarquardt(step_lengths=(1.0,), geodesic_acceleration=False),
    "GaussNewton": GaussNewton(),
    "EnergyNaturalGradient": EnergyNaturalGradient(),
    "MatrixFreeGaussNewton": MatrixFreeGaussNewton(rank=1),
    "Adam": ADAM,
}
ALL_POINTS = JacobianBalancing(max_points=None)
GRADNORM = GradNormBalancer(2, learning_rate=0.2)


@dataclass(frozen=True)
class Multiplied:
    """The weights of the update before times a factor, and NaN once the first is too small."""

    factor: float
    least: float = 0.0

    def start(self, terms):
        return Balance(jnp.asarray([term.weight for term in terms]))

    def update(self, objective, params, balance, key):
        new = balance.weights * self.factor
        return Balance(jnp.where(new[0] < self.least, jnp.nan, new))


def networks(widths=(4,), seed=0):
    return [MLP(1, 1, [width], rngs=nnx.Rngs(seed)) for width in widths]


def trainer(optimizer=ADAM, widths=(4,)):
    return CascadeTrainer(
        networks(widths),
        optimizer,
        config=MultilevelConfig(num_levels=len(widths), compile_ahead=False),
    )


def params_of(model):
    return nnx.state(model, nnx.Param)


def assert_equal(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


@jax.jit
def jacobian(objective, params):
    def rows(params):
        return residual_vector(objective.terms, objective.bind(params), *objective.data)

    leaves = jax.tree.leaves(jax.jacrev(rows)(params))
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def shares(model, points, weights):
    """Squared Frobenius norms of the terms' rows of the Jacobian of `residual_vector`."""
    graphdef, params, rest = split_model(model)
    objective = Objective(TERMS, graphdef, points, rest, weights=jnp.asarray(weights, jnp.float32))
    squares = np.sum(np.asarray(jacobian(objective, params)) ** 2, axis=1)
    sizes = [len(x) * components for x, components in zip(points, (1, 2), strict=True)]
    return np.array([part.sum() for part in np.split(squares, np.cumsum(sizes)[:-1])])


def expected_weights(model, points, given=GIVEN):
    """The weights by their definition, from the whole Jacobian."""
    wanted = given / shares(model, points, np.ones(2))
    return wanted * given.sum() / wanted.sum()


@partial(jax.jit, static_argnums=0)
def update(method, objective, params, key):
    return method.update(objective, params, method.start(objective.terms), key).weights


def updated(method, terms, model, points, key=0):
    graphdef, params, rest = split_model(model)
    objective = Objective(tuple(terms), graphdef, points, rest)
    return update(method, objective, params, jax.random.key(key))


# -- The weights -----------------------------------------------------------------------------

# Sums of at most 15 rows of 13 entries, each of a few operations.
CLOSE = rounding(np.float32, operations=200)


def test_terms_get_equal_shares_of_the_jacobian_times_the_users_weights():
    (model,) = networks()
    weights = updated(ALL_POINTS, TERMS, model, POINTS)
    found = shares(model, POINTS, weights) / GIVEN
    assert distance(found, found[0]) <= CLOSE
    assert float(jnp.sum(weights)) == pytest.approx(GIVEN.sum(), rel=CLOSE)
    # Without weights of the user all shares are equal, and his are multipliers up to the sum.
    alike = updated(ALL_POINTS, [replace(t, weight=1.0) for t in TERMS], model, POINTS)
    ratio = np.asarray(weights) / np.asarray(alike) / GIVEN
    assert distance(ratio, ratio[0]) <= CLOSE


def test_norms_by_blocks_are_those_of_the_whole_jacobian():
    (model,) = networks()
    graphdef, params, rest = split_model(model)

    @jax.jit
    def norms(params):
        # Three points of the equation fit into a block; the last block overlaps the one before.
        problem = FlatResiduals(
            TERMS, lambda p: nnx.merge(graphdef, p, rest), params, POINTS, block_bytes=400
        )
        return problem.squared_norms(problem.start)

    assert distance(norms(params), shares(model, POINTS, GIVEN)) <= CLOSE


def test_a_random_subset_estimates_the_mean_over_all_points():
    terms = (
        ResidualTerm("one", lambda u, x: u(x)),
        ResidualTerm("other", lambda u, x: u(x)),
    )
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    # A row is (x, 1) and its squared norm 1 + x^2: from 1 to 2 for one term, 5 for the other.
    points = (jnp.linspace(0.0, 1.0, 50)[:, None], jnp.full((3, 1), 2.0))
    exact = updated(ALL_POINTS, terms, model, points)
    found = np.array([updated(JacobianBalancing(5), terms, model, points, k) for k in range(20)])
    ratios = found[:, 0] / found[:, 1]
    assert np.all((ratios >= 5 / 2) & (ratios <= 5))
    assert len(set(ratios.tolist())) > 10
    # Twenty means of five values of deviation 0.3 are off by 0.03 together: five deviations.
    assert np.mean(5 / ratios) == pytest.approx(float(5 * exact[1] / exact[0]), abs=0.15)
    assert_equal(found[0], updated(JacobianBalancing(5), terms, model, points, 0))


@pytest.mark.parametrize("factor", [0.0, jnp.nan], ids=["zero", "not finite"])
def test_a_jacobian_without_a_size_leaves_the_weights(factor):
    terms = (TERMS[0], ResidualTerm("none", lambda u, x: factor * u(x), 3.0))
    np.testing.assert_array_equal(updated(ALL_POINTS, terms, networks()[0], (X, X)), [1.0, 3.0])


@cache
def mean_squares():
    """Of the terms, for the network that all runs of one level start from."""
    graphdef, params, rest = split_model(networks()[0])

    @jax.jit
    def losses(params):
        model = nnx.merge(graphdef, params, rest)
        pairs = zip(TERMS, POINTS, strict=True)
        return jnp.stack([mean_square_loss([replace(t, weight=1.0)], model, x) for t, x in pairs])

    return np.asarray(losses(params))


# -- In fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_minimises_with_the_weights_of_its_time(name):
    run = trainer(SOLVERS[name])
    history = run.fit(Balanced(TERMS, ALL_POINTS, every=2), POINTS, epochs=[5])
    first = expected_weights(networks()[0], POINTS)
    assert distance(history.weights[0], first) <= CLOSE
    assert len(np.unique(history.weights[:, 0])) == 3
    assert_equal(history.weights[0], history.weights[1])
    assert history.losses[0] == pytest.approx(float(first @ mean_squares()), rel=CLOSE)
    assert history.losses[1] < history.losses[0]


def test_other_weights_compile_nothing():
    traces = []

    def residual(u, x):
        traces.append(1)
        return u(x)[0] - x[0]

    terms = (ResidualTerm("one", residual), ResidualTerm("two", lambda u, x: u(x)[0], 2.0))
    run, balanced = trainer(), Balanced(terms, JacobianBalancing(3), every=1)
    run.fit(balanced, (X, X), epochs=[1])
    found = len(traces)
    history = run.fit(balanced, (X, X), epochs=[8])
    assert len(np.unique(history.weights[:, 0])) > 5
    trainer().fit(Balanced(terms, JacobianBalancing(3)), (X, X), epochs=[2])
    assert len(traces) == found


def test_nothing_is_recorded_where_nothing_is_balanced():
    run = trainer()
    assert run.fit(TERMS, POINTS, epochs=[2]).weights.shape == (2, 0)
    assert run.history.balance_seconds == 0
    before = run.history.work
    history = run.fit(Balanced(TERMS, ALL_POINTS), POINTS, epochs=[2])
    np.testing.assert_array_equal(np.isnan(history.weights).all(axis=1), [True, True, False, False])
    run.fit(TERMS, POINTS, epochs=[1])
    assert np.all(np.isnan(history.weights[-1]))
    assert history.balance_seconds > 0
    # Weights have their price, which their level's next step bears.
    assert history.work - before > 3


@STANDING
def test_weights_follow_new_points_and_new_levels():
    """With a step length of zero nothing changes but the points and, between levels, the model."""
    run = trainer(STILL, (3, 4))
    data = Resampled(POINTS, lambda model, data, key: (data[0] + 0.25, data[1]), every=2)
    history = run.fit(Balanced(TERMS, ALL_POINTS, every=1), data, epochs=[4, 4])
    models = [networks((3,))[0], run.model]
    assert_equal(params_of(run.hierarchy[0]), params_of(models[0]))
    moved = (X + 0.25, POINTS[1])
    for level, model in enumerate(models):
        found = history.weights[history.table()["level"] == level]
        for row, points in zip(found, [POINTS, POINTS, moved, moved], strict=True):
            assert distance(row, expected_weights(model, points)) <= CLOSE
    assert history.weights[4, 0] != pytest.approx(history.weights[0, 0], rel=1e-3)


@STANDING
def test_weights_are_computed_once_per_level_unless_asked_for():
    run = trainer(STILL, (3, 4))
    data = Resampled(POINTS, lambda model, data, key: (data[0] + 0.25, data[1]), every=2)
    history = run.fit(Balanced(TERMS, ALL_POINTS), data, epochs=[4, 4])
    for level, model in enumerate([networks((3,))[0], run.model]):
        for row in history.weights[history.table()["level"] == level]:
            assert distance(row, expected_weights(model, POINTS)) <= CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("coarse", "name"), [("rediscretised", "Adam"), ("galerkin", "GaussNewton")]
)
@pytest.mark.parametrize("pre", [0, 2])
def test_a_visit_for_a_correction_minimises_with_the_finer_levels_weights(coarse, name, pre):
    run = trainer(SOLVERS[name], (3, 4))
    history = run.fit(
        Balanced(TERMS, ALL_POINTS, every=2),
        POINTS,
        cycle=VCycle(cycles=2, coarse=coarse, pre=pre, post=1, coarsest=3),
    )
    table = history.table()
    first = expected_weights(networks((4,))[0], POINTS)
    assert distance(history.weights[0], first) <= CLOSE
    previous = None
    for kind, cycle, row in zip(table["objective"], table["cycle"], history.weights, strict=True):
        if kind == coarse and previous is not None and (pre or cycle > 1):
            assert_equal(row, previous)
        previous = row
    # The count of two epochs goes on from smoothing to smoothing of the finer level.
    own = history.weights[table["objective"] == "own", 0]
    assert len(np.unique(own)) == (3 if pre else 1)
    # With the same weights no step of the solver and no correction increases the loss.
    if name == "GaussNewton":
        same = np.all(history.weights[1:] == history.weights[:-1], axis=1)
        assert np.all(np.diff(history.losses)[same] <= CLOSE * history.losses[:-1][same])


@STANDING
def test_mini_batches_see_weights_of_all_points():
    data = (X, X)
    history = trainer(STILL).fit(
        Balanced(TERMS, ALL_POINTS, every=2), data, epochs=[3], batch_size=5
    )
    assert distance(history.weights[-1], expected_weights(networks()[0], data)) <= CLOSE
    assert history.weights.shape == (9, 2)


def test_equal_keys_give_equal_runs():
    def losses(key):
        balanced = Balanced(TERMS, JacobianBalancing(3), every=2)
        history = trainer().fit(balanced, POINTS, epochs=[6], key=jax.random.key(key))
        return history.losses, history.weights

    assert_equal(losses(0), losses(0))
    assert not np.array_equal(losses(0)[0], losses(1)[0])


def test_balancing_repairs_a_badly_scaled_problem():
    """Poisson's equation in units ten thousand times too small, and boundary values of weight one."""
    terms = (
        ResidualTerm("equation", lambda u, x: 1e4 * (curvature(u, x) + source(x[0]))),
        ResidualTerm("boundary", lambda u, x: u(x)[0]),
    )
    points = (X, X[:: len(X) - 1])

    def curvature(u, x):
        return slope(lambda x: slope(u, x)[None], x)

    def source(x):
        return jnp.pi**2 * jnp.sin(jnp.pi * x)

    @jax.jit
    def error(model):
        exact = jnp.sin(jnp.pi * X)
        return jnp.linalg.norm(model(X) - exact) / jnp.linalg.norm(exact)

    def final_error(loss, seed):
        run = CascadeTrainer(networks((8,), seed), ADAM)
        run.fit(loss, points, epochs=[1000])
        return float(error(run.model))

    # Weights that stay as they are compile nothing further; they are no weights, see below.
    plain, balanced = (
        np.median([final_error(Balanced(terms, method), seed) for seed in range(3)])
        for method in (Multiplied(1.0), JacobianBalancing())
    )
    assert balanced < 0.1 * plain


# -- GradNorm --------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [None, 3])
def test_gradnorm_is_that_of_a_loop_by_hand(every):
    balancer = GradNormBalancer(2, learning_rate=0.2)
    run = trainer()
    history = run.fit(Balanced(TERMS, balancer, every=every), POINTS, epochs=[7])
    assert_equal(balancer.weights[...], np.ones(2))  # the user's object stays as it was
    assert balancer.initial_losses is None

    graphdef, params, rest = split_model(networks()[0])

    def losses(params):
        model = nnx.merge(graphdef, params, rest)
        pairs = zip(TERMS, POINTS, strict=True)
        return jnp.stack([mean_square_loss([term], model, x) for term, x in pairs])

    @jax.jit
    def seen(params):
        return losses(params), gradient_norms(losses, params), jax.jacrev(losses)(params)

    adam = jax.jit(ADAM.update)
    state, weights = ADAM.init(params), []
    for epoch in range(7):
        now, norms, slopes = seen(params)
        if epoch == 0:
            balancer.set_initial_losses(now)
        if epoch % (every or 1) == 0:
            balancer.update_weights(now, norms)
        weights.append(np.asarray(balancer.weights[...]))
        value = float(np.sum(weights[-1] * np.asarray(now)))
        assert value == pytest.approx(history.losses[epoch], rel=1e2 * CLOSE)
        grads = jax.tree.map(lambda leaf, w=weights[-1]: np.tensordot(w, leaf, 1), slopes)
        updates, state = adam(grads, state, params)
        params = jax.tree.map(np.add, params, updates)
    assert distance(history.weights / GIVEN, np.array(weights)) <= CLOSE
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(params_of(run.model)), strict=True):
        # Adam divides by the size of the gradient, so that errors of the sum of terms come through.
        np.testing.assert_allclose(a, b, atol=1e2 * CLOSE)


def test_a_second_fit_goes_on_from_the_weights_of_the_first():
    def run(*epochs):
        one = trainer()
        for count in epochs:
            one.fit(Balanced(TERMS, GRADNORM), POINTS, epochs=[count])
        return one

    once, twice = run(6), run(2, 4)
    assert_equal(once.history.weights, twice.history.weights)
    assert_equal(once.history.losses, twice.history.losses)
    assert_equal(params_of(once.model), params_of(twice.model))
    # Another method starts afresh.
    now = expected_weights(twice.model, POINTS)
    twice.fit(Balanced(TERMS, ALL_POINTS), POINTS, epochs=[1])
    assert distance(twice.history.weights[-1], now) <= CLOSE


# -- Ends ------------------------------------------------------------------------------------


def test_an_exception_leaves_the_last_good_state():
    def stop(progress):
        if progress.epoch == 4:
            raise RuntimeError("enough")

    stopped, wanted = trainer(), trainer()
    balanced = Balanced(TERMS, GRADNORM, every=2)
    with pytest.raises(RuntimeError, match="enough"):
        stopped.fit(balanced, POINTS, epochs=[8], monitor=Monitor(2, [stop]))
    wanted.fit(balanced, POINTS, epochs=[4])
    assert_equal(params_of(stopped.model), params_of(wanted.model))
    for run in (stopped, wanted):
        run.fit(balanced, POINTS, epochs=[4])
    assert_equal(stopped.history.weights, wanted.history.weights)
    assert_equal(stopped.history.losses, wanted.history.losses)


def test_the_last_good_state_is_found_with_the_weights_of_its_time(monkeypatch):
    # Calls of the loop end where weights change, however slow the machine is: steps are repeated.
    monkeypatch.setattr("opifex.training.multilevel.smoothing._CALL_SECONDS", 1e9)
    stopped, wanted = trainer(), trainer()
    with pytest.raises(NonFiniteLossError):
        stopped.fit(
            Balanced(TERMS, Multiplied(0.5, least=0.2), every=3),
            POINTS,
            epochs=[9],
            monitor=Monitor(every=9),
        )
    wanted.fit(Balanced(TERMS, Multiplied(0.5), every=3), POINTS, epochs=[5])
    assert wanted.history.weights[:, 0].tolist() == [0.5, 0.5, 0.5, 0.25, 0.25]
    assert_equal(params_of(stopped.model), params_of(wanted.model))
    assert_equal(stopped.history.weights, wanted.history.weights)
    for run in (stopped, wanted):
        run.fit(TERMS, POINTS, epochs=[2])
    assert_equal(stopped.history.losses, wanted.history.losses)


# -- Bad input, and methods of one's own -----------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"terms": max}, TypeError, "terms must be a sequence of ResidualTerm.*got <built-in"),
        ({"terms": ()}, ValueError, "at least one ResidualTerm"),
        ({"terms": (TERMS[0], 3)}, TypeError, r"\[1\] must be a ResidualTerm, got 3"),
        ({"balancing": 3}, TypeError, "balancing must be a JacobianBalancing.*got 3"),
        ({"balancing": JacobianBalancing}, TypeError, "balancing must be a JacobianBalancing"),
        ({"balancing": GradNormBalancer(3)}, ValueError, "num_losses=2.*got num_losses=3"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 2.0}, TypeError, "every must be an integer, got 2.0"),
    ],
)
def test_bad_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        Balanced(**{"terms": TERMS, "balancing": JacobianBalancing(), **settings})


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.0, TypeError)])
def test_a_bad_number_of_points_is_named(value, error):
    with pytest.raises(error, match="max_points must be"):
        JacobianBalancing(value)


def test_what_cannot_be_balanced_is_found_before_anything_is_compiled():
    with pytest.raises(ValueError, match="data must hold one array of points per residual term"):
        trainer().fit(Balanced(TERMS, JacobianBalancing()), POINTS[:1], epochs=[1])
    term = ResidualTerm("complex", lambda u, x: jnp.abs(u(x)))
    model = nnx.Linear(1, 1, param_dtype=jnp.complex64, rngs=nnx.Rngs(0))
    run = CascadeTrainer([model], optax.sgd(0.1))
    with pytest.raises(TypeError, match="params must consist of real"):
        run.fit(Balanced((term, term), JacobianBalancing()), (X, X), epochs=[1])
    assert run.history.compile_seconds == 0


@pytest.mark.parametrize("weight", [jnp.ones(2), jnp.ones((1,))])
def test_a_weight_is_one_number(weight):
    with pytest.raises(ValueError, match="weight must be one number, got shape"):
        ResidualTerm("many", lambda u, x: u(x), weight)


def test_a_balancing_of_ones_own():
    history = trainer().fit(Balanced(TERMS, Multiplied(0.5), every=2), POINTS, epochs=[5])
    np.testing.assert_array_equal(history.weights[:, 0], [0.5, 0.5, 0.25, 0.25, 0.125])


def test_weights_as_arguments_are_the_same_as_weights_in_the_terms():
    plain, same = trainer(), trainer()
    plain.fit(TERMS, POINTS, epochs=[5])
    same.fit(Balanced(TERMS, Multiplied(1.0)), POINTS, epochs=[5])
    assert distance(same.history.losses, plain.history.losses) <= CLOSE
    np.testing.assert_array_equal(same.history.weights, np.tile(GIVEN, (5, 1)))
