"""What a residual term says of an error in it."""

import jax.numpy as jnp
import pytest
from flax import nnx

from opifex.core import ResidualTerm
from opifex.core.residuals import mean_square_loss, residual_vector
from opifex.models import MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.problems import BoundaryPoints
from opifex.training.multilevel import CascadeTrainer

TERM = ResidualTerm("edge", lambda u, x: u(x)[0])


def network():
    return MLP(2, 1, [3], rngs=nnx.Rngs(0))


def test_an_error_names_the_term_and_the_shape_of_the_row():
    with pytest.raises(ValueError, match="input_dim=2") as raised:
        TERM.evaluate(network(), jnp.ones((4, 3)))
    assert raised.value.__notes__[:1] == [
        "In the residual term 'edge': residual(u, x) got one row of its points as x, of shape (3,)."
    ]


def test_an_error_inside_a_fit_names_its_term_once():
    trainer = CascadeTrainer([network()], LevenbergMarquardt())
    batched = ResidualTerm("inside", lambda u, x: u(x)[:, 0])
    with pytest.raises(IndexError) as raised:
        trainer.fit([TERM, batched], (jnp.ones((4, 2)), jnp.ones((4, 2))), epochs=[1])
    notes = [note for note in raised.value.__notes__ if "residual term" in note]
    assert len(notes) == 1
    assert "'inside'" in notes[0]


@pytest.mark.parametrize("of", [residual_vector, mean_square_loss])
def test_points_with_their_normals_are_no_array_of_points(of):
    both = BoundaryPoints(jnp.ones((4, 2)), jnp.ones((4, 2)))
    with pytest.raises(TypeError, match=r"'edge' must be one array.*BoundaryPoints.*hstack"):
        of([TERM], network(), both)
    trainer = CascadeTrainer([network()], LevenbergMarquardt())
    with pytest.raises(TypeError, match="BoundaryPoints"):
        trainer.fit([TERM], (both,), epochs=[1])
