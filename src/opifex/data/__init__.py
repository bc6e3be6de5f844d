"""Data of operator learning: random fields, solvers that generate pairs, shipped data, data files.

The room may import `opifex.core`.
"""

from opifex_multilevel import require_own_package

require_own_package()  # before the first import that fails where another package is mixed with this one

from opifex.data.burgers import generate_burgers_operator_data, solve_burgers
from opifex.data.cache import default_cache_dir
from opifex.data.darcy import DarcySmall, generate_darcy_data, load_darcy_small, solve_darcy
from opifex.data.fields import FieldNormalizer, OperatorData
from opifex.data.random_fields import gaussian_random_field
from opifex.data.reading import Fields, read_fields
from opifex.data.stored import FieldsTransform, StoredFields, open_fields

__all__ = [
    "DarcySmall",
    "FieldNormalizer",
    "Fields",
    "FieldsTransform",
    "OperatorData",
    "StoredFields",
    "default_cache_dir",
    "gaussian_random_field",
    "generate_burgers_operator_data",
    "generate_darcy_data",
    "load_darcy_small",
    "open_fields",
    "read_fields",
    "solve_burgers",
    "solve_darcy",
]
