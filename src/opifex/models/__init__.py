"""Networks: plain ``nnx.Module`` classes that know nothing of training."""

from opifex.models.mlp import MLP, HiddenLayer

__all__ = ["MLP", "HiddenLayer"]
