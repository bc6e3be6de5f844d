"""Loggers: where the rows of a run go while it trains, behind one small protocol.

A `Logger` is opened with a `RunInfo`, given one flat row per evaluation interval, and closed with the
outcome. `Reporter` is the bridge to training: an ordinary callback of
`opifex.training.multilevel.Monitor` that makes the rows and hands them to any number of loggers.

The room may import `opifex.core`, `opifex.storage` and `opifex.training`; nothing but `opifex.cli`
imports it.
"""

from opifex_multilevel import require_own_package

require_own_package()  # before the first import that fails where another package is mixed with this one

from opifex.loggers.console import ConsoleLogger
from opifex.loggers.mlflow_tracking import MLflowLogger
from opifex.loggers.protocol import Logger, Outcome, Row, RunInfo
from opifex.loggers.reporter import Reporter
from opifex.loggers.table_files import TableLogger
from opifex.loggers.tensorboard import TensorBoardLogger
from opifex.loggers.trackio_dashboard import TrackioLogger
from opifex.loggers.weights_and_biases import WandbLogger

__all__ = [
    "ConsoleLogger",
    "Logger",
    "MLflowLogger",
    "Outcome",
    "Reporter",
    "Row",
    "RunInfo",
    "TableLogger",
    "TensorBoardLogger",
    "TrackioLogger",
    "WandbLogger",
]
