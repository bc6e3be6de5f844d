"""Which method for which problem, with what was measured: a table and the rows of a figure.

The questions are asked in order; the first that is answered with yes names the method. What stands
beside a method is read from the results, medians over the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common import median, read_results
from tables import number


@dataclass(frozen=True)
class Measured:
    """One problem that a method was measured on.

    Attributes:
        problem: its name in the results.
        error: median relative error, where accuracy is the question.
        seconds: median processor seconds.
        ratio: median time of the best single network over ours, where speed is the question; above
            one ours was sooner, and zero says that it never arrived.
    """

    problem: str
    error: float | None = None
    seconds: float | None = None
    ratio: float | None = None

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"{self.problem}: {f'{number(self.ratio)} x' if self.ratio else 'not reached'}"
        assert self.error is not None
        assert self.seconds is not None
        return f"{self.problem}: {self.error:.0e} in {self.seconds:.0f} s"


@dataclass(frozen=True)
class Choice:
    """A question and the method that it leads to.

    Attributes:
        question: about the problem.
        method: what to take if the answer is yes.
        page: of the documentation, and where in it.
        measured: what was measured.
    """

    question: str
    method: str
    page: str
    measured: Sequence[Measured]

    @property
    def meaning(self) -> str:
        """What the numbers are."""
        if self.measured[0].ratio is not None:
            return "time of the best single network over the cascade's"
        return "median relative error"


def rounding(*problems: str, method: str) -> list[Measured]:
    """Problems of the section "PINNs to rounding"."""
    return _of_rows("rounding", "problem", problems, method)


def pinnacle(*cases: str) -> list[Measured]:
    """Cases of PINNacle, with the model that the rule of that benchmark chose."""
    return _of_rows("pinnacle", "case", cases, None)


def nested(*problems: str) -> list[Measured]:
    """Coarse features first, on nonlinear equations."""
    found = []
    for row in (read_results("nested_iteration") or {"rows": []})["rows"]:
        if row["problem"] in problems:
            runs = [run["cascade"] for run in row["runs"]]
            error, seconds = (median([run[k] for run in runs]) for k in ("error", "seconds"))
            found.append(Measured(row["problem"], error, seconds))
    return found


def race(name: str, title: str) -> Measured:
    """How much sooner than the best single network a cascade was, at the lower target."""
    target = (read_results(name) or {})["targets"][0]
    return Measured(title, ratio=target["ratios"]["single_over_cascade"]["median"])


def _of_rows(name: str, field: str, wanted: Sequence[str], method: str | None) -> list[Measured]:
    rows = (read_results(name) or {"rows": []})["rows"]
    found = []
    for problem in wanted:
        runs = [r for r in rows if r[field] == problem and method in (None, r.get("method"))]
        error = median([run["error"] for run in runs])
        found.append(Measured(problem, error, median([run["processor seconds"] for run in runs])))
    return found


def choices() -> list[Choice]:
    """All questions, in the order in which to ask them."""
    return [
        Choice(
            "Fields to fields (an operator)?",
            "FNO cascade on coarser grids",
            "guide.md#operators-on-coarser-grids",
            [
                race("operator_darcy", "Darcy 128 x 128"),
                race("operator_burgers-fronts", "Burgers with fronts"),
                race("operator_burgers", "Burgers, smooth"),
            ],
        ),
        Choice(
            "Evolution in one space dimension?",
            "time slabs",
            "methods/time_slabs.md",
            rounding(
                "burgers 0.01/pi in slabs",
                "allen-cahn in slabs",
                "kdv in slabs",
                method="time slabs",
            ),
        ),
        Choice(
            "Unknown coefficients?",
            "network, Levenberg-Marquardt",
            "tutorials/inverse.md",
            pinnacle("PInv", "HInv"),
        ),
        Choice(
            "More than three dimensions?",
            "small sine network, Levenberg-Marquardt",
            "methods/levenberg_marquardt.md",
            [*rounding("poisson-5d", method="Levenberg-Marquardt"), *pinnacle("PNd")],
        ),
        Choice(
            "Linear, with a smooth solution?",
            "random features, Gauss-Newton",
            "methods/random_features.md#linear-equations",
            rounding("poisson", "helmholtz", "wave", method="random features"),
        ),
        Choice(
            "Linear, with holes or layers?",
            "random features in patches",
            "methods/random_features.md#linear-equations",
            pinnacle("Poisson2d-C", "Poisson2d-CG", "Poisson2d-MS"),
        ),
        Choice(
            "Nonlinear, with a smooth solution?",
            "random features, coarse ones first",
            "methods/random_features.md#nonlinear-equations",
            nested("cubic, 2d", "cubic, 3d"),
        ),
        Choice(
            "Another equation, few parameters?",
            "network, self-scaled Broyden",
            "methods/self_scaled_broyden.md",
            rounding("burgers 0.01/pi", "allen-cahn", method="self-scaled Broyden"),
        ),
        Choice(
            "Any other loss, large networks?",
            "cascade with an Optax optimizer",
            "methods/cascade.md",
            [race("pinn_poisson", "Poisson PINN"), race("pinn_helmholtz", "Helmholtz PINN")],
        ),
    ]


def rows() -> list[dict[str, str]]:
    """The rows of the table."""
    return [
        {
            "if your problem is": choice.question.rstrip("?"),
            "take": f"[{choice.method}]({choice.page})",
            "measured": choice.meaning + ": " + "; ".join(map(str, choice.measured)),
        }
        for choice in choices()
    ]
