r"""Residual correction: every finer network learns what is left over, scaled to size one.

The model of level $l$ is $u_l = u_{l-1} + \epsilon_l c_l$ with $u_{l-1}$ frozen and $\epsilon_l$ the
size of the remaining residual (multi-stage networks, Wang and Lai, arXiv:2307.08934, section 2;
multi-level networks, arXiv:2601.12000). A network of outputs around one then always meets a target
around one, and in double precision the error falls far below what a single network reaches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import nnx

from opifex.core.checks import check_positive
from opifex.models import CorrectedModel

__all__ = ["ResidualCorrection"]


@dataclass(frozen=True)
class ResidualCorrection:
    """A transfer that freezes the coarse model and adds the fine one as a scaled correction.

    The trainer's models become sums (`CorrectedModel`); the last one is what to evaluate. Optimizer
    states start afresh on every level, since no parameter has a predecessor.

    Attributes:
        scale: size of the correction; by default the root of the coarse level's last loss, which is
            the size of the residual where the loss is a mean square.

    Raises:
        TypeError: if ``scale`` is not a number.
        ValueError: if ``scale`` is not positive; when called, if there is no ``scale`` and the loss
            is not positive (a Ritz energy, say), since its root is no size then.

    Example:
        >>> from flax import nnx
        >>> from opifex.models import MLP
        >>> from opifex.training.multilevel import CascadeTrainer, ResidualCorrection
        >>> models = [MLP(1, 1, [8], rngs=nnx.Rngs(seed)) for seed in (0, 1)]
        >>> trainer = CascadeTrainer(models, prolongate_fn=ResidualCorrection())
    """

    scale: float | None = None
    changes_structure: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.scale is not None:
            check_positive("scale", self.scale)

    def __call__(
        self, coarse_model: nnx.Module, fine_model: nnx.Module, *, loss: float | None = None
    ) -> CorrectedModel:
        """The sum of the frozen coarse model and the fine one."""
        scale = self.scale
        if scale is None:
            if loss is None or not loss > 0:
                raise ValueError(
                    "ResidualCorrection needs a positive loss, whose root is the size of the "
                    f"residual, got {loss}; give scale=... where the loss is no mean square"
                )
            scale = math.sqrt(loss)
        # In an earlier run the fine model may have become such a sum itself.
        new: Any = fine_model.correction if isinstance(fine_model, CorrectedModel) else fine_model
        return CorrectedModel(coarse_model, nnx.clone(new), scale)
