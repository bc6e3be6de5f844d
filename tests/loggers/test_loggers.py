"""Loggers: rows arrive where they are to be read, in files that others can read."""

from __future__ import annotations

import io
import sys

import jax.numpy as jnp
import pytest
from flax import nnx

from opifex.loggers import (
    ConsoleLogger,
    Logger,
    MLflowLogger,
    Reporter,
    RunInfo,
    TableLogger,
    TensorBoardLogger,
    TrackioLogger,
    WandbLogger,
)
from opifex.loggers.table_files import read_rows
from opifex.training.multilevel import CascadeTrainer, Monitor, create_network_hierarchy

INFO = RunInfo("name", "project", {"optimizer.name": "adam", "seeds": [0]})
ROWS = [(1, {"step": 1, "level": 0, "loss": 0.5}), (3, {"step": 3, "level": 1, "loss": 0.25})]


def logged(logger, rows=ROWS, outcome="finished"):
    logger.open(INFO)
    for step, row in rows:
        logger.log(step, row)
    logger.close(outcome)


class Remembering:
    def __init__(self):
        self.calls = []

    def open(self, info):
        self.calls.append(info)

    def log(self, step, row):
        self.calls.append((step, dict(row)))

    def close(self, outcome):
        self.calls.append(outcome)


def loss(model, x):
    return jnp.mean((model(x) - x) ** 2)


def fit(*loggers, epochs=(2, 4), callbacks=()):
    models = create_network_hierarchy(1, 1, [4], num_levels=2, rngs=nnx.Rngs(0))
    trainer = CascadeTrainer(models)
    with Reporter(loggers, trainer.history, INFO) as report:
        trainer.fit(
            loss,
            (jnp.linspace(-1, 1, 8)[:, None],),
            epochs=list(epochs),
            evaluate=lambda model: {"error": model(jnp.ones(1))[0] ** 2},
            monitor=Monitor(every=2, callbacks=[report, *callbacks]),
        )
    return trainer.history


def test_console_prints_one_plain_line_per_row():
    stream = io.StringIO()
    logged(ConsoleLogger(stream))
    assert stream.getvalue().splitlines() == [
        "run name",
        "step 1  level 0  loss 5.000e-01",
        "step 3  level 1  loss 2.500e-01",
        "finished",
    ]


def test_table_is_on_disk_after_every_row_and_in_parquet_at_the_end(tmp_path):
    pandas = pytest.importorskip("pandas")
    logger = TableLogger(tmp_path)
    logger.open(INFO)
    for count, (step, row) in enumerate(ROWS, 1):
        logger.log(step, row)
        assert len(read_rows(tmp_path / "metrics.csv")) == count
    assert not (tmp_path / "metrics.parquet").exists()
    logger.close("interrupted")
    table = pandas.read_parquet(tmp_path / "metrics.parquet")
    assert table.to_dict("records") == [row for _, row in ROWS]
    assert read_rows(tmp_path / "metrics.csv") == [row for _, row in ROWS]


def test_columns_may_appear_later(tmp_path):
    rows = [(1, {"step": 1, "loss": 0.5}), (2, {"step": 2, "loss": 0.25, "error": 0.125})]
    logged(TableLogger(tmp_path), rows)
    assert read_rows(tmp_path / "metrics.csv") == [row for _, row in rows]


def test_a_table_that_cannot_be_written_anew_stays_as_it_is(tmp_path, monkeypatch):
    logged(TableLogger(tmp_path))

    def fail(*_):
        raise OSError("no space left on device")

    again = TableLogger(tmp_path, keep_until=1)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="no space"):
            again.open(INFO)
    assert read_rows(tmp_path / "metrics.csv") == [row for _, row in ROWS]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("keep_until", "steps"), [(None, [5]), (0, [5]), (1, [1, 5]), (3, [1, 3, 5])]
)
def test_a_resumed_table_keeps_the_rows_before_the_state(tmp_path, keep_until, steps):
    logged(TableLogger(tmp_path))
    again = [(5, {"step": 5, "level": 1, "loss": 0.125})]
    logged(TableLogger(tmp_path, keep_until=keep_until), again)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.csv")] == steps


def test_tensorboard_events_can_be_read_back(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    logged(TensorBoardLogger(tmp_path))
    (path,) = tmp_path.iterdir()
    content, values, at = path.read_bytes(), [], 0
    while at < len(content):  # length, its checksum, the record, its checksum
        length = int.from_bytes(content[at : at + 8], "little")
        event = Event.FromString(content[at + 12 : at + 12 + length])
        values += [
            (event.step, value.tag, value.simple_value)
            for value in event.summary.value
            if value.HasField("simple_value")
        ]
        at += length + 16
    assert values == [
        (step, name, row[name]) for step, row in ROWS for name in row if name != "step"
    ]


def test_reporter_makes_rows_of_a_run():
    logger = Remembering()
    history = fit(logger)
    info, *rows, outcome = logger.calls
    assert (info, outcome) == (INFO, "finished")
    assert [(step, row["level"], row["epoch"]) for step, row in rows] == [
        (2, 0, 2),
        (4, 1, 2),
        (6, 1, 4),
    ]
    last = rows[-1][1]
    assert last["error"] == history.evaluations[-1].metrics["error"]
    assert last["loss"] == history.losses[-1]
    assert last["work"] == pytest.approx(history.work)
    assert 0 < last["seconds"] <= last["elapsed_seconds"] <= history.wall_seconds


@pytest.mark.parametrize(
    ("error", "outcome"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")]
)
def test_loggers_are_closed_whatever_ends_the_run(error, outcome):
    def end(progress):
        raise error

    logger = Remembering()
    with pytest.raises(error):
        fit(logger, callbacks=[end])
    assert logger.calls[-1] == outcome
    assert len(logger.calls) == 3


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("trackio", lambda folder: TrackioLogger()),
        ("wandb", WandbLogger),
        ("mlflow", MLflowLogger),
        ("tensorboardX", TensorBoardLogger),
        ("pyarrow", TableLogger),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path, name, make):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{name}.*pip install 'opifex-multilevel\["):
        make(tmp_path)


def test_all_are_loggers(tmp_path):
    assert isinstance(ConsoleLogger(), Logger)
    assert isinstance(TableLogger(tmp_path), Logger)
    assert not isinstance(object(), Logger)


def test_mlflow_keeps_rows_in_a_file(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    logged(MLflowLogger(tmp_path), outcome="interrupted")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("project")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert run.data.params["optimizer.name"] == "adam"
    found = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
    assert found == [(step, row["loss"]) for step, row in ROWS]


def test_wandb_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged(WandbLogger(tmp_path))
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert next(run.glob("run-*.wandb")).stat().st_size > 0


def test_wandb_refuses_an_unknown_mode(tmp_path):
    with pytest.raises(ValueError, match="mode must be one of"):
        WandbLogger(tmp_path, mode="of")


def test_trackio_keeps_rows_on_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    logged(TrackioLogger())
    (run,) = trackio.Api().runs("project")
    assert run.name == "name"
