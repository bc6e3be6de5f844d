"""Trained models on disk: saved with what rebuilds them, or exported to run without this library.

The room may import `opifex.core` and `opifex.models`.
"""

from opifex_multilevel import require_own_package

require_own_package()  # before the first import that fails where another package is mixed with this one

from opifex.storage.saved_model import load_model, save_model
from opifex.storage.serving import export_function, load_function

__all__ = ["export_function", "load_function", "load_model", "save_model"]
