r"""Multigrid cycles for training: V-cycle, W-cycle and full multigrid in the form of MG/OPT.

A cycle smooths on a level, restricts the parameters, lets the next coarser level minimise its own
loss with a linear term that makes the two agree to first order (`opifex.training.multilevel.coherence`),
and takes the coarse correction with a line search that never increases the finer objective.

The epochs planned for a level are all its steps: they are divided evenly among the cycles and the
visits within a cycle, and on all but the coarsest level each visit's share is split into steps before
and after the coarse correction. A run with cycles thus takes as many steps as a cascade with the same
epochs, plus two gradients and a few loss evaluations per correction, which are charged as work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from opifex.core.checks import check_choice, check_positive, check_positive_int
from opifex.training.errors import NonFiniteLossError
from opifex.training.multilevel.coherence import tilt_for_coherence
from opifex.training.multilevel.run import CoarseObjective, MultilevelRun
from opifex.training.multilevel.transfer import (
    prolongate_correction,
    restrict,
    restrict_gradient,
)
from opifex.training.objective import Objective, split_model

__all__ = ["FullMultigrid", "VCycle", "WCycle"]

# A loss evaluation costs about a third of a step, whose gradient takes a forward and a backward pass.
LOSS_COST = 1 / 3


class _Evaluator:
    """Compiled losses and gradients of each level, one program per level and kind."""

    def __init__(self) -> None:
        self._programs: dict[tuple[int, str], Any] = {}

    def _program(self, run: MultilevelRun, kind: str) -> Any:
        if (run.level, kind) not in self._programs:
            objective: Objective = run.objective
            function = objective.value if kind == "loss" else jax.grad(objective.value)
            self._programs[run.level, kind] = jax.jit(function)
        return self._programs[run.level, kind]

    def loss(self, run: MultilevelRun, params: Any) -> float:
        """The present level's objective at some parameters."""
        rest = split_model(run.model)[2]
        run.history.record_extra_work(run.level, LOSS_COST)
        return float(self._program(run, "loss")(params, rest, run.data))

    def gradient(self, run: MultilevelRun) -> Any:
        """The gradient of the present level's objective at its model."""
        _, params, rest = split_model(run.model)
        run.history.record_extra_work(run.level, 1.0)
        return self._program(run, "gradient")(params, rest, run.data)


