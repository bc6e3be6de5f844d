"""Names that the page for newcomers from other libraries gives as ours exist."""

import importlib
import re
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "migration.md"
ROOMS = [
    "core",
    "core.metrics",
    "core.physics",
    "core.physics.gradnorm",
    "data",
    "models",
    "optimization",
    "optimization.second_order",
    "problems",
    "training",
    "training.adaptive_sampling",
    "training.multilevel",
    "viz",
]
PUBLIC = {
    name: getattr(module, name)
    for room in ROOMS
    for module in [importlib.import_module(f"opifex.{room}")]
    for name in module.__all__
}
NOT_OURS = {
    "jax",
    "jnp",
    "optax",
    "nnx",
    "problem",
    "residual",
    "u",
    "weight",
    "candidates",
    "trainer",
    "fit",
}
"""First words of pieces of code that are no names of a room: arguments, variables, other packages."""


def rows() -> list[str]:
    """The right-hand cells of all tables."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines if line[:1] == "|"]
    return [row[1] for row in cells if row[1].strip() not in ("here", "---")]


def names(cell: str) -> list[str]:
    """Names in code: those that are called, and pieces that are a name and nothing else."""
    found = []
    for code in re.findall(r"`([^`]+)`", cell):
        found += re.findall(r"(?<![\w.])([A-Za-z_][\w.]*)\(", code)
        found += re.findall(r"^[A-Za-z_][\w.]*$", code)
    return found


def exists(name: str) -> bool:
    if name in ROOMS:
        return True
    first, *rest = name.split(".")
    if first in PUBLIC:
        return all(hasattr(PUBLIC[first], attribute) for attribute in rest)
    if f"{first}.{rest[0]}" in ROOMS if rest else False:
        first, rest = f"{first}.{rest[0]}", rest[1:]
    return first in ROOMS and len(rest) == 1 and rest[0] in PUBLIC


def test_names_that_are_said_to_be_ours_exist() -> None:
    said = [name for cell in rows() for name in names(cell)]
    missing = {n for n in said if n.split(".")[0] not in NOT_OURS and not exists(n)}
    arguments = {"alpha", "learning_rate", "switch_step", "min_adam_steps"}
    assert len(said) > 80
    assert missing - arguments == set()


def test_names_that_do_not_exist_are_found() -> None:
    assert exists("core.metrics.relative_l2")
    assert exists("RADSampler.sample")
    assert not exists("RADConfig")
    assert not exists("RADSampler.refine")
    assert not exists("core.metrics.nothing")
    assert names("`Nothing(x)`, `other`, `a b`") == ["Nothing", "other"]


def test_the_names_of_the_namesake_are_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in (
        "RADConfig",
        "RARDRefiner",
        "GradNormConfig",
        "compute_gradient_norms",
        "compute_inverse_training_rates",
        "SwitchCriterion",
        "LBFGSConfig",
        "create_mode_hierarchy",
        "MultilevelFNOTrainer",
    ):
        assert f"`{name}" in text, name
