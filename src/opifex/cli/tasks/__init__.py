"""What a configuration trains: an equation, an operator between fields, or a table.

`task` says what a run needs of any of them. The three are `problem_task`, `operator_task` and
`table_task`, the last two on `data_task` and the `samples` of a file; `hierarchies` builds their models.

The room may import `opifex.core`, `opifex.models`, `opifex.problems`, `opifex.data`, `opifex.storage`,
`opifex.training`, `opifex.viz` and the modules below it in `opifex.cli`; only `opifex.cli` imports it.
"""

from opifex.cli.errors import CommandError
from opifex.cli.settings import RunSettings
from opifex.cli.tasks.data_task import DataTask
from opifex.cli.tasks.operator_task import OperatorTask
from opifex.cli.tasks.problem_task import ProblemTask
from opifex.cli.tasks.samples import Samples, held_out_rows, read_samples
from opifex.cli.tasks.table_task import TableTask
from opifex.cli.tasks.task import ERROR, TrainingTask

__all__ = [
    "ERROR",
    "DataTask",
    "OperatorTask",
    "ProblemTask",
    "Samples",
    "TableTask",
    "TrainingTask",
    "build_task",
    "held_out_rows",
    "read_samples",
]


def build_task(settings: RunSettings) -> TrainingTask:
    """Everything but the seed.

    Args:
        settings: the configuration; its precision must be in force already.

    Raises:
        CommandError: if the data cannot be read, or do not fit the configuration.
    """
    try:
        if settings.problem is not None:
            return ProblemTask(settings, settings.problem)
        assert settings.data is not None
        kind = TableTask if settings.hierarchy.kind == "network" else OperatorTask
        return kind(settings, settings.data)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise CommandError(str(error)) from error
