"""Cases of the PINNacle suite (arXiv:2306.08827), stated for this package.

A condition of a statement is a residual term of weight ten, a noisy measurement one of weight a
hundredth, an equation one of weight one, in every case; without noise, what the terms weigh in the end
is computed (`JacobianBalancing`). Points are spread over the whole domain and its boundary by one rule.

References: analytic solutions, or those of `references/` (their errors are in the files). ``best`` is
the lowest mean error of the paper's table 3, over all methods that it lists (from memory of the table
and a public summary of it; where they differ, the lower number).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import qmc

from opifex.core import ResidualTerm
from opifex.core.physics import (
    directional_derivatives,
    gradient,
    hessian_diagonal,
    laplacian,
)
from opifex.problems import Box, Burgers, PlanarRegion, grid_points, interior_points

Model = Callable[[Array], Array]
Reference = tuple[np.ndarray, np.ndarray]
PI = np.pi
CONDITION, MEASUREMENT = 10.0, 0.01
NOISE = 0.1  # of measurements
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A statement, where it is enforced and what it is judged by.

    Attributes:
        name: as in the suite.
        box: around the domain, for the scaling of inputs.
        outputs: number of unknown functions.
        terms: residual terms.
        points: from a seed and a number of points for the equation to one array per term.
        reference: points and values there.
        best: the lowest published error.
        equations: components of the first term.
        linear: whether the residuals are linear in the unknown functions.
        evolution: initial values, residual at both ends (or ``"periodic"``) and highest derivative in
            space, if the first term is an evolution equation in one space dimension.
        noise: standard deviation of the noise of measurements, if the second term has them.
    """

    name: str
    box: Box
    outputs: int
    terms: tuple[ResidualTerm, ...]
    points: Callable[[int, int], tuple[Array, ...]]
    reference: Callable[[], Reference]
    best: float
    equations: int = 1
    linear: bool = True
    evolution: tuple[Callable[[Array], Array], Any, int] | None = None
    noise: float = 0.0


def condition(name: str, residual: Callable[[Model, Array], Array]) -> ResidualTerm:
    """A boundary or initial condition."""
    return ResidualTerm(name, residual, CONDITION)


def inside(box: Box, seed: int, count: int) -> np.ndarray:
    """Sobol points of a box."""
    return np.asarray(interior_points(count, box, key=jax.random.key(seed), method="sobol"))


def faces(box: Box, seed: int, count: int, sides: Sequence[tuple[int, int]]) -> np.ndarray:
    """Points on faces ``(axis, 0 or 1)`` of a box: evenly spaced on lines, else Sobol points."""
    pieces = []
    for number, (axis, side) in enumerate(sides):
        if box.dim == 2:
            unit = (np.arange(count)[:, None] + 0.5) / count
        else:
            unit = qmc.Sobol(box.dim - 1, seed=1000 * seed + number).random(count)
        pieces.append(box.scale(np.insert(unit, axis, float(side), axis=1)))
    return np.concatenate(pieces)


def at(u: Model, component: int) -> Model:
    """One component of a vector of functions."""
    return lambda x: u(x)[component]


def from_file(name: str, values: str = "values") -> Callable[[], Reference]:
    """A reference that `references/` has computed."""

    def read() -> Reference:
        with np.load(HERE / "references" / f"{name}.npz") as stored:
            return stored["points"], stored[values]

    return read


def analytic(solution: Callable[[Array], Array], points: Callable[[], np.ndarray]) -> Callable:
    """A reference from a formula."""

    def values() -> Reference:
        where = points()
        exact = np.asarray(solution(jnp.asarray(where)))
        return where, exact.reshape(len(where), -1)

    return values


def burgers() -> Case:
    """u_t + u u_x = (0.01 / pi) u_xx."""
    box = Box((-1.0, 0.0), (1.0, 1.0))

    def equation(u: Model, x: Array) -> Array:
        slopes = gradient(u)(x)
        return slopes[1] + u(x)[0] * slopes[0] - 0.01 / PI * hessian_diagonal(u)(x)[0]

    def points(seed: int, count: int) -> tuple[Array, ...]:
        side = count // 16
        start = faces(box, seed, 2 * side, [(1, 0)])
        return inside(box, seed, count), start, faces(box, seed, side, [(0, 0), (0, 1)])

    return Case(
        "Burgers1d-C",
        box,
        1,
        (
            ResidualTerm("equation", equation),
            condition("start", lambda u, x: u(x)[0] + jnp.sin(PI * x[0])),
            condition("ends", lambda u, x: u(x)[0]),
        ),
        points,
        analytic(Burgers().exact, lambda: np.asarray(grid_points([201, 101], box))),
        1.43e-2,
        linear=False,
        evolution=(lambda x: -jnp.sin(PI * x), lambda u, x: u(x)[0], 2),
    )


