"""What a configuration may hold, section by section.

Only what one value says about itself is checked here; what several values or the data say together is
the business of `opifex.cli.configuration` and of `opifex.cli.tasks`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

__all__ = [
    "DataSettings",
    "HierarchySettings",
    "OptimizerSettings",
    "ProblemSettings",
    "RunSettings",
    "StrategySettings",
]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _count_or_counts(value: Any) -> Any:
    """Checked by hand, since an error of a union speaks of all its branches."""
    if _is_count(value) or (isinstance(value, list) and value and all(map(_is_count, value))):
        return value
    raise ValueError("must be a positive integer or a list of positive integers")


def _number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError("must be a number")


Count = Annotated[int, Field(ge=1)]
Counts = Annotated[int | list[int], PlainValidator(_count_or_counts)]
OptionalCounts = Annotated[
    int | list[int] | None, PlainValidator(lambda v: None if v is None else _count_or_counts(v))
]
Number = Annotated[float, PlainValidator(_number)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Section(BaseModel):
    """Values have the type that is asked for, and no key is ignored."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Named(_Section):
    """A section that may be given as its name alone: ``strategy: cascade``."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class ProblemSettings(_Named):
    """A boundary value problem of `opifex.problems`, and its points.

    Attributes:
        name: its name, as ``opifex-multilevel problems`` lists it.
        parameters: its parameters; defaults where left out.
        interior_points: points for the equation.
        boundary_points: points for all conditions together.
        sampling: how interior points are drawn.
        conditions: ``soft``: residual terms of the loss; ``hard``: met by a trial function around the
            network.
    """

    parameters: dict[str, Number] = {}
    interior_points: Count = 1000
    boundary_points: Count = 200
    sampling: Literal["uniform", "sobol"] = "uniform"
    conditions: Literal["soft", "hard"] = "soft"


class DataSettings(_Section):
    """A file with pairs of input and output fields.

    Attributes:
        path: the file; relative paths start at the folder of the configuration.
        inputs: name of the array of inputs; found by itself where there is only one candidate.
        outputs: name of the array of outputs.
        layout: order of the axes or layout of the file, see `opifex.data.read_fields`.
        held_out: share of the samples on which the error is measured and never trained; 0 for none.
        normalize: shift and scale every channel by the training samples' mean and deviation.
        grid_kind: where the points of the grid lie, see `opifex.models.FNO`; by default what the
            file says or shows, else ``cell``.
    """

    path: str
    inputs: str | None = None
    outputs: str | None = None
    layout: str | None = None
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    normalize: bool = True
    grid_kind: Literal["cell", "vertex", "periodic"] | None = None


class HierarchySettings(_Section):
    """Models from coarse to fine.

    Attributes:
        kind: ``network`` (multilayer perceptron) or ``fourier-operator``; by default what problem or
            data ask for.
        levels: number of levels.
        coarsening: ratio of the sizes of a level and the next finer one.
        hidden: hidden widths of the finest network.
        activation: activation of networks.
        modes: modes of the finest operator, one number for all axes or one per axis; by default a
            quarter of the points per axis, at most 16.
        width: channels of operators.
        layers: Fourier layers of operators.
        sizes: hidden widths, or modes per axis, of every level, coarsest first; replaces ``levels``,
            ``coarsening``, and ``hidden`` or ``modes``.
    """

    kind: Literal["network", "fourier-operator"] | None = None
    levels: Count = 3
    coarsening: Fraction = 0.5
    hidden: Annotated[list[Count], Field(min_length=1)] = [32, 32]
    activation: Literal["tanh", "sin", "gelu", "swish"] = "tanh"
    modes: OptionalCounts = None
    width: Count = 32
    layers: Count = 4
    sizes: (
        Annotated[list[Annotated[list[Count], Field(min_length=1)]], Field(min_length=1)] | None
    ) = None

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return self.levels if self.sizes is None else len(self.sizes)


class StrategySettings(_Named):
    """The order in which levels are visited.

    Attributes:
        name: the order; ``finest`` trains the finest level alone.
        cycles: number of cycles, for multigrid cycles.
        coarse: what coarse levels of cycles minimise; ``auto`` takes ``galerkin`` with batches and
            with least-squares solvers, which ``rediscretised`` cannot serve.
        transfer: ``preserving`` starts a level with the function of the coarser one, ``padding``
            copies its parameters and leaves the rest random.
    """

    name: Literal["cascade", "v-cycle", "w-cycle", "full-multigrid", "finest"] = "cascade"
    cycles: Count = 5
    coarse: Literal["auto", "rediscretised", "galerkin"] = "auto"
    transfer: Literal["preserving", "padding"] = "preserving"


class OptimizerSettings(_Named):
    """The method of minimisation, on all levels.

    Attributes:
        name: the method.
        learning_rate: step size, of methods that have one.
        schedule: ``cosine`` lets the step size fall to zero over each level.
        options: further settings of the method.
    """

    name: str = "multilevel-adam"
    learning_rate: Positive | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    options: dict[str, Any] = {}


class RunSettings(_Section):
    """A whole configuration; either a problem or data.

    Attributes:
        problem: the equation.
        data: the data file.
        hierarchy: the models.
        strategy: the order of the levels.
        optimizer: the method.
        epochs: epochs per level, coarsest first, or one number for each level.
        further_epochs: epochs on the finest level after all that, in parts; ``resume --more`` adds one.
        batch_size: samples per step; all by default.
        evaluation_interval: epochs from one evaluation to the next; a twentieth of a level by default.
        seeds: random seeds, one run each.
        precision: of parameters and data; ``bfloat16`` evaluates the model in that, and keeps parameters
            and data in single precision.
        output: the run folder; relative paths start where the command is called.
        checkpoint_every: seconds from one checkpoint to the next: what a run that is killed has to do
            again at most, see `opifex.training.multilevel.Checkpoints`.
        loggers: where rows go beside the console, CSV and Parquet.
    """

    problem: ProblemSettings | None = None
    data: DataSettings | None = None
    hierarchy: HierarchySettings = HierarchySettings()
    strategy: StrategySettings = StrategySettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    epochs: Counts = 200
    further_epochs: list[Count] = []
    batch_size: Count | None = None
    evaluation_interval: Count | None = None
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    output: Annotated[str, Field(min_length=1)]
    checkpoint_every: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    loggers: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = ["tensorboard"]

    def updated(self, section: str, **changes: Any) -> RunSettings:
        """The same settings with changes in one section."""
        part = getattr(self, section).model_copy(update=changes)
        return self.model_copy(update={section: part})

    @property
    def dtype(self) -> str:
        """Name of the dtype of parameters and data."""
        return "float32" if self.precision == "bfloat16" else self.precision

    @property
    def num_levels(self) -> int:
        """Number of levels that are trained."""
        return 1 if self.strategy.name == "finest" else self.hierarchy.num_levels

    @property
    def level_epochs(self) -> list[int]:
        """Epochs of every level that is trained."""
        if isinstance(self.epochs, list):
            return self.epochs[-1:] if self.strategy.name == "finest" else self.epochs
        return [self.epochs] * self.num_levels
