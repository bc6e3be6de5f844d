r"""By what the learning rate of each parameter changes when a model grows.

Kernels that read more features than before take smaller steps, in inverse proportion to their number,
and biases and kernels of the inputs go on as before (Yang et al., arXiv:2203.03466, table 3, for Adam).
The weights of different Fourier modes act on different components of a field, and do not add up:
the norm of the layer is that of its largest mode, which for $K$ modes on each of $d$ axes grows like
$\sqrt{d \log K}$ (Li, Yoo and Yang, arXiv:2506.19396, theorem 3.5).
"""

from __future__ import annotations

import math
from typing import Any

from flax import nnx

from opifex.models import SpectralConv
from opifex.training.multilevel.transfer.inference import plan_transfer
from opifex.training.multilevel.transfer.placements import Placement
from opifex.training.multilevel.transfer.tracing import Path

__all__ = ["parameter_path", "rate_ratio", "rate_ratios"]


def rate_ratio(placement: Placement, *, spectral: bool = False) -> float:
    """The rate of a fine parameter over that of its coarse counterpart.

    Args:
        placement: how the parameter grows.
        spectral: whether it holds the weights of a `SpectralConv`, all axes of which but the last two
            are frequencies.

    Returns:
        Coarse over fine fan-in, times the root of the ratio of the logarithms of the numbers of modes.
    """
    sizes = list(zip(placement.coarse_shape, placement.fine_shape, strict=True))
    modes = len(sizes) - 2 if spectral else 0
    contracted = zip(sizes[modes:], placement.fan_in[modes:], strict=True)
    features = math.prod((coarse / fine for (coarse, fine), runs in contracted if runs), start=1.0)
    if not modes:
        return features
    # All but the last axis of modes hold the frequencies from -(m - 1) to m - 1.
    counts = [*(((c + 1) // 2, (f + 1) // 2) for c, f in sizes[: modes - 1]), sizes[modes - 1]]
    logarithms = (sum(math.log(count[level]) for count in counts) for level in (0, 1))
    coarse, fine = (max(total, math.log(2)) for total in logarithms)  # of one mode the root is zero
    return features * math.sqrt(coarse / fine)


def rate_ratios(coarse_model: nnx.Module, fine_model: nnx.Module) -> dict[Path, float]:
    """The ratios of all parameters that both models have, by their paths.

    Args:
        coarse_model: the smaller model.
        fine_model: the larger model.

    Returns:
        Path of each shared variable to its `rate_ratio`; nothing for models that are not related as
        transfers need it (a transfer of one's own may relate them in another way).

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_network_hierarchy
        >>> from opifex.training.multilevel.transfer import rate_ratios
        >>> coarse, fine = create_network_hierarchy(2, 1, [8, 8], num_levels=2, rngs=nnx.Rngs(0))
        >>> ratios = rate_ratios(coarse, fine)
        >>> [ratios["hidden", i, "dense", "kernel"] for i in (0, 1)], ratios["output", "bias"]
        ([1.0, 0.5], 1.0)
    """
    try:
        plan = plan_transfer(coarse_model, fine_model)
    except (TypeError, ValueError):
        return {}
    spectral = {
        path for path, module in nnx.iter_modules(fine_model) if isinstance(module, SpectralConv)
    }
    return {
        path: rate_ratio(
            placement, spectral=path[:-1] in spectral and str(path[-1]).startswith("weight")
        )
        for path, placement in plan.items()
    }


def parameter_path(keys: tuple[Any, ...]) -> Path:
    """The path of a variable in a model from the key path of its leaf in an ``nnx.State``."""
    return tuple(key.key for key in keys if hasattr(key, "key"))
