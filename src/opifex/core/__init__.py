"""What every other part of the library may use: argument checks, residuals, physics."""

from opifex.core.residuals import (
    PointFunction,
    ResidualTerm,
    mean_square_loss,
    residual_vector,
)

__all__ = ["PointFunction", "ResidualTerm", "mean_square_loss", "residual_vector"]