def kuramoto_sivashinsky() -> Case:
    """u_t + 100/16 u u_x + 100/16^2 u_xx + 100/16^4 u_xxxx = 0, periodic."""
    box = Box((0.0, 0.0), (2 * PI, 1.0))

    def equation(u: Model, x: Array) -> Array:
        v, v_x, v_xx, _, v_xxxx = directional_derivatives(u, jnp.array([1.0, 0.0]), 4)(x)
        _, v_t = directional_derivatives(u, jnp.array([0.0, 1.0]), 1)(x)
        return v_t + 100 / 16 * v * v_x + 100 / 16**2 * v_xx + 100 / 16**4 * v_xxxx

    def points(seed: int, count: int) -> tuple[Array, ...]:
        start = faces(box, seed, count // 8, [(1, 0)])
        return inside(box, seed, count), start, faces(box, seed, count // 16, [(0, 0)])

    def jumps(u: Model, x: Array) -> Array:
        across = directional_derivatives(u, jnp.array([1.0, 0.0]), 3)
        return jnp.stack(across(x)) - jnp.stack(across(x.at[0].add(2 * PI)))

    def initial(x: Array) -> Array:
        return jnp.cos(x) * (1 + jnp.sin(x))

    return Case(
        "KS",
        box,
        1,
        (
            ResidualTerm("equation", equation),
            condition("start", lambda u, x: u(x)[0] - initial(x[0])),
            condition("period", jumps),
        ),
        points,
        from_file("kuramoto_sivashinsky"),
        9.52e-1,
        linear=False,
        evolution=(initial, "periodic", 4),
    )


def plate(half_width: float, discs: Sequence[tuple[float, float, float]]) -> PlanarRegion:
    """A square around the origin without discs ``(x, y, radius)``."""
    region = PlanarRegion.box((-half_width,) * 2, (half_width,) * 2)
    for x, y, radius in discs:
        region -= PlanarRegion.disc((x, y), radius)
    return region


def on_plate(region: PlanarRegion) -> Callable[[int, int], tuple[Array, ...]]:
    """Points for an equation, the outer square and the discs in it."""
    edge = region.bounds.upper[0] * (1 - 1e-9)

    def outer(points: np.ndarray) -> np.ndarray:
        return np.abs(points).max(axis=1) > edge

    def points(seed: int, count: int) -> tuple[Array, ...]:
        return (
            region.interior_points(count, key=jax.random.key(seed)),
            region.boundary_points(count // 5, where=outer).points,
            region.boundary_points(count // 5, where=lambda p: ~outer(p)).points,
        )

    return points


def poisson_classic() -> Case:
    """Laplace's equation on a square without four discs."""
    region = plate(0.5, [(x, y, 0.1) for x in (-0.3, 0.3) for y in (-0.3, 0.3)])
    return Case(
        "Poisson2d-C",
        region.bounds,
        1,
        (
            ResidualTerm("equation", lambda u, x: laplacian(u)(x)),
            condition("square", lambda u, x: u(x)[0] - 1),
            condition("discs", lambda u, x: u(x)[0]),
        ),
        on_plate(region),
        from_file("poisson2d_c"),
        1.23e-2,
    )


def poisson_boltzmann() -> Case:
    """-Laplace u + 64 u = f on a square without four discs."""
    region = plate(1.0, [(0.5, 0.5, 0.2), (0.4, -0.4, 0.4), (-0.2, -0.7, 0.1), (-0.6, 0.5, 0.3)])

    def source(x: Array) -> Array:
        return 10 * (17 + x @ x) * jnp.sin(PI * x[0]) * jnp.sin(4 * PI * x[1])

    return Case(
        "Poisson2d-CG",
        region.bounds,
        1,
        (
            ResidualTerm("equation", lambda u, x: -laplacian(u)(x) + 64 * u(x)[0] - source(x)),
            condition("square", lambda u, x: u(x)[0] - 0.2),
            condition("discs", lambda u, x: u(x)[0] - 1),
        ),
        on_plate(region),
        from_file("poisson2d_cg"),
        1.43e-2,
    )


def poisson_blocks() -> Case:
    """Laplace u = -f / a with a and f that jump between 25 blocks, du/dn = -u on the boundary."""
    box, region = Box((-10.0, -10.0), (10.0, 10.0)), plate(10.0, [])
    with np.load(HERE / "references" / "poisson2d_ms.npz") as stored:
        scale, source = stored["a"], stored["c"]

    def equation(u: Model, x: Array) -> Array:
        place = (x + 10) / 4
        i, j = jnp.clip(jnp.floor(place), 0, 4).astype(int)
        s, t = place - jnp.stack([i, j])
        constant, wave = jnp.asarray(source)[i, j]
        force = constant + wave * jnp.sin(PI * s) * jnp.sin(PI * t)
        return jnp.asarray(scale)[i, j] * laplacian(u)(x) + force

    def points(seed: int, count: int) -> tuple[Array, ...]:
        return inside(box, seed, count), jnp.hstack(region.boundary_points(count // 4))

    return Case(
        "Poisson2d-MS",
        box,
        1,
        (
            ResidualTerm("equation", equation),
            condition("boundary", lambda u, row: gradient(u)(row[:2]) @ row[2:] + u(row[:2])[0]),
        ),
        points,
        from_file("poisson2d_ms"),
        5.9e-1,
    )


def heat_multiscale() -> Case:
    """u_t = u_xx / (500 pi)^2 + u_yy / pi^2 with ten waves across and a half one along."""
    box = Box((0.0, 0.0, 0.0), (1.0, 1.0, 5.0))

    def solution(x: Array) -> Array:
        decay = jnp.exp(-((20 / 500) ** 2 + 1) * x[..., 2])
        return jnp.sin(20 * PI * x[..., 0]) * jnp.sin(PI * x[..., 1]) * decay

    def equation(u: Model, x: Array) -> Array:
        second = hessian_diagonal(u)(x)
        return gradient(u)(x)[2] - second[0] / (500 * PI) ** 2 - second[1] / PI**2

    def points(seed: int, count: int) -> tuple[Array, ...]:
        sides = faces(box, seed, count // 12, [(axis, side) for axis in (0, 1) for side in (0, 1)])
        return inside(box, seed, count), faces(box, seed, count // 3, [(2, 0)]), sides

    return Case(
        "Heat2d-MS",
        box,
        1,
        (
            ResidualTerm("equation", equation),
            condition("start", lambda u, x: u(x)[0] - solution(x)),
            condition("sides", lambda u, x: u(x)[0]),
        ),
        points,
        analytic(solution, lambda: inside(box, 10**6, 2**14)),
        4.4e-2,
    )


def navier_stokes(u: Model, x: Array) -> Array:
    """Both momenta and the divergence, of velocity and pressure, viscosity 0.01."""
    value, slopes = u(x), jax.jacfwd(u)(x)
    friction = 0.01 * jnp.stack([laplacian(at(u, 0))(x), laplacian(at(u, 1))(x)])
    momentum = slopes[:2] @ value[:2] + slopes[2] - friction
    return jnp.append(momentum, slopes[0, 0] + slopes[1, 1])


def velocity(u: Model, row: Array) -> Array:
    """The velocity less the given one, of which the row holds the first component."""
    return u(row[:2])[:2] - jnp.stack([row[2], 0 * row[2]])


def cavity() -> Case:
    """A steady flow in the unit square under a moving lid."""
    box = Box((0.0, 0.0), (1.0, 1.0))

    def points(seed: int, count: int) -> tuple[Array, ...]:
        side = count // 8
        lid = faces(box, seed, side, [(1, 1)])
        walls = faces(box, seed, side, [(0, 0), (0, 1), (1, 0)])
        edge = np.concatenate([lid, walls])
        given = np.where(edge[:, 1] == 1, 4 * edge[:, 0] * (1 - edge[:, 0]), 0.0)
        return inside(box, seed, count), np.column_stack([edge, given]), np.zeros((1, 2))

    return Case(
        "NS2d-C",
        box,
        3,
        (
            ResidualTerm("flow", navier_stokes),
            condition("walls", velocity),
            condition("pressure", lambda u, x: u(x)[2]),
        ),
        points,
        from_file("ns2d_c"),
        3.6e-2,
        equations=3,
        linear=False,
    )


def backward_step() -> Case:
    """A steady flow over a backward step, normal to the outlet.

    The suite gives the pressure there, and nothing for the velocity, which leaves it open.
    """
    region = PlanarRegion.box((0, 0), (4, 2)) - PlanarRegion.box((-1, 1), (2, 3))

    def points(seed: int, count: int) -> tuple[Array, ...]:
        outlet = region.boundary_points(count // 8, where=lambda p: p[:, 0] > 4 - 1e-9).points
        walls = np.asarray(
            region.boundary_points(count // 2, where=lambda p: p[:, 0] < 4 - 1e-9).points
        )
        given = np.where(walls[:, 0] < 1e-9, 4 * walls[:, 1] * (1 - walls[:, 1]), 0.0)
        interior = region.interior_points(count, key=jax.random.key(seed))
        return interior, np.column_stack([walls, given]), outlet

    return Case(
        "NS2d-CG",
        region.bounds,
        3,
        (
            ResidualTerm("flow", navier_stokes),
            condition("walls", velocity),
            condition("outlet", lambda u, x: u(x)[1:]),
        ),
        points,
        from_file("ns2d_cg", "values_normal_flow"),
        8.24e-2,
        equations=3,
        linear=False,
    )


def wave() -> Case:
    """u_tt = 4 u_xx, two standing waves."""
    box = Box((0.0, 0.0), (1.0, 1.0))

    def solution(x: Array) -> Array:
        slow = jnp.sin(PI * x[..., 0]) * jnp.cos(2 * PI * x[..., 1])
        return slow + 0.5 * jnp.sin(4 * PI * x[..., 0]) * jnp.cos(8 * PI * x[..., 1])

    def equation(u: Model, x: Array) -> Array:
        second = hessian_diagonal(u)(x)
        return second[1] - 4 * second[0]

    def points(seed: int, count: int) -> tuple[Array, ...]:
        start = faces(box, seed, count // 8, [(1, 0)])
        ends = faces(box, seed, count // 8, [(0, 0), (0, 1)])
        return inside(box, seed, count), np.concatenate([start, ends]), start

    return Case(
        "Wave1d-C",
        box,
        1,
        (
            ResidualTerm("equation", equation),
            condition("values", lambda u, x: u(x)[0] - solution(x)),
            condition("speed", lambda u, x: gradient(u)(x)[1]),
        ),
        points,
        analytic(solution, lambda: np.asarray(grid_points([101, 101], box))),
        9.79e-2,
    )


def poisson_5d() -> Case:
    """Poisson's equation in five dimensions."""
    box = Box((0.0,) * 5, (1.0,) * 5)

    def solution(x: Array) -> Array:
        return jnp.sum(jnp.sin(PI / 2 * x), axis=-1)

    def points(seed: int, count: int) -> tuple[Array, ...]:
        sides = [(axis, side) for axis in range(5) for side in (0, 1)]
        return inside(box, seed, count), faces(box, seed, count // 10, sides)

    return Case(
        "PNd",
        box,
        1,
        (
            ResidualTerm("equation", lambda u, x: laplacian(u)(x) + PI**2 / 4 * solution(x)),
            condition("boundary", lambda u, x: u(x)[0] - solution(x)),
        ),
        points,
        analytic(solution, lambda: inside(box, 10**6, 2**14)),
        4.67e-4,
    )


def ball(seed: int, count: int, *, surface: bool = False) -> np.ndarray:
    """Points of the unit ball in five dimensions, with times in [0, 1] behind."""
    draw = qmc.Sobol(7, seed=seed).random(count)
    direction = np.asarray(jax.scipy.stats.norm.ppf(jnp.clip(draw[:, :5], 1e-9, 1 - 1e-9)))
    direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    radius = 1.0 if surface else draw[:, 5:6] ** (1 / 5)
    return np.column_stack([radius * direction, draw[:, 6]])


def heat_5d() -> Case:
    """The heat equation in a ball of five dimensions, flux given."""
    box = Box((-1.0,) * 5 + (0.0,), (1.0,) * 6)

    def solution(x: Array) -> Array:
        return jnp.exp(jnp.sum(x[..., :-1] ** 2, axis=-1) / 2 + x[..., -1])

    def equation(u: Model, x: Array) -> Array:
        second, square = hessian_diagonal(u)(x), x[:-1] @ x[:-1]
        return jnp.sum(second[:-1]) / 5 - square / 5 * solution(x) - gradient(u)(x)[-1]

    def points(seed: int, count: int) -> tuple[Array, ...]:
        start = ball(seed + 1, count // 3)
        start[:, -1] = 0.0
        return ball(seed, count), ball(seed + 2, count // 3, surface=True), start

    return Case(
        "HNd",
        box,
        1,
        (
            ResidualTerm("equation", equation),
            condition("flux", lambda u, x: gradient(u)(x)[:-1] @ x[:-1] - solution(x)),
            condition("start", lambda u, x: u(x)[0] - solution(x)),
        ),
        points,
        analytic(solution, lambda: ball(10**6, 2**14)),
        1.19e-4,
    )


@cache
def noise(seed: int) -> np.ndarray:
    """The noise of the suite's measurements: 2500 numbers, standard deviation 0.1."""
    return np.random.default_rng(seed).normal(0.0, NOISE, 2500)


def measured(u: Model, row: Array) -> Array:
    """The first function less the measurement, the last entry of the row."""
    return u(row[:-1])[0] - row[-1]


def diffusion(w: Model, x: Array, dims: int) -> Array:
    """div(a grad u) over the first coordinates, of functions u and a."""
    slopes = jax.jacfwd(w)(x)[:, :dims]
    return slopes[0] @ slopes[1] + w(x)[1] * jnp.sum(hessian_diagonal(at(w, 0))(x)[:dims])


def poisson_inverse() -> Case:
    """div(a grad u) = -f, u measured with noise, a unknown but on the boundary."""
    box = Box((0.0, 0.0), (1.0, 1.0))

    def solution(x: Array) -> Array:
        x, y = x[..., 0], x[..., 1]
        return jnp.stack(
            [
                jnp.sin(PI * x) * jnp.sin(PI * y),
                1 / (1 + x**2 + y**2 + (x - 1) ** 2 + (y - 1) ** 2),
            ],
            axis=-1,
        )

    def points(seed: int, count: int) -> tuple[Array, ...]:
        where = np.asarray(grid_points([50, 50], box))
        values = np.asarray(solution(where))[:, 0] + noise(seed)
        sides = faces(box, seed, count // 16, [(axis, side) for axis in (0, 1) for side in (0, 1)])
        return inside(box, seed, count), np.column_stack([where, values]), sides

    return Case(
        "PInv",
        box,
        2,
        (
            ResidualTerm("equation", lambda w, x: diffusion(w, x, 2) - diffusion(solution, x, 2)),
            ResidualTerm("measurements", measured, MEASUREMENT),
            condition("coefficient", lambda w, x: w(x)[1] - solution(x)[1]),
        ),
        points,
        analytic(solution, lambda: inside(box, 10**6, 2**14)),
        1.96e-2,
        linear=False,
        noise=NOISE,
    )


def heat_inverse() -> Case:
    """u_t - div(a grad u) = f, u measured with noise, a unknown but on the boundary, and steady."""
    box = Box((-1.0, -1.0, 0.0), (1.0, 1.0, 1.0))

    def solution(x: Array) -> Array:
        waves = jnp.sin(PI * x[..., 0]) * jnp.sin(PI * x[..., 1])
        return jnp.stack([jnp.exp(-x[..., 2]) * waves, 2 + waves], axis=-1)

    def balance(w: Model, x: Array) -> Array:
        return jax.jacfwd(at(w, 0))(x)[2] - diffusion(w, x, 2)

    def points(seed: int, count: int) -> tuple[Array, ...]:
        where = inside(box, seed + 50, 2500)
        values = np.asarray(solution(where))[:, 0] + noise(seed)
        sides = faces(box, seed, count // 16, [(axis, side) for axis in (0, 1) for side in (0, 1)])
        interior = inside(box, seed, count)
        return interior, np.column_stack([where, values]), sides, interior[: count // 2]

    return Case(
        "HInv",
        box,
        2,
        (
            ResidualTerm("equation", lambda w, x: balance(w, x) - balance(solution, x)),
            ResidualTerm("measurements", measured, MEASUREMENT),
            condition("coefficient", lambda w, x: w(x)[1] - solution(x)[1]),
            condition("steady", lambda w, x: jax.jacfwd(at(w, 1))(x)[2]),
        ),
        points,
        analytic(solution, lambda: inside(box, 10**6, 2**14)),
        1.19e-2,
        linear=False,
        noise=NOISE,
    )


CASES: dict[str, Callable[[], Case]] = {
    "Burgers1d-C": burgers,
    "KS": kuramoto_sivashinsky,
    "Poisson2d-C": poisson_classic,
    "Poisson2d-CG": poisson_boltzmann,
    "Poisson2d-MS": poisson_blocks,
    "Heat2d-MS": heat_multiscale,
    "NS2d-C": cavity,
    "NS2d-CG": backward_step,
    "Wave1d-C": wave,
    "PNd": poisson_5d,
    "HNd": heat_5d,
    "PInv": poisson_inverse,
    "HInv": heat_inverse,
}
