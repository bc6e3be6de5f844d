"""The interface that the specification promises, in its own names and spellings.

The first part runs every Python block of the specification page, where the page can be found: at
``OPIFEX_SPECIFICATION``, or beside the repository in ``shared/spec``. The second part needs no page:
it uses each import path, class, argument and attribute in the way the page does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import opifex.training.multilevel as multilevel
from opifex.core.physics.gradnorm import GradNormBalancer
from opifex.optimization.second_order import HybridOptimizer, HybridOptimizerConfig
from opifex.problems import generate_boundary_points
from opifex.training.adaptive_sampling import RADSampler
from opifex.training.multilevel import (
    CascadeTrainer,
    MultilevelAdam,
    MultilevelConfig,
    create_fno_hierarchy,
    create_network_hierarchy,
    prolongate,
    prolongate_fno_modes,
    restrict,
    restrict_fno_modes,
)

PAGE_NAME = "multilevel-training.md"


# -- the page itself -------------------------------------------------------------------------


def _find_page() -> Path | None:
    named = os.environ.get("OPIFEX_SPECIFICATION")
    beside = Path(__file__).resolve().parents[2] / "shared" / "spec" / PAGE_NAME
    for candidate in (Path(named) if named else None, beside):
        if candidate is not None and candidate.is_file():
            return candidate
    return None


def _blocks() -> list[Any]:
    page = _find_page()
    if page is None:
        return []
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"```python\n(.*?)```", text, flags=re.DOTALL):
        line = text[: match.start()].count("\n") + 2
        headings = re.findall(r"^#+ (.*)$", text[: match.start()], flags=re.MULTILINE)
        name = re.sub(r"\W+", "-", headings[-1] if headings else "start").strip("-").lower()
        found.append(pytest.param(match[1], line, id=f"line{line}-{name}"))
    return found


def _shorten(block: str) -> str:
    """The block with fewer epochs and points; nothing else is touched."""
    block = re.sub(r"range\(100\)", "range(2)", block)
    block = block.replace("level_epochs=[100, 200, 500]", "level_epochs=[1, 1, 1]")
    return block.replace("(1000, 2)", "(20, 2)")


def _preamble() -> dict[str, Any]:
    """What the page's blocks use without defining it."""
    points = jax.random.uniform(jax.random.key(1), (40, 2))

    def loss_fn(model: Any, batch: Any = points) -> Any:
        return jnp.mean((model(batch) - 1.0) ** 2)

    def compute_residual(model: Any, x: Any) -> Any:
        return model(x)[:, 0] - 1.0

    def compute_losses(model: Any) -> Any:
        return jnp.stack([jnp.mean((model(points) - target) ** 2) for target in (0.0, 1.0, 2.0)])

    hierarchy = create_network_hierarchy(2, 1, [8, 8], num_levels=3, rngs=nnx.Rngs(0))
    optimizer = MultilevelAdam(1e-3)
    trainer = CascadeTrainer(
        hierarchy, optimizer, prolongate, config=MultilevelConfig(level_epochs=[2, 2, 2])
    )
    return {
        "jax": jax,
        "jnp": jnp,
        "nnx": nnx,
        "optax": optax,
        "CascadeTrainer": CascadeTrainer,
        "MultilevelAdam": MultilevelAdam,
        "MultilevelConfig": MultilevelConfig,
        "generate_boundary_points": generate_boundary_points,
        "optimizer": optimizer,
        "trainer": trainer,
        "model": trainer.model,
        "grads": nnx.grad(loss_fn)(trainer.model),
        "coarse_model": hierarchy[0],
        "fine_model": hierarchy[1],
        "loss_fn": loss_fn,
        "compute_residual": compute_residual,
        "compute_losses": compute_losses,
        "all_points": points,
        "batch": points,
        "batch_size": 8,
        "key": jax.random.key(2),
    }


