"""The schedule advisor on the command line."""

from __future__ import annotations

from typing import Any

import jax
from rich.console import Console

from opifex.cli.errors import CommandError
from opifex.cli.registry import make_optimizer
from opifex.cli.settings import RunSettings
from opifex.cli.tasks import OperatorTask, ProblemTask, build_task
from opifex.cli.yaml_document import dump_yaml
from opifex.training.multilevel import recommend_schedule

__all__ = ["advise"]


def advise(
    settings: RunSettings,
    budget: int,
    console: Console,
    target_error: float = 0.01,
    seconds: float | None = None,
) -> str:
    """Propose levels and epochs for a configuration, or one network alone, and print the reasons.

    Args:
        settings: the configuration.
        budget: work units to spend.
        console: where to print.
        target_error: relative error that is wanted, of operators.
        seconds: processor seconds of the training, if they are known.

    Returns:
        YAML with what to change in the configuration.

    Raises:
        CommandError: if there is no advice for such a configuration.
    """
    with jax.enable_x64(settings.precision == "float64"):
        task = build_task(settings)
        models = task.make_models(0)
        optimizer: Any = make_optimizer(task.settings.optimizer, [1] * len(models))
        if isinstance(task, ProblemTask):
            source: Any = task.problem
        elif isinstance(task, OperatorTask):
            source = task.inputs, task.outputs
        else:
            raise CommandError(
                "there is no advice for tables: it rests on the frequencies of fields on a grid, and "
                "samples (samples, features) have none. Find out by trying: opifex-multilevel compare "
                "CONFIG.yaml --strategies cascade,finest"
            )
        given = task.settings.problem
        try:
            advice = recommend_schedule(
                source,
                models[-1],
                budget,
                factor=1 / task.settings.hierarchy.coarsening,
                batch_size=task.settings.batch_size,
                num_points=given.interior_points if given else 1000,
                optimizer=optimizer.smoother_at(0),
                verbose=False,
                target_error=target_error,
                seconds=seconds,
            )
        except (TypeError, ValueError) as error:
            raise CommandError(str(error)) from error
    advice.print(console)
    changes: dict[str, Any] = {
        "hierarchy": {"sizes": [list(size) for size in advice.sizes]},
        "epochs": [advice.config.epochs(level) for level in range(advice.config.num_levels)],
    }
    arrived = advice.shapes[-1]
    if isinstance(task, ProblemTask):
        changes["problem"] = {"interior_points": arrived[0]}
    elif arrived != tuple(task.inputs.shape[1:-1]):
        # A configuration trains its finest level on the fields of the file.
        console.print(
            f"- the proposed grid is coarser than that of the file: restrict the fields to "
            f"{list(arrived)} points before (opifex.training.multilevel.restrict_field)"
        )
    return dump_yaml(changes)
