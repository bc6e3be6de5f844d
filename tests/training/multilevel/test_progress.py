"""What ``Monitor(progress=True)`` shows on a terminal, and through a pipe."""

import io

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

from opifex.training.multilevel import (
    CascadeTrainer,
    LevelProgress,
    Monitor,
    VCycle,
    create_network_hierarchy,
)
from opifex.training.multilevel.progress import duration, progress_display


class Counter(nnx.Module):
    """One parameter, which every step raises by one."""

    def __init__(self):
        self.value = nnx.Param(jnp.zeros(()))


def count(model):
    return -model.value[...]


def value(model):
    return model.value[...]


def progress(**changes):
    known = {
        "level": 1,
        "num_levels": 3,
        "cycle": 0,
        "epoch": 20,
        "max_epochs": 40,
        "losses": np.array([2.0, 0.5]),
        "steps_per_epoch": 1,
        "metrics": {"error": 0.25},
        "get_model": lambda: None,
        "step_work": lambda level: 1.0,
        "steps_per_second": 10.0,
        "seconds_left": 125.0,
    }
    return LevelProgress(**{**known, **changes})


def shown(act, *, terminal=False, width=160):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width)
    with progress_display(Monitor(progress=True), 3, console) as monitor:
        act(monitor.observers[-1])
    return out.getvalue()


def test_through_a_pipe_there_is_one_plain_line_per_interval():
    trainer = CascadeTrainer([Counter(), Counter()], optax.sgd(1.0))
    out = io.StringIO()
    with progress_display(Monitor(every=2, progress=True), 2, Console(file=out)) as monitor:
        trainer.fit(count, epochs=[4, 2], evaluate=value, monitor=monitor)
    lines = out.getvalue().splitlines()
    assert [line.split("  loss")[0] for line in lines] == [
        "compiling level 0 of 0..1",
        "level 0 of 0..1  epoch 2/4",
        "level 0 of 0..1  epoch 4/4",
        "compiling level 1 of 0..1",
        "level 1 of 0..1  epoch 2/2",
    ]
    assert "loss -1.000e+00  value 2.000e+00" in lines[1]
    assert lines[1].endswith(" left")
    assert "steps/s" in lines[1]
    assert "\x1b" not in out.getvalue()


def test_a_line_holds_everything_however_narrow_the_output_is():
    line = shown(lambda display: display.on_progress(progress()), width=20)
    assert line == (
        "level 1 of 0..2  epoch 20/40  loss 5.000e-01  error 2.500e-01  10 steps/s  2:05 min left\n"
    )


def test_a_terminal_says_what_it_waits_for():
    text = shown(lambda display: display.on_phase("compiling", 2), terminal=True)
    assert "compiling level 2" in text


def test_a_terminal_shows_a_bar_per_level():
    def act(display):
        display.on_phase("training", 1)
        display.on_progress(progress())

    text = shown(act, terminal=True)
    for part in ("level 1 of 0..2", "20/40", "loss 5.000e-01", "error 2.500e-01", "10 steps/s"):
        assert part in text


def test_a_narrow_terminal_cuts_nothing_off():
    text = shown(lambda display: display.on_progress(progress()), terminal=True, width=80)
    assert "error 2.500e-01" in text
    assert "…" not in text


def test_without_progress_nothing_is_shown():
    plain = Monitor()
    with progress_display(plain, 3) as monitor:
        assert monitor is plain


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "under 1 s"),
        (8.4, "8 s"),
        (59.4, "59 s"),
        (125, "2:05 min"),
        (7199, "1:59 h"),
        (7800, "2:10 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_time_left_is_that_of_all_planned_steps():
    seen = []
    trainer = CascadeTrainer([Counter(), Counter()], optax.sgd(1.0))
    monitor = Monitor(every=5, callbacks=[seen.append])
    trainer.fit(count, epochs=[10, 20], monitor=monitor)
    for now in seen:
        if now.level == 0:  # equal models: a step of level 1 costs as much
            steps = 10 - now.epoch + 20
            assert now.seconds_left == pytest.approx(steps / now.steps_per_second)
    assert seen[-1].seconds_left == 0
    assert [now.last for now in seen] == [False, True, False, False, False, True]


def test_the_time_left_counts_the_visits_of_a_cycle():
    seen = []
    models = create_network_hierarchy(1, 1, [4], num_levels=2, rngs=nnx.Rngs(0))
    x = jnp.linspace(-1, 1, 8)[:, None]
    CascadeTrainer(models).fit(
        lambda model: jnp.mean((model(x) - x) ** 2),
        cycle=VCycle(cycles=2, pre=1, post=1, coarsest=3),
        monitor=Monitor(every=3, callbacks=[seen.append]),
    )
    assert [(now.level, now.correcting, now.last) for now in seen] == [
        (1, False, False),
        (0, True, False),
        (1, False, False),
        (1, False, False),
        (0, True, False),
        (1, False, True),
    ]
    left = [now.seconds_left for now in seen]
    assert left[-1] == 0
    assert all(seconds > 0 for seconds in left[:-1])