def _run_block(code: str, line: int) -> None:
    namespace = _preamble()
    exec(compile("\n" * (line - 1) + code, PAGE_NAME, "exec"), namespace)
    if "trainer.advance_level()" in code and "# trainer.advance_level()" not in code:
        assert namespace["trainer"].is_at_finest
    if "nnx.update(model, updates)" in code:
        assert namespace["final_model"](jnp.zeros((1, 2))).shape == (1, 1)


needs_page = pytest.mark.skipif(not _blocks(), reason="the specification page is not at hand")


@needs_page
@pytest.mark.parametrize(("block", "line"), _blocks())
def test_block_of_the_page(block: str, line: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block runs. Gradients are compiled as a whole, which is all that makes this quick."""
    for name in ("grad", "value_and_grad"):
        operation_by_operation = getattr(nnx, name)
        monkeypatch.setattr(nnx, name, lambda f, of=operation_by_operation: nnx.jit(of(f)))
    _run_block(_shorten(block), line)


@needs_page
@pytest.mark.slow
@pytest.mark.parametrize(("block", "line"), _blocks())
def test_block_of_the_page_as_printed(block: str, line: int) -> None:
    """The same with the page's own numbers and nothing compiled behind its back."""
    _run_block(block, line)


def test_the_page_is_found_where_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n\n```python\nx = 1\n```\n\n## Two\n\n```python\ny = range(100)\n```\n")
    monkeypatch.setenv("OPIFEX_SPECIFICATION", str(page))
    blocks = _blocks()
    assert [block.id for block in blocks] == ["line4-one", "line10-two"]
    assert [_shorten(block.values[0]) for block in blocks] == ["x = 1\n", "y = range(2)\n"]


# -- the same interface without the page -----------------------------------------------------


@pytest.fixture
def points() -> jax.Array:
    return jax.random.uniform(jax.random.key(3), (30, 2))


def _loss(model: Any, batch: Any) -> Any:
    return jnp.mean((model(batch)[:, 0] - jnp.sin(batch[:, 0])) ** 2)


def _small_trainer(**config: Any) -> CascadeTrainer:
    return CascadeTrainer(
        input_dim=2,
        output_dim=1,
        base_hidden_dims=[8, 8],
        config=MultilevelConfig(**config),
        rngs=nnx.Rngs(42),
    )


def test_network_hierarchy_grows_to_the_given_widths() -> None:
    hierarchy = create_network_hierarchy(
        input_dim=2,
        output_dim=1,
        base_hidden_dims=[128, 128],
        num_levels=4,
        coarsening_factor=0.5,
        activation=nnx.gelu,
        rngs=nnx.Rngs(0),
    )
    assert [model.hidden_dims for model in hierarchy] == [(16, 16), (32, 32), (64, 64), (128, 128)]
    assert hierarchy[-1](jnp.ones((3, 2))).shape == (3, 1)
    assert all(model.hidden[0].activation is nnx.gelu for model in hierarchy)


def test_trainer_from_a_hierarchy_starts_on_the_coarsest_level() -> None:
    hierarchy = create_network_hierarchy(
        input_dim=2,
        output_dim=1,
        base_hidden_dims=[64, 64],
        num_levels=3,
        coarsening_factor=0.5,
        rngs=nnx.Rngs(0),
    )
    optimizer = MultilevelAdam(learning_rate=1e-3)
    trainer = CascadeTrainer(hierarchy=hierarchy, optimizer=optimizer, prolongate_fn=prolongate)
    assert trainer.model is trainer.hierarchy[0]
    assert trainer.get_current_model() is trainer.model
    # The trainer owns copies: the given models never change, and can serve another one.
    assert trainer.model is not hierarchy[0]
    np.testing.assert_array_equal(trainer.model.output.kernel[...], hierarchy[0].output.kernel[...])
    assert trainer.optimizer is optimizer
    assert trainer.prolongate_fn is prolongate
    assert trainer.current_level == trainer.current_level_index == 0


def test_trainer_from_sizes_follows_its_config() -> None:
    trainer = _small_trainer(num_levels=3, coarsening_factor=0.5, level_epochs=[100, 200, 500])
    assert [model.hidden_dims for model in trainer.hierarchy] == [(2, 2), (4, 4), (8, 8)]
    assert trainer.get_epochs_for_current_level() == 100


def test_both_spellings_of_is_at_finest() -> None:
    trainer = _small_trainer(num_levels=2, level_epochs=[1, 1])
    assert not trainer.is_at_finest
    assert trainer.is_at_finest() is False
    assert trainer.advance_level() is True
    assert trainer.is_at_finest
    assert trainer.is_at_finest() is True
    assert trainer.advance_level() is False
    assert repr(trainer.is_at_finest) == "True"


def test_config_of_the_page() -> None:
    assert MultilevelConfig(num_levels=2, coarsening_factor=0.5).level_epochs == (100, 200)
    assert len(MultilevelConfig(num_levels=5, coarsening_factor=0.7).level_epochs) == 5
    assert MultilevelConfig(level_epochs=[50, 100, 200]).num_levels == 3
    extra = MultilevelConfig(level_epochs=[20, 50, 100], warmup_epochs=100)
    assert [extra.epochs(level) for level in range(3)] == [20, 50, 200]


def test_optimizer_update_changes_the_model_and_resize_state_follows(points: jax.Array) -> None:
    coarse, fine = create_network_hierarchy(2, 1, [8, 8], num_levels=2, rngs=nnx.Rngs(0))
    optimizer = MultilevelAdam(learning_rate=1e-3)
    optimizer.init(coarse)
    before = jnp.copy(coarse.output.kernel[...])
    grads = nnx.jit(nnx.grad(_loss))(coarse, points)
    optimizer.update(coarse, grads)
    # The first step of Adam has the length of the learning rate wherever the gradient is not zero.
    step = np.abs(np.asarray(coarse.output.kernel[...] - before))
    np.testing.assert_allclose(step, 1e-3, rtol=1e-3)

    new_model = prolongate(coarse, fine)
    optimizer.resize_state(new_model, prolongate)
    moment = optimizer.state[0].mu["output"]["kernel"][...]
    assert moment.shape == fine.output.kernel.shape
    np.testing.assert_allclose(
        moment[:4], 0.1 * grads["output"]["kernel"][...], rtol=1e-6, atol=1e-12
    )
    assert not np.any(moment[4:])


def test_loop_by_hand_reaches_and_trains_the_finest_level(points: jax.Array) -> None:
    trainer = _small_trainer(level_epochs=[1, 1, 1])
    gradient = nnx.jit(nnx.grad(_loss))
    trained = []
    while True:
        before = jax.tree.map(jnp.copy, nnx.state(trainer.model, nnx.Param))
        for _ in range(2):
            trainer.step(gradient(trainer.model, points))
        after = nnx.state(trainer.model, nnx.Param)
        trained.append(
            any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)))
        )
        if trainer.is_at_finest:
            break
        trainer.advance_level()
    assert trained == [True, True, True]
    assert trainer.model.hidden_dims == (8, 8)


