"""The criterion that looks at the spectrum of Fourier layers."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.models import FNO, MLP, SpectralConv
from opifex.training.multilevel import LevelProgress
from opifex.training.multilevel.stopping import ExplainedSpectrum, frequency_strengths


def progress(model, epoch):
    return LevelProgress(
        level=0,
        num_levels=2,
        cycle=0,
        epoch=epoch,
        max_epochs=100,
        losses=np.ones(epoch),
        steps_per_epoch=1,
        metrics={},
        get_model=lambda: model,
        step_work=lambda level: 1.0,
    )


def operator(decay):
    """Spectral weights that fall like ``decay ** k``."""
    model = FNO(4, 3, num_layers=2, rngs=nnx.Rngs(0))
    for block in model.blocks:
        layer = next(m for _, m in nnx.iter_modules(block) if isinstance(m, SpectralConv))
        weight = decay ** jnp.arange(4.0)[:, None, None] * jnp.ones((4, 3, 3))
        layer.weight_real[...] = weight
        layer.weight_imag[...] = 0 * weight
    return model


def test_strengths_by_largest_frequency_in_two_dimensions():
    layer = SpectralConv(1, 1, (3, 2), spatial_dims=2, rngs=nnx.Rngs(0))
    strengths = frequency_strengths(layer, jnp.ones((5, 2, 1, 1)), jnp.zeros((5, 2, 1, 1)))
    # Axes -2..2 and 0..1: (0,0); five others with largest frequency 1; four with 2.
    np.testing.assert_allclose(strengths, [1, 5, 4])


def test_share_is_that_of_a_geometric_spectrum():
    squares = 0.25 ** (2 * np.arange(4.0))
    wanted = squares[:3].sum() / squares.sum()
    assert ExplainedSpectrum().explained_share(operator(0.25)) == pytest.approx(wanted)


def test_stops_when_the_outermost_modes_are_in_use():
    criterion = ExplainedSpectrum(explained=0.99, min_epochs=5)
    assert criterion.should_stop(progress(operator(0.9), 5))
    assert not criterion.should_stop(progress(operator(0.9), 4))
    assert not criterion.should_stop(progress(operator(0.1), 50))


def test_gradient_of_a_loss_decides_where_one_is_given():
    x = jnp.cos(2 * jnp.pi * jnp.arange(16) / 16)[None, :, None]
    criterion = ExplainedSpectrum(loss=lambda model: jnp.mean(model(x) ** 2), buffer=2)
    share = criterion.explained_share(operator(0.1))
    assert 0 < share <= 1
    assert share != pytest.approx(ExplainedSpectrum(buffer=2).explained_share(operator(0.1)))


def test_a_loss_is_traced_once_for_each_structure():
    x = jnp.cos(2 * jnp.pi * jnp.arange(16) / 16)[None, :, None]
    traces = 0

    def loss(model):
        nonlocal traces
        traces += 1
        return jnp.mean(model(x) ** 2)

    criterion = ExplainedSpectrum(loss=loss)
    shares = [criterion.explained_share(nnx.clone(operator(decay))) for decay in (0.1, 0.5, 0.9)]
    assert traces == 1
    assert len(set(shares)) == 3
    criterion.explained_share(FNO(3, 2, num_layers=1, rngs=nnx.Rngs(0)))
    assert traces == 2


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="explained"):
        ExplainedSpectrum(explained=1.5)
    with pytest.raises(ValueError, match="buffer"):
        ExplainedSpectrum(buffer=0)
    with pytest.raises(ValueError, match="min_epochs"):
        ExplainedSpectrum(min_epochs=0)
    with pytest.raises(TypeError, match="loss"):
        ExplainedSpectrum(loss=1.0)
    with pytest.raises(TypeError, match="SpectralConv"):
        ExplainedSpectrum().explained_share(MLP(1, 1, [2], rngs=nnx.Rngs(0)))
