"""Multilevel (coarse-to-fine) training of PINNs and neural operators."""

__version__ = "0.1.0"

__all__ = ["__version__"]
