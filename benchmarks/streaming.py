"""Training on fields that stay in their file: speed, and memory while the file grows a hundred times.

Both trainings are the same call of ``fit`` on a compiled program: once on arrays, of which the device
draws its batches, once on a shuffled Grain dataset of the file, whose batches a thread reads ahead.
They take turns. Seconds are those on the wall from the first step to the last, those of waiting for
batches among them. Memory is the largest that a process of its own has had, with everything in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import jax.numpy as jnp
import numpy as np
import optax
import zarr
from flax import nnx

from common import parser, write_results
from opifex.data import open_fields
from opifex.models import FNO
from opifex.training.multilevel import CascadeTrainer, History, Monitor

GRID, BLOCK = 64, 250
SAMPLES = {"speed": 2000, "memory": 250}
GROWTH = (1, 10, 100)


def loss(model: Any, inputs: Any, outputs: Any) -> Any:
    """Mean square of the error."""
    return jnp.mean((model(inputs) - outputs) ** 2)


def blocks(samples: int) -> Any:
    """Smooth random fields and their squares, a block of samples at a time."""
    rng = np.random.default_rng(0)
    points = 2 * np.pi * np.arange(GRID) / GRID
    waves = np.stack([np.sin(k * points + p) for k in (1, 2, 3) for p in (0.0, 1.0)])
    for start in range(0, samples, BLOCK):
        count = min(BLOCK, samples - start)
        factors = rng.normal(size=(count, len(waves), len(waves)))
        fields = np.einsum("nab,ax,by->nxy", factors, waves, waves).astype(np.float32)[..., None]
        yield start, start + count, fields, fields**2


def write_npz(path: Path, samples: int) -> None:
    """Uncompressed."""
    found = list(blocks(samples))
    np.savez(path, **{n: np.concatenate([b[i] for b in found]) for n, i in ARRAYS.items()})


def write_hdf5(path: Path, samples: int) -> None:
    """One chunk per sample."""
    with h5py.File(path, "w") as file:
        shape = (samples, GRID, GRID, 1)
        made = {
            n: file.create_dataset(n, shape, np.float32, chunks=(1, *shape[1:])) for n in ARRAYS
        }
        for start, stop, *arrays in blocks(samples):
            for name, array in zip(made, arrays, strict=True):
                made[name][start:stop] = array


def write_zarr(path: Path, samples: int, chunk: int = 1) -> None:
    """One sample per chunk, or more."""
    group = zarr.open_group(path, mode="w")
    for name in ARRAYS:
        group.create_array(
            name, shape=(samples, GRID, GRID, 1), dtype=np.float32, chunks=(chunk, GRID, GRID, 1)
        )
    for start, stop, *arrays in blocks(samples):
        for name, array in zip(ARRAYS, arrays, strict=True):
            group[name][start:stop] = array  # type: ignore[index]


ARRAYS = {"inputs": 2, "outputs": 3}
FORMATS: dict[str, Callable[[Path, int], None]] = {
    "fields.npz": write_npz,
    "fields.h5": write_hdf5,
    "fields.zarr": write_zarr,
    "chunks of 8.zarr": partial(write_zarr, chunk=8),
}
# Width of the Fourier operator, and the batch.
CASES = {"small batch": (2, 2), "middle": (8, 8), "large": (16, 32)}


def train(width: int, data: Any, steps: int, batch_size: int | None = None) -> History:
    """So many steps, counted in epochs that the data say."""
    model = FNO(8, width, num_layers=2, spatial_dims=2, rngs=nnx.Rngs(0))
    trainer = CascadeTrainer([model], optax.adam(1e-3))
    return trainer.fit(
        loss, data, epochs=[steps], batch_size=batch_size, monitor=Monitor(every=steps)
    )


def seconds_per_step(history: History) -> float:
    """On the wall, waiting for batches included."""
    return (history.seconds + history.read_seconds) / history.num_steps


def speed(rounds: int) -> list[dict[str, Any]]:
    """Steps a second from each format, over those in memory."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, write in FORMATS.items():
            write(Path(folder) / name, SAMPLES["speed"])
            with open_fields(Path(folder) / name) as fields:
                arrays = tuple(map(jnp.asarray, fields[:]))
                for case, (width, size) in CASES.items():
                    data, per_epoch = fields.batches(size), len(fields) // size
                    once = seconds_per_step(train(width, arrays, 1, size))
                    epochs = max(1, round(3.0 / (once * per_epoch)))
                    train(width, data, 1)
                    pairs = [
                        (
                            seconds_per_step(train(width, arrays, epochs, size)),
                            seconds_per_step(train(width, data, epochs)),
                        )
                        for _ in range(rounds)
                    ]
                    ratios = [memory / file for memory, file in pairs]
                    rows.append(
                        {
                            "format": name.removeprefix("fields."),
                            "case": f"{case}: width {width}, batches of {size}",
                            "step in memory, ms": 1e3 * median(pair[0] for pair in pairs),
                            "throughput, over that in memory": median(ratios),
                            "worst of the rounds": min(ratios),
                        }
                    )
                    print(rows[-1], flush=True)
    return rows


def memory() -> list[dict[str, Any]]:
    """The largest memory of processes that train on files of growing size, and on their arrays."""
    rows = []
    for name in ("fields.h5", "fields.zarr"):
        for growth in GROWTH:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                FORMATS[name](path, growth * SAMPLES["memory"])
                found = {
                    how: json.loads(
                        subprocess.run(
                            [sys.executable, __file__, "--measure", how, str(path)],
                            check=True,
                            capture_output=True,
                            text=True,
                        ).stdout.splitlines()[-1]
                    )
                    for how in ("file", "memory")
                }
            megabytes = growth * SAMPLES["memory"] * GRID**2 * 2 * 4 / 1e6
            rows.append(
                {
                    "format": name.partition(".")[2],
                    "data, MB": megabytes,
                    "largest memory, from the file, MB": found["file"],
                    "largest memory, in memory, MB": found["memory"],
                }
            )
            print(rows[-1], flush=True)
    return rows


def measure(how: str, path: str) -> None:
    """What a process of its own does."""
    steps, size = 400, 8
    with open_fields(path) as fields:
        if how == "file":
            train(4, fields.batches(size), max(1, steps * size // len(fields)))
        else:
            arrays = tuple(map(jnp.asarray, fields[:]))
            train(4, arrays, max(1, steps * size // len(fields)), size)
    # Not that of getrusage, which counts the process that started this one.
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    ]
    print(int(line.split()[1]) * 1024 / 1e6)


def main() -> None:
    """Both parts."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--measure", nargs=2, help="used by itself")
    given = options.parse_args()
    if given.measure:
        measure(*given.measure)
        return
    write_results("streaming", speed=speed(given.rounds), memory=memory())


if __name__ == "__main__":
    main()
