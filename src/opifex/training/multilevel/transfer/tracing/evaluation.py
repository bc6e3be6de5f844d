"""A model as a function of its variables and its arguments, compiled once for each structure.

The same program tells which arguments a model takes and, later, what it computes of them.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
from flax import nnx

__all__ = ["evaluated", "evaluation"]


@lru_cache(maxsize=64)
def _kept_evaluation(graphdef: Any) -> Any:
    # A program that runs a few times on a few rows: optimising it would take longer.
    cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if cpu else None
    return jax.jit(partial(_evaluate, graphdef), compiler_options=options)


def evaluation(graphdef: Any) -> Any:
    """The compiled model: one program for both transitions of a level, the one to it and from it.

    Args:
        graphdef: graph definition of the model. The program takes its variables and its arguments.
    """
    try:
        hash(graphdef)
    except TypeError:  # a list among the attributes of a module: nothing to keep a program under
        return _kept_evaluation.__wrapped__(graphdef)
    return _kept_evaluation(graphdef)


def _evaluate(graphdef: Any, state: Any, inputs: tuple[Any, ...]) -> Any:
    """The output of a copy of a model, without dropout and with running averages."""
    return evaluated(nnx.merge(graphdef, state, copy=True), inputs)


def evaluated(model: Any, inputs: tuple[Any, ...]) -> Any:
    """The output of a model, which is changed, without dropout and with running averages.

    Args:
        model: the model.
        inputs: its arguments.
    """
    model.eval()
    # The default of accelerators cuts the factors of float32 products to 10 bits or fewer.
    with jax.default_matmul_precision("highest"):
        return model(*inputs)
