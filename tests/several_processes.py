"""One of several processes that train together: ``python several_processes.py NUMBER COUNT PORT CHECK``.

A check returns what is written as JSON, the last line of the output. What more it needs stands after its
name. `started` starts processes, `finished` waits for them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from eight_devices import BATCH, NUMBER, precise, trained, variables
from opifex.training.multilevel import (
    CascadeTrainer,
    Checkpoints,
    EarlyStopping,
    Monitor,
    MultilevelAdam,
    MultilevelConfig,
    VCycle,
    create_network_hierarchy,
)
from opifex.training.placement import Placement
from opifex.training.processes import Processes

INPUTS = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
TARGETS = np.sin(INPUTS).sum(axis=1, keepdims=True)
EPOCHS = 8


def started(count: int, devices: int, *check: str, **environment: str) -> list[subprocess.Popen]:
    """So many processes with so many devices each, which find each other on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    surroundings = {
        **os.environ,
        **environment,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return [
        subprocess.Popen(
            [sys.executable, __file__, str(number), str(count), port, *check],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=surroundings,
        )
        for number in range(count)
    ]


def finished(processes: list[subprocess.Popen]) -> list:
    """What each of them has found."""
    said = [process.communicate() for process in processes]
    assert not any(process.returncode for process in processes), said
    return [json.loads(output.splitlines()[-1]) for output, _ in said]


def loss(model, inputs, targets):
    return jnp.mean((model(inputs) - targets) ** 2)


def losses(mesh, **settings):
    """Those of a cascade whose coarse level uses fewer devices than there are."""
    placement = Placement(mesh, parts=NUMBER, **settings)
    models = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
    config = MultilevelConfig(num_levels=2, placement=placement)
    trainer = CascadeTrainer(models, MultilevelAdam(1e-2), config=config)
    history = trainer.fit(
        loss,
        (INPUTS, TARGETS),
        epochs=[2, 2],
        batch_size=16,
        evaluate=lambda model: loss(model, INPUTS, TARGETS),
    )
    return [*history.losses.tolist(), history.evaluations[-1].metrics["metric"]]


def check_losses():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    return losses(mesh, model_axis="model", devices=[2, 4])


def record(trainer) -> dict:
    """What two runs may have in common: all bits, since JSON writes floats with all digits."""
    read = Processes(jax.process_count() > 1).whole
    values = [np.asarray(read(leaf)).ravel().tolist() for leaf in variables(trainer)]
    return {"losses": trainer.history.losses.tolist(), "parameters": values}


def check_run(folder=None):
    """A cascade on all devices, slow enough to be killed in the middle."""
    keeping = {}
    if folder is not None:
        keeping = {"checkpoint": Checkpoints(folder, every=0.0), "resume": "auto"}
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    slow = Monitor(every=1, callbacks=[lambda progress: time.sleep(0.1)])
    trainer = trained(
        Placement(mesh, parts=NUMBER),
        batch_size=BATCH,
        epochs=[EPOCHS, EPOCHS],
        monitor=slow,
        **keeping,
    )
    return record(trainer)


class Once:
    """Calls a function at the second look at the fine level."""

    def __init__(self, function):
        self.function = function

    def __call__(self, progress):
        if progress.level == 1 and progress.epoch == 2:
            self.function()


def check_two(folder):
    """Two processes; pieces of the parameters and the order of the samples lie on both of them."""
    # Neighbours along the model axis belong to different processes.
    mesh = Mesh(np.array(jax.devices()).reshape(2, -1).T, ("data", "model"))
    placement = Placement(mesh, model_axis="model", parts=NUMBER)

    def run(then=None, **settings):
        watching = [EarlyStopping(patience=100), *([Once(then)] if then else [])]
        monitor = Monitor(every=1, callbacks=watching)
        settings = {"batch_size": BATCH, "epochs": [2, 4], "monitor": monitor, **settings}
        return trained(placement, **settings)

    found = {"whole": record(run())}

    # A signal that one process gets ends both, and what they had done then is saved.
    def terminated():
        if jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    kept = Checkpoints(Path(folder) / "terminated", every=1e9)
    with pytest.raises(KeyboardInterrupt, match=r"all 16 steps are kept"):
        run(terminated, checkpoint=kept)
    with pytest.raises(ValueError, match="must be empty unless resume='auto'"):
        run(checkpoint=kept)
    found["terminated"] = record(run(checkpoint=kept, resume="auto"))

    # An error in all of them leaves what was saved last.
    def broken_off():
        raise ConnectionError

    kept = Checkpoints(Path(folder) / "broken off", every=0.0)
    with pytest.raises(ConnectionError):
        run(broken_off, checkpoint=kept)
    found["broken off"] = record(run(checkpoint=kept, resume="auto"))

    # A run of one process alone has nothing to do with the others, and is not kept.
    alone = Placement(Mesh(np.array(jax.local_devices()), ("data",)), parts=NUMBER)
    settings = {"batch_size": BATCH, "epochs": [1, jax.process_index()]}
    steps = trained(alone, **settings).history.num_steps
    assert steps == (1 + jax.process_index()) * len(INPUTS) // BATCH
    with pytest.raises(ValueError, match="a run that all 2 processes share"):
        trained(alone, checkpoint=kept, **settings)

    # What the first process finds wrong is an error in both.
    for damaged in kept.folder.glob("*/content/metadata"):
        damaged.write_bytes(b"{}")
    with pytest.raises(ValueError, match="holds no checkpoint that can be read"):
        run(checkpoint=kept, resume="auto")
    (Path(folder) / "file").touch()
    with pytest.raises(OSError, match="file"):
        run(checkpoint=Checkpoints(Path(folder) / "file"))
    return found


def check_cycles():
    """Losses of cycles of three levels, with parameters in pieces on both processes and without."""
    devices = np.array(jax.devices())
    across = Mesh(devices.reshape(2, -1).T, ("data", "model"))
    placements = Placement(Mesh(devices, ("data",))), Placement(across, model_axis="model")
    found = []
    for cycle in (VCycle(), VCycle(coarse="galerkin")):
        for placement in placements:
            hierarchy = create_network_hierarchy(2, 1, [8], num_levels=3, rngs=nnx.Rngs(0))
            models = [precise(model) for model in hierarchy]
            trainer = trained(placement, models=models, cycle=cycle, epochs=[2, 2, 2])
            found.append(trainer.history.losses.tolist())
    return found


if __name__ == "__main__":
    number, count, port, check, *more = sys.argv[1:]
    if count != "1":
        jax.distributed.initialize(f"localhost:{port}", int(count), int(number))
    warnings.simplefilter("ignore")
    print(json.dumps(globals()[f"check_{check}"](*more)), flush=True)
