"""Many transitions between tiny levels: nothing piles up."""

from __future__ import annotations

import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opifex.training.multilevel import CascadeTrainer, MultilevelConfig, create_network_hierarchy

X = np.linspace(-1.0, 1.0, 8, dtype=np.float32)[:, None]


def loss(model, x):
    return jnp.mean((model(x) - x) ** 2)


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmRSS")


def transitions(count: int) -> None:
    """Cascades of three levels, two transitions each."""
    for number in range(count // 2):
        models = create_network_hierarchy(1, 1, [4], num_levels=3, rngs=nnx.Rngs(number))
        config = MultilevelConfig(num_levels=3, verify_transfers=number % 50 == 0)
        trainer = CascadeTrainer(models, config=config)
        trainer.fit(loss, (X,), epochs=[1, 1, 1])
        assert len(trainer.history.transitions) == 2


def growth(warm: int, count: int) -> tuple[int, int]:
    """Arrays that are alive and bytes in use, after many transitions over after some."""
    transitions(warm)
    gc.collect()
    arrays, memory = len(jax.live_arrays()), resident_bytes()
    transitions(count)
    gc.collect()
    return len(jax.live_arrays()) - arrays, resident_bytes() - memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_is_flat():
    arrays, memory = growth(6, 14)
    assert arrays <= 0
    assert memory < 64e6  # pools of the allocator, and programs that are kept


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_is_flat_over_ten_thousand_transitions():
    arrays, memory = growth(400, 10_000)
    assert arrays <= 0
    # The same bound for 250 times as many.
    assert memory < 64e6