def test_transfer_copies_and_truncates() -> None:
    coarse_model, fine_model = create_network_hierarchy(
        2, 1, [8, 8], num_levels=2, rngs=nnx.Rngs(0)
    )
    fresh = jnp.copy(fine_model.hidden[1].dense.kernel[...])
    fine_model = prolongate(coarse_model, fine_model)
    kernel = fine_model.hidden[1].dense.kernel[...]
    np.testing.assert_array_equal(kernel[:4, :4], coarse_model.hidden[1].dense.kernel[...])
    np.testing.assert_array_equal(kernel[4:], fresh[4:])
    np.testing.assert_array_equal(kernel[:, 4:], fresh[:, 4:])
    again = restrict(fine_model, coarse_model)
    for old, new in zip(
        jax.tree.leaves(nnx.state(coarse_model)), jax.tree.leaves(nnx.state(again)), strict=True
    ):
        np.testing.assert_array_equal(old, new)


def test_fourier_hierarchy_and_its_trainer() -> None:
    fno_hierarchy = create_fno_hierarchy(
        base_modes=8, width=4, num_levels=3, reduction_factor=2, rngs=nnx.Rngs(0), num_layers=1
    )
    assert [model.modes for model in fno_hierarchy] == [(2,), (4,), (8,)]
    trainer = CascadeTrainer(
        hierarchy=fno_hierarchy,
        optimizer=MultilevelAdam(1e-3),
        prolongate_fn=prolongate_fno_modes,
    )
    fields = jnp.ones((2, 32, 1))
    target = jnp.zeros((2, 32, 1))
    gradient = nnx.jit(nnx.grad(lambda m: jnp.mean((m(fields) - target) ** 2)))
    while True:
        trainer.step(gradient(trainer.model))
        if trainer.is_at_finest:
            break
        trainer.advance_level()
    assert trainer.model.modes == (8,)
    coarse = restrict_fno_modes(trainer.model, fno_hierarchy[0])
    assert coarse.modes == (2,)


