"""Data are checked once, before anything compiles."""

from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.core import ResidualTerm
from opifex.training.multilevel import (
    CascadeTrainer,
    Resampled,
    create_network_hierarchy,
    resolution_hierarchy,
)
from opifex.training.multilevel.data import check_arity, prepared_data


class Line(nnx.Module):
    """One parameter."""

    def __init__(self):
        self.slope = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return self.slope[...] * x


def traced_loss():
    """A loss, and how often it was traced."""
    traces = []

    def loss(model, x, y):
        traces.append(1)
        return jnp.mean((model(x) - y) ** 2)

    return loss, traces


def fit(*data, loss=None, levels=2, **options):
    trainer = CascadeTrainer([Line() for _ in range(levels)], optax.sgd(0.1))
    return trainer.fit(loss or traced_loss()[0], *data, epochs=[2] * levels, **options)


X = np.linspace(0, 1, 20, dtype=np.float32)[:, None]


@pytest.mark.parametrize("array", [np.array, jnp.array])
@pytest.mark.parametrize(("value", "name"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_number_that_is_not_finite_is_named_with_its_place(array, value, name):
    bad = X.copy()
    bad[[7, 9], 0] = value
    loss, traces = traced_loss()
    message = rf"data\[1\] must be finite, got {name} at row 7 \(index \(7, 0\)\); 2 of its 20"
    with pytest.raises(ValueError, match=message):
        fit((X, array(bad)), loss=loss)
    assert traces == []


def test_the_level_of_bad_data_is_named():
    bad = np.full((3, 1), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"data\[1\]\[0\] must be finite"):
        fit([(X, X), (bad, bad)])
    with pytest.raises(ValueError, match=r"data\(1\)\[0\] must be finite"):
        fit(lambda level: (bad, bad) if level else (X, X))
    with pytest.raises(ValueError, match=r"data\[0\]\['x'\] must be finite"):
        prepared_data(({"x": bad},), 2, None)
    with pytest.raises(ValueError, match=r"data\[0\] must be finite"):
        fit(Resampled((bad, bad), lambda model, data, key: data))


def test_double_precision_that_gets_lost_is_told_once():
    x = np.linspace(0, 1, 7)[:, None]
    with pytest.warns(UserWarning, match=r"data\[0\], data\[1\] in double precision: rounded") as w:
        fit((x, 2 * x))
    assert len(w) == 1


def test_double_precision_that_single_precision_holds_is_no_matter():
    fit((np.ones((4, 1)), np.arange(4.0)[:, None]))
    with jax.enable_x64(True):
        kept = prepared_data((np.linspace(0, 1, 7),), 1, None)
    assert kept.arrays[0][0].dtype == jnp.float64


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"data\[0\] must fit into int32.*up to 4294967296"):
        prepared_data((np.array([2**32]),), 1, None)
    with pytest.raises(ValueError, match=r"data\[0\] must fit into float32"):
        prepared_data((np.array([1e300]),), 1, None)


def test_random_keys_are_data_too():
    prepared_data((jax.random.key(0), jnp.arange(3), 2.5), 2, None)


@pytest.mark.parametrize("levels", [2, 3])
def test_a_list_where_a_tuple_was_meant(levels):
    with pytest.raises(TypeError, match=r"tuple of arrays such as \(x, y\), got a list.*\(20, 1\)"):
        fit([X, X], levels=levels)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, x: 0.0, r"the 2 arrays of data, it takes \(model, x\)"),
        (lambda model, x, y, z: 0.0, r"it takes \(model, x, y, z\): missing .*'z'"),
        (lambda model, x, y, z, key: 0.0, r"it takes \(model, x, y, z\): missing .*'z'"),
        (lambda: 0.0, r"it takes \(\)"),
    ],
)
def test_a_loss_of_another_arity(loss, message):
    with pytest.raises(ValueError, match=r"loss_fn must take the model.*" + message):
        fit((X, X), loss=loss)


def test_losses_of_the_right_arity():
    data = ((X, X),)
    check_arity(lambda model, x, y, scale=1.0: 0.0, data)
    check_arity(lambda model, *arrays: 0.0, data)
    check_arity(lambda model, x, y, key: 0.0, data)
    check_arity(lambda model, x, y, *, key: 0.0, data)
    check_arity(max, data)


def test_terms_without_points():
    terms = [ResidualTerm(name, lambda u, x: u(x)) for name in ("equation", "boundary")]
    with pytest.raises(
        ValueError, match=r"per residual term \(\['equation', 'boundary'\]\), got 1"
    ):
        fit((X,), loss=terms)


def test_batches_that_leave_out_many_samples_are_told():
    with pytest.warns(UserWarning, match=r"batch_size=8 leaves out 4 of the 20 samples of data"):
        fit((X, X), batch_size=8)
    fit((X, X), batch_size=9)  # a tenth


def test_a_missing_axis_of_channels_is_named():
    fields = np.ones((5, 16), np.float32)
    with pytest.raises(
        ValueError, match=r"inputs must have shape.*got \(5, 16\).*inputs\[..., None"
    ):
        resolution_hierarchy(fields, fields, [2, 4])


def test_a_metric_takes_the_model_alone():
    with pytest.raises(
        TypeError, match=r"evaluate must take the model alone, it takes \(model, x\)"
    ):
        fit((X, X), evaluate=lambda model, x: 0.0)


@pytest.mark.parametrize("beforehand", [True, False])
def test_a_loss_that_keeps_what_it_made_while_traced_is_told(beforehand):
    class Weighted:
        @cached_property
        def weights(self):
            return jnp.linspace(0.0, 1.0, 20)[:, None]

        def __call__(self, model, x):
            return jnp.mean(self.weights * model(x) ** 2)

    loss = Weighted()
    models = create_network_hierarchy(1, 1, [4], num_levels=2, rngs=nnx.Rngs(0))
    trainer = CascadeTrainer(models, optax.adam(1e-2))
    if beforehand:
        assert loss.weights.shape == (20, 1)
        assert trainer.fit(loss, (X,), epochs=[2, 2]).num_steps == 4
        return
    # Other releases of JAX notice it themselves.
    with pytest.raises((ValueError, jax.errors.UnexpectedTracerError), match=r"trace[dr]"):
        trainer.fit(loss, (X,), epochs=[2, 2])
