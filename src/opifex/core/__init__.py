"""What every other room may use: argument checks, residual terms, metrics, differential operators.

The room may import none of the others.
"""

from opifex.core.residuals import (
    PointFunction,
    ResidualTerm,
    mean_square_loss,
    residual_vector,
)

__all__ = ["PointFunction", "ResidualTerm", "mean_square_loss", "residual_vector"]