@dataclass(frozen=True)
class _Cycle:
    """What the cycles share."""

    cycles: int = 5
    gradient_scale: float = 1.0
    max_halvings: int = 8

    def __post_init__(self) -> None:
        check_positive_int("cycles", self.cycles)
        check_positive("gradient_scale", self.gradient_scale)
        check_positive_int("max_halvings", self.max_halvings)

    @property
    def coarse_objective(self) -> CoarseObjective:
        """Coarse levels minimise their own losses with a linear term."""
        return "tilted"

    def prepare(self, models: Sequence[nnx.Module], level: int) -> list[nnx.Module]:
        """The models as they are."""
        return list(models)

    @property
    def visits(self) -> int:
        """How often a level visits the next coarser one."""
        return 1

    def _epochs_per_cycle(self, run: MultilevelRun, level: int) -> float:
        """Epochs of a level in one cycle in which it takes part."""
        return run.epochs[level] / self.cycles

    def _cycle(self, run: MultilevelRun, evaluator: _Evaluator) -> None:
        """One cycle from the present level; if a level diverges, the last good state on top stays."""
        top = run.level
        try:
            self._visit(run, evaluator, top)
        except NonFiniteLossError:
            # A level's own model is of no use in the middle of a cycle: its loss is not the user's.
            if run.level != top:
                run.move_to(top)
            raise

    def _visit(self, run: MultilevelRun, evaluator: _Evaluator, top: int) -> None:
        level = run.level
        share = round(self._epochs_per_cycle(run, level) / self.visits ** (top - level))
        if level == 0:
            run.smooth(max(1, share))
            return
        after = max(1, share // 2)
        run.smooth(max(1, share - after))
        if run.stopped:
            return
        start = self._descend(run, evaluator)
        for _ in range(self.visits):
            self._visit(run, evaluator, top)
            if run.stopped:
                break
        self._ascend(run, evaluator, start)
        if not run.stopped:
            run.smooth(after)

    def _descend(self, run: MultilevelRun, evaluator: _Evaluator) -> Any:
        """Go to the next coarser level with a coherent objective; returns the restricted point."""
        fine, coarse = run.model, run.models[run.level - 1]
        if self.coarse_objective == "block":
            whole = run.whole_model()
            run.move_to(run.level - 1, restrict(fine, coarse))
            run.set_whole(whole)
            return jax.tree.map(jnp.copy, split_model(run.model)[1])
        restricted = restrict_gradient(
            evaluator.gradient(run), coarse, fine, scale=self.gradient_scale
        )
        run.move_to(run.level - 1, restrict(fine, coarse))
        start = jax.tree.map(jnp.copy, split_model(run.model)[1])
        run.set_tilt(jax.tree.map(jnp.zeros_like, start))
        run.set_tilt(tilt_for_coherence(evaluator.gradient(run), restricted))
        return start

    def _ascend(self, run: MultilevelRun, evaluator: _Evaluator, start: Any) -> None:
        """Go back up and take the correction as far as it lowers the finer objective."""
        coarse = run.model
        difference = jax.tree.map(jnp.subtract, split_model(coarse)[1], start)
        if self.coarse_objective == "tilted":
            run.set_tilt(jax.tree.map(jnp.zeros_like, start))
        run.move_to(run.level + 1)
        correction = prolongate_correction(difference, coarse, run.model)
        params = split_model(run.model)[1]
        before = evaluator.loss(run, params)
        length = 1.0
        for _ in range(self.max_halvings):
            trial = optax.tree.add_scale(params, length, correction)
            if evaluator.loss(run, trial) < before:
                nnx.update(run.model, trial)
                return
            length /= 2

    def __call__(self, run: MultilevelRun) -> None:
        """Go to the finest level, with its model as it is, and cycle."""
        if run.level != run.finest:
            run.move_to(run.finest)
        run.evaluate()
        evaluator = _Evaluator()
        for number in range(self.cycles):
            run.cycle = number
            self._cycle(run, evaluator)
            if run.stopped:
                return


@dataclass(frozen=True)
class VCycle(_Cycle):
    r"""Every level visits the next coarser one once per cycle (MG/OPT, Nash 2000).

    Attributes:
        cycles: number of cycles.
        gradient_scale: $c$ in $c\, P^T$, the restriction of gradients.
        max_halvings: trial step lengths 1, 1/2, ... of a correction; if none lowers the finer
            objective, the correction is dropped.
        coarse: ``"network"`` lets a coarse level minimise the loss of its own, smaller network with
            the linear term that makes it coherent. ``"block"`` lets it minimise the finest loss over
            those of the finest parameters that it has too, all others fixed (Gratton, Mercier,
            Riccietti and Toint, arXiv:2305.14477): coherent without a linear term, so that
            least-squares solvers smooth it too, but each step evaluates the finest network.

    Raises:
        ValueError: if a number is not positive, or ``coarse`` is neither of the two.
        TypeError: if a number has the wrong type.
    """

    coarse: Literal["network", "block"] = "network"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("coarse", self.coarse, ["network", "block"])

    @property
    def coarse_objective(self) -> CoarseObjective:
        """The coarse network's loss with a linear term, or the finest loss over a block."""
        return "block" if self.coarse == "block" else "tilted"


@dataclass(frozen=True)
class WCycle(VCycle):
    """Every level visits the next coarser one twice. Attributes and errors are those of `VCycle`."""

    @property
    def visits(self) -> int:
        """How often a level visits the next coarser one."""
        return 2


@dataclass(frozen=True)
class FullMultigrid(_Cycle):
    """From the present level up: solve, prolongate, and do V-cycles from each new level.

    The coarsest level spends half of its epochs before the first prolongation. Attributes and errors
    are those of `VCycle`; ``cycles`` is the number of cycles on each level.
    """

    def _solve_epochs(self, run: MultilevelRun) -> int:
        return max(1, run.epochs[run.first_level] // 2)

    def _epochs_per_cycle(self, run: MultilevelRun, level: int) -> float:
        """Epochs of a level in one cycle: it takes part in those of all levels from its own on."""
        lowest = run.first_level
        planned = run.epochs[level] - (self._solve_epochs(run) if level == lowest else 0)
        return planned / (self.cycles * (run.finest - max(level, lowest + 1) + 1))

    def __call__(self, run: MultilevelRun) -> None:
        """Start on the present level."""
        evaluator = _Evaluator()
        run.evaluate()
        run.smooth(self._solve_epochs(run))
        while not run.stopped and run.level < run.finest:
            run.prolongate()
            run.evaluate()
            for _ in range(self.cycles):
                run.cycle += 1
                self._cycle(run, evaluator)
                if run.stopped:
                    return
