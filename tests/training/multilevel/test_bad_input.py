"""Bad input to multilevel training: the error is of the right kind and names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from opifex.core import ResidualTerm
from opifex.models import MLP
from opifex.optimization.second_order import LevenbergMarquardt
from opifex.training.multilevel import (
    CascadeTrainer,
    Monitor,
    MultilevelAdam,
    MultilevelConfig,
    MultilevelOptimizer,
    create_depth_hierarchy,
    create_fno_hierarchy,
    create_network_hierarchy,
)

Case = tuple[dict[str, Any], type[Exception], str]


class Scalar(nnx.Module):
    def __init__(self) -> None:
        self.value = nnx.Param(jnp.ones(()))


def loss(model: Scalar) -> Any:
    return model.value[...] ** 2


def loss_of_data(model: Scalar, x: Any) -> Any:
    return jnp.mean(x) * model.value[...] ** 2


def trainer() -> CascadeTrainer:
    config = MultilevelConfig(2, level_epochs=[1, 1])
    return CascadeTrainer([Scalar(), Scalar()], optax.sgd(0.1), config=config)


def rejects(function: Callable[..., Any], case: Case) -> None:
    arguments, error, message = case
    with pytest.raises(error, match=message):
        function(**arguments)


# -- MultilevelConfig ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        ({"num_levels": 0}, ValueError, "num_levels must be at least 1, got 0"),
        ({"num_levels": 2.0}, TypeError, "num_levels must be an integer, got 2.0"),
        ({"num_levels": True}, TypeError, "num_levels must be an integer"),
        ({"coarsening_factor": 1.0}, ValueError, "coarsening_factor must lie strictly between"),
        ({"coarsening_factor": "half"}, TypeError, "coarsening_factor must be a real number"),
        ({"level_epochs": [1, 2]}, ValueError, r"level_epochs must have num_levels=3 .*got 2"),
        ({"level_epochs": [1, 0, 2]}, ValueError, r"level_epochs\[1\] must be at least 1"),
        ({"level_epochs": [1, 2, 2.5]}, TypeError, r"level_epochs\[2\] must be an integer"),
        ({"level_epochs": 100}, TypeError, "level_epochs must be a sequence"),
        ({"level_epochs": 2.5}, TypeError, "level_epochs must be a sequence"),
        ({"level_epochs": {1: 2, 3: 4, 5: 6}}, TypeError, "level_epochs must be a sequence"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs must be at least 0, got -1"),
        ({"warmup_epochs": None}, TypeError, "warmup_epochs must be an integer"),
        ({"verify_transfers": 1}, TypeError, "verify_transfers must be a bool, got 1"),
        ({"compile_ahead": None}, TypeError, "compile_ahead must be a bool, got None"),
        ({"keep_programs": "no"}, TypeError, "keep_programs must be a bool, got 'no'"),
    ],
)
def test_config(case: Case) -> None:
    rejects(MultilevelConfig, case)


@pytest.mark.parametrize("level", [-1, 3])
def test_config_epochs_of_a_missing_level(level: int) -> None:
    with pytest.raises(ValueError, match=r"level must be in 0\.\.2"):
        MultilevelConfig().epochs(level)


# -- hierarchies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        ({"input_dim": 0}, ValueError, "input_dim must be at least 1"),
        ({"output_dim": 1.5}, TypeError, "output_dim must be an integer"),
        ({"base_hidden_dims": []}, ValueError, "base_hidden_dims must not be empty"),
        ({"base_hidden_dims": 64}, TypeError, "base_hidden_dims must be a sequence"),
        ({"base_hidden_dims": [8, -8]}, ValueError, r"base_hidden_dims\[1\] must be at least 1"),
        ({"num_levels": 0}, ValueError, "num_levels must be at least 1"),
        ({"coarsening_factor": 2}, ValueError, "coarsening_factor must lie strictly between"),
        ({"activation": "tanh"}, TypeError, "activation must be callable"),
        ({"rngs": 0}, TypeError, "rngs must be an nnx.Rngs, got 0"),
    ],
)
def test_network_hierarchy(case: Case) -> None:
    good = {"input_dim": 1, "output_dim": 1, "base_hidden_dims": [8, 8], "rngs": nnx.Rngs(0)}
    rejects(create_network_hierarchy, ({**good, **case[0]}, *case[1:]))


@pytest.mark.parametrize(
    "case",
    [
        ({"input_dim": 0}, ValueError, "input_dim must be at least 1"),
        ({"output_dim": "1"}, TypeError, "output_dim must be an integer"),
        ({"hidden_dim": 0}, ValueError, "hidden_dim must be at least 1"),
        ({"depths": [3, 2]}, ValueError, "depths must not decrease"),
        ({"depths": []}, ValueError, "depths must not be empty"),
        ({"depths": [0, 1]}, ValueError, r"depths\[0\] must be at least 1"),
        ({"activation": None}, TypeError, "activation must be callable"),
        ({"rngs": jax.random.key(0)}, TypeError, "rngs must be an nnx.Rngs"),
    ],
)
def test_depth_hierarchy(case: Case) -> None:
    good = {"input_dim": 1, "output_dim": 1, "hidden_dim": 4, "depths": [1], "rngs": nnx.Rngs(0)}
    rejects(create_depth_hierarchy, ({**good, **case[0]}, *case[1:]))


@pytest.mark.parametrize(
    "case",
    [
        ({"base_modes": 0}, ValueError, "base_modes must be at least 1"),
        ({"base_modes": 2.5}, TypeError, "base_modes must be an integer"),
        ({"base_modes": [4, 4]}, ValueError, "base_modes must have spatial_dims=1 entries"),
        ({"base_modes": [0]}, ValueError, r"base_modes\[0\] must be at least 1"),
        ({"width": -4}, ValueError, "width must be at least 1"),
        ({"num_levels": 0}, ValueError, "num_levels must be at least 1"),
        ({"reduction_factor": 1}, ValueError, "reduction_factor must be above 1"),
        ({"reduction_factor": "2"}, TypeError, "reduction_factor must be a real number"),
        ({"input_dim": 0}, ValueError, "input_dim must be at least 1"),
        ({"output_dim": 0}, ValueError, "output_dim must be at least 1"),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1"),
        ({"activation": 3}, TypeError, "activation must be callable"),
        ({"spatial_dims": 4}, ValueError, "spatial_dims must be 1, 2 or 3"),
        ({"spatial_dims": 0}, ValueError, "spatial_dims must be at least 1"),
        ({"width_factor": 1.5}, ValueError, r"width_factor must lie in \(0, 1\]"),
        ({"width_factor": 0}, ValueError, "width_factor must be positive"),
        ({"rngs": None}, TypeError, "rngs must be an nnx.Rngs"),
        ({"mode": 3}, TypeError, "mode"),
    ],
)
def test_fno_hierarchy(case: Case) -> None:
    good = {"base_modes": 4, "width": 4, "rngs": nnx.Rngs(0)}
    rejects(create_fno_hierarchy, ({**good, **case[0]}, *case[1:]))


# -- optimizers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be positive"),
        ({"learning_rate": -1e-3}, ValueError, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be finite"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be a real number"),
        ({"b1": 1.0}, ValueError, r"b1 must lie in \[0, 1\)"),
        ({"b2": -0.1}, ValueError, "b2 must be at least 0"),
        ({"eps": 0.0}, ValueError, "eps must be positive"),
        ({"on_transition": "keep"}, ValueError, "on_transition must be one of"),
    ],
)
def test_adam(case: Case) -> None:
    rejects(MultilevelAdam, case)


@pytest.mark.parametrize(
    "case",
    [
        ({"transformation": 1e-3}, TypeError, "transformation .* an optax.*solver.*got 0.001"),
        ({"transformation": []}, ValueError, "transformation must not be an empty sequence"),
        (
            {"transformation": [optax.sgd(1.0), 3]},
            TypeError,
            "transformation .* an optax.*got 3 of type int",
        ),
        (
            {"transformation": optax.sgd(1.0), "second_moment_start": "zero"},
            ValueError,
            "second_moment_start must be one of",
        ),
        (
            {"transformation": optax.sgd(1.0), "second_moment_start": None},
            ValueError,
            "second_moment_start must be one of",
        ),
        (
            {"transformation": optax.sgd(1.0), "on_transition": "keep"},
            ValueError,
            "on_transition must be one of",
        ),
    ],
)
def test_optimizer(case: Case) -> None:
    rejects(MultilevelOptimizer, case)


def test_optimizer_init_wants_a_model() -> None:
    with pytest.raises(TypeError, match=r"model must be an nnx\.Module, got dict"):
        MultilevelAdam().init({"a": jnp.ones(2)})


def test_optimizer_resize_state_before_init() -> None:
    with pytest.raises(RuntimeError, match="resize_state needs a state"):
        MultilevelAdam().resize_state(Scalar(), lambda coarse, fine: fine)


@pytest.mark.parametrize(
    "case",
    [
        ({"new_model": None}, TypeError, r"new_model must be an nnx\.Module, got NoneType"),
        ({"transition_fn": "prolongate"}, TypeError, "transition_fn must be callable"),
    ],
)
def test_optimizer_resize_state(case: Case) -> None:
    optimizer = MultilevelAdam()
    optimizer.init(Scalar())
    good = {"new_model": Scalar(), "transition_fn": lambda coarse, fine: fine}
    rejects(optimizer.resize_state, ({**good, **case[0]}, *case[1:]))


# -- CascadeTrainer --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        ({"hierarchy": Scalar()}, TypeError, r"hierarchy must be a sequence .*got Scalar"),
        ({"hierarchy": []}, ValueError, "hierarchy must not be empty"),
        ({"hierarchy": [Scalar(), 3]}, TypeError, r"hierarchy\[1\] must be an nnx\.Module"),
        ({"optimizer": 1e-3}, TypeError, r"optimizer\) must be an optax.*got 0.001"),
        ({"optimizer": [optax.sgd(0.1), 3]}, TypeError, r"optimizer\) must be an optax.*got 3"),
        (
            {"optimizer": [optax.sgd(0.1)]},
            ValueError,
            r"optimizer .* one entry per level \(2\).* 1",
        ),
        ({"prolongate_fn": "copy"}, TypeError, "prolongate_fn must be callable"),
        ({"config": {"num_levels": 2}}, TypeError, "config must be a MultilevelConfig, got dict"),
        ({"config": MultilevelConfig(3)}, ValueError, "num_levels is 3, but hierarchy has 2"),
        ({"input_dim": 2}, TypeError, "input_dim belongs to the form without hierarchy"),
        ({"output_dim": 2}, TypeError, "output_dim belongs to the form without hierarchy"),
        ({"base_hidden_dims": [2]}, TypeError, "base_hidden_dims belongs to the form without"),
        ({"rngs": nnx.Rngs(0)}, TypeError, "rngs belongs to the form without hierarchy"),
    ],
)
def test_trainer_of_a_hierarchy(case: Case) -> None:
    rejects(CascadeTrainer, ({"hierarchy": [Scalar(), Scalar()], **case[0]}, *case[1:]))


@pytest.mark.parametrize(
    "case",
    [
        ({"input_dim": None}, TypeError, "input_dim is missing"),
        ({"output_dim": None}, TypeError, "output_dim is missing"),
        ({"base_hidden_dims": None}, TypeError, "base_hidden_dims is missing"),
        ({"rngs": None}, TypeError, "rngs is missing"),
        ({"input_dim": 0}, ValueError, "input_dim must be at least 1"),
        ({"activation": jnp.tanh}, TypeError, "activation"),
    ],
)
def test_trainer_of_sizes(case: Case) -> None:
    good = {"input_dim": 1, "output_dim": 1, "base_hidden_dims": [4], "rngs": nnx.Rngs(0)}
    rejects(CascadeTrainer, ({**good, **case[0]}, *case[1:]))


def test_step_with_a_foreign_gradient() -> None:
    other = create_network_hierarchy(1, 1, [2], num_levels=1, rngs=nnx.Rngs(0))[0]
    with pytest.raises(ValueError, match=r"grads lacks the parameter .*value"):
        trainer().step(nnx.state(other, nnx.Param))


def test_step_with_a_gradient_of_another_level() -> None:
    coarse, fine = create_network_hierarchy(1, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"grads.*has shape \(8,\), the\s+parameter has \(4,\)"):
        CascadeTrainer([coarse, fine], config=MultilevelConfig(2)).step(nnx.state(fine, nnx.Param))


# -- fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        ({"loss_fn": 3.0}, TypeError, r"loss_fn .*ResidualTerm\) must be callable, got 3.0"),
        ({"loss_fn": None}, TypeError, "loss_fn .* must be callable, got None"),
        ({"loss_fn": []}, ValueError, "loss_fn must hold at least one ResidualTerm"),
        ({"loss_fn": ["interior"]}, TypeError, r"loss_fn\[0\] must be a ResidualTerm"),
        ({"loss_fn": lambda model: jnp.ones(3) * model.value[...]}, ValueError, "loss_fn must ret"),
        (
            {"loss_fn": lambda model: (model.value[...], 1)},
            TypeError,
            "loss_fn must return a scalar and nothing else, got a tuple",
        ),
        ({"loss_fn": lambda model: None}, TypeError, "loss_fn must return .*got a NoneType"),
        (
            {"loss_fn": lambda model: model.value[...] + 1j},
            TypeError,
            "loss_fn must return a real floating-point number, got complex64",
        ),
        ({"data": jnp.ones(3)}, TypeError, "data must be a tuple of arrays"),
        ({"data": ("text",)}, TypeError, "data must hold arrays of numbers"),
        ({"data": [(), (), ()]}, ValueError, r"data must have one tuple per level \(2\)"),
        ({"epochs": [1]}, ValueError, r"epochs must have one entry per level \(2\)"),
        ({"epochs": [1, -1]}, ValueError, r"epochs\[1\] must be at least 0"),
        ({"epochs": [0, 0]}, ValueError, "epochs must hold a positive number for a level from 0"),
        ({"epochs": 100}, TypeError, "epochs must be a sequence"),
        ({"batch_size": 0, "data": (jnp.ones(3),)}, ValueError, "batch_size must be at least 1"),
        ({"batch_size": 2.0, "data": (jnp.ones(3),)}, TypeError, "batch_size must be an integer"),
        ({"batch_size": 4, "data": (jnp.ones(3),)}, ValueError, "batch_size must be at most the 3"),
        ({"batch_size": 1}, ValueError, "data must share its first axis"),
        (
            {"batch_size": 1, "data": (jnp.ones(3), jnp.ones(4))},
            ValueError,
            "data must share its first axis",
        ),
        ({"key": 3}, TypeError, "key must be a random key"),
        ({"cycle": "zigzag"}, ValueError, r"cycle must be one of \['cascade'.*got 'zigzag'"),
        ({"cycle": 3}, TypeError, "cycle must be one of .* or a Cycle such as .*got 3"),
        ({"evaluate": 3}, TypeError, "evaluate must be callable"),
        ({"evaluate": lambda model: jnp.ones(2)}, ValueError, "evaluate must return"),
        ({"evaluate": lambda model: None}, TypeError, "evaluate must return .*got None"),
        ({"monitor": 2}, TypeError, "monitor must be a Monitor, got 2"),
    ],
    ids=lambda case: "-".join(case[0]),
)
def test_fit(case: Case) -> None:
    arguments = {"loss_fn": loss_of_data if "data" in case[0] else loss, **case[0]}
    subject = trainer()
    rejects(subject.fit, (arguments, *case[1:]))
    assert subject.current_level == 0


@pytest.mark.parametrize(
    "case",
    [
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"callbacks": [print, 3]}, TypeError, r"callbacks\[1\] must be callable"),
        ({"callbacks": print}, TypeError, "callbacks must be a sequence"),
        ({"progress": 1}, TypeError, "progress must be a bool, got 1"),
    ],
)
def test_monitor(case: Case) -> None:
    rejects(Monitor, case)


def test_levels_that_do_not_fit_are_refused_before_training() -> None:
    models = [MLP(1, 1, [width], rngs=nnx.Rngs(0)) for width in (2, 4)]
    subject = CascadeTrainer([*models, Scalar()])
    with pytest.raises(TypeError, match=r"hierarchy\[1\] cannot be .* hierarchy\[2\]: .*Scalar"):
        subject.fit(lambda model, x: jnp.mean(model(x)), (jnp.ones((3, 1)),))
    subject = CascadeTrainer([models[1], models[0]])
    with pytest.raises(ValueError, match=r"hierarchy\[0\] cannot be .*: hidden\.0\.dense\.\w+ is"):
        subject.fit(lambda model, x: jnp.mean(model(x)), (jnp.ones((3, 1)),))
    assert subject.history.num_steps == 0


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "prolongate_fn must return the new fine model, got None"),
        (Scalar(), ValueError, r"prolongate_fn must return a model like the fine one.*got nothing"),
    ],
)
def test_transfers_that_return_something_else(
    returned: Any, error: type[Exception], message: str
) -> None:
    models = create_network_hierarchy(1, 1, [2], num_levels=2, rngs=nnx.Rngs(0))
    subject = CascadeTrainer(models, optax.sgd(0.1), lambda coarse, fine: returned)
    with pytest.raises(error, match=message):
        subject.fit(lambda model, x: jnp.mean(model(x)), (jnp.ones((3, 1)),), epochs=[1, 1])
    assert subject.current_level == 0


def test_fit_leaves_the_trainer_usable_after_a_refusal() -> None:
    subject = trainer()
    with pytest.raises(ValueError, match="epochs"):
        subject.fit(loss, epochs=[1, 2, 3])
    subject.fit(loss)
    assert subject.is_at_finest


def test_least_squares_solver_without_terms() -> None:
    class Solver:
        def init(self, params: Any) -> tuple[()]:
            return ()

        def step(self, *arguments: Any) -> Any:
            raise AssertionError("must not be called")

    subject = CascadeTrainer([Scalar()], Solver())
    with pytest.raises(ValueError, match="Solver minimises residuals: loss_fn must be a sequence"):
        subject.fit(loss)


def test_least_squares_solver_by_hand() -> None:
    subject = CascadeTrainer([Scalar()], LevenbergMarquardt())
    with pytest.raises(TypeError, match="level 0 needs residuals and cannot step with a gradient"):
        subject.step(nnx.state(subject.model, nnx.Param))


@pytest.mark.parametrize("points", [(), (jnp.ones((2, 1)), jnp.ones((2, 1)))])
def test_terms_want_one_array_each(points: Any) -> None:
    term = ResidualTerm("interior", lambda u, x: u(x))
    model = create_network_hierarchy(1, 1, [2], num_levels=1, rngs=nnx.Rngs(0))
    subject = CascadeTrainer(model, config=MultilevelConfig(1, level_epochs=[1]))
    with pytest.raises(
        ValueError, match=r"data must hold one array of points per residual term \(\['interior'\]\)"
    ):
        subject.fit([term], points)