def test_adaptive_sampling_inside_the_cascade(points: jax.Array) -> None:
    sampler = RADSampler()
    trainer = _small_trainer(num_levels=2, level_epochs=[2, 2])
    residuals = trainer.get_current_model()(points)[:, 0]
    batch = sampler.sample(points, residuals, 8, jax.random.key(0))
    assert batch.shape == (8, 2)
    assert {tuple(row) for row in np.asarray(batch)} <= {tuple(row) for row in np.asarray(points)}
    assert np.isfinite(float(_loss(trainer.get_current_model(), batch)))


def test_loss_balancing_inside_the_cascade() -> None:
    balancer = GradNormBalancer(num_losses=3, rngs=nnx.Rngs(0))
    balancer._initial_losses = None
    losses = jnp.array([1.0, 2.0, 3.0])
    balancer.set_initial_losses(losses)
    assert float(balancer.compute_weighted_loss(losses)) == pytest.approx(6.0)
    balancer.reset()
    assert balancer._initial_losses is None


def test_hybrid_optimizer_is_an_optax_transformation() -> None:
    optimizer = HybridOptimizer(HybridOptimizerConfig())
    assert isinstance(optimizer, optax.GradientTransformation)
    params = {"x": jnp.array([2.0])}
    state = optimizer.init(params)

    def value_fn(p: Any) -> Any:
        return jnp.sum(p["x"] ** 2)

    value, grads = jax.value_and_grad(value_fn)(params)
    updates, _ = optimizer.update(grads, state, params, value=value, grad=grads, value_fn=value_fn)
    assert float(value_fn(optax.apply_updates(params, updates))) < 4.0


def test_boundary_points_lie_on_the_unit_square() -> None:
    boundary = generate_boundary_points(100)
    assert boundary.shape == (100, 2)
    distance = jnp.min(jnp.concatenate([boundary, 1 - boundary], axis=1), axis=1)
    np.testing.assert_allclose(distance, 0, atol=1e-7)


def test_nnx_update_replaces_where_apply_updates_adds() -> None:
    """Why our documents use ``optax.apply_updates`` where the page uses ``nnx.update``."""
    model = create_network_hierarchy(2, 1, [4], num_levels=1, rngs=nnx.Rngs(0))[0]
    params = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    updates = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.25), params)
    nnx.update(model, updates)
    assert all(bool(jnp.all(leaf == 0.25)) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    nnx.update(model, optax.apply_updates(params, updates))
    for new, old in zip(
        jax.tree.leaves(nnx.state(model, nnx.Param)), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(new, old + 0.25)


def test_everything_named_is_exported() -> None:
    assert [name for name in multilevel.__all__ if not hasattr(multilevel, name)] == []
