"""Programs that are kept in a folder: found again, never wrong, and nobody else's to touch."""

import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from opifex.models import MLP
from opifex.training import program_cache
from opifex.training.loop import CompiledLoop, LoopState, owned
from opifex.training.multilevel import CascadeTrainer, MultilevelConfig
from opifex.training.objective import Objective, split_model
from opifex.training.program_cache import compiled_program, program_folder
from opifex.training.smoother import as_smoother

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu" or jax.device_count() != 1,
    reason="programs are kept for a single CPU device",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of its own, without JAX's cache, which would do the work instead."""
    monkeypatch.setenv("OPIFEX_PROGRAM_CACHE", str(tmp_path / "programs"))
    before = jax.config.values["jax_compilation_cache_dir"]
    use_jax_cache(None)
    yield tmp_path / "programs"
    use_jax_cache(before)


def use_jax_cache(path):
    jax.config.update("jax_compilation_cache_dir", path)
    compilation_cache.reset_cache()  # else JAX goes on with the folder that it has opened


def program(function=jnp.sin, *arguments):
    # Another function each time: another process would have traced it anew as well.
    fresh = jax.jit(lambda *given: function(*given), keep_unused=True)
    traced = fresh.trace(*(arguments or (jnp.arange(3.0),)))
    return traced.lower(), traced.jaxpr


def kept(folder):
    return sorted(folder.glob("*.xla"))


def compilations(monkeypatch, make):
    """How many programs XLA compiles meanwhile."""
    count = []
    lowered = type(program()[0])
    plain = lowered.compile
    monkeypatch.setattr(lowered, "compile", lambda self: count.append(1) or plain(self))
    return make(), len(count)


def test_a_program_is_compiled_once_and_then_loaded(folder, monkeypatch):
    first, compiled = compilations(monkeypatch, lambda: compiled_program(*program()))
    assert compiled == 1
    assert len(kept(folder)) == 1
    second, compiled = compilations(monkeypatch, lambda: compiled_program(*program()))
    assert compiled == 0
    x = jnp.arange(3.0) + 0.5
    assert jnp.array_equal(first(x), second(x))
    assert np.allclose(second(x), np.sin(x), rtol=1e-6)


def test_other_programs_types_and_settings_are_other_entries(folder, monkeypatch):
    for number, make in enumerate(
        [
            lambda: program(),
            lambda: program(jnp.cos),
            lambda: program(jnp.sin, jnp.arange(4.0)),
            lambda: program(jnp.sin, jnp.arange(3.0, dtype=jnp.bfloat16)),
            lambda: program(lambda x, unused: jnp.sin(x), jnp.arange(3.0), 1),
        ]
    ):
        compiled_program(*make())
        assert len(kept(folder)) == number + 1
    before = len(kept(folder))
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")
    program_cache._surroundings.cache_clear()
    try:
        compiled_program(*program())
    finally:
        monkeypatch.undo()
        program_cache._surroundings.cache_clear()
    assert len(kept(folder)) == before + 1


@pytest.mark.parametrize("content", [b"", b"opifex program 1\nrubbish", None])
def test_a_damaged_entry_is_compiled_and_replaced(folder, monkeypatch, content):
    compiled_program(*program())
    path = kept(folder)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if content is None else content)
    loaded, compiled = compilations(monkeypatch, lambda: compiled_program(*program()))
    assert compiled == 1
    assert np.allclose(loaded(jnp.ones(3)), np.sin(1), rtol=1e-6)
    assert kept(folder) == [path]
    assert len(path.read_bytes()) > len(whole) // 2


def test_the_folder_is_the_users_alone(folder, monkeypatch):
    compiled_program(*program())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(kept(folder)[0].stat().st_mode) == 0o600
    folder.chmod(0o770)  # others could have put code there
    _, compiled = compilations(monkeypatch, lambda: compiled_program(*program()))
    assert compiled == 1
    compiled_program(*program(jnp.cos))
    assert len(kept(folder)) == 1


def test_programs_that_were_not_used_for_longest_make_room(folder, monkeypatch):
    compiled_program(*program())
    old = kept(folder)[0]
    os.utime(old, (1, 1))
    compiled_program(*program(jnp.cos))
    assert old in kept(folder)
    monkeypatch.setattr(program_cache, "MOST_BYTES", int(2.5 * old.stat().st_size))
    compiled_program(*program(jnp.tanh))
    assert len(kept(folder)) == 2
    assert old not in kept(folder)


def test_what_can_not_be_kept_is_compiled(folder):
    def shouted(x):
        return jax.pure_callback(lambda y: 2 * y, jax.ShapeDtypeStruct((3,), jnp.float32), x)

    assert jnp.array_equal(compiled_program(*program(shouted))(jnp.arange(3.0)), [0, 2, 4])
    assert not kept(folder)
    compiled_program(*program(), keep=False)
    assert not kept(folder)


def test_where_programs_are_kept(folder, monkeypatch, tmp_path):
    assert program_folder() == folder
    monkeypatch.setenv("OPIFEX_PROGRAM_CACHE", "off")
    assert program_folder() is None
    monkeypatch.delenv("OPIFEX_PROGRAM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    default = program_folder()
    assert default is not None
    assert default.parts[-2:] == ("opifex", "programs")


def test_the_users_own_cache_is_used_instead(folder, tmp_path):
    use_jax_cache(str(tmp_path / "jax"))
    assert program_folder() is None
    compiled_program(*program())
    assert list((tmp_path / "jax").iterdir())
    assert not folder.exists()


def test_after_the_users_own_cache_was_unset_what_is_kept_can_run(folder, tmp_path):
    use_jax_cache(str(tmp_path / "jax"))
    compiled_program(*program())
    jax.config.update("jax_compilation_cache_dir", None)
    for _ in range(2):
        loaded = compiled_program(*program())
        assert np.allclose(loaded(jnp.ones(3)), np.sin(1), rtol=1e-6)


def test_what_jax_has_loaded_is_not_kept_again(folder, monkeypatch):
    # XLA cannot write what it has loaded: the copy would lack its functions.
    lowered, jaxpr = program()
    plain = type(lowered).compile

    def loaded_by_jax(self):
        jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
        return plain(self)

    monkeypatch.setattr(type(lowered), "compile", loaded_by_jax)
    compiled_program(lowered, jaxpr)
    assert not kept(folder)
    monkeypatch.setattr(type(lowered), "compile", plain)
    compiled_program(lowered, jaxpr)
    assert len(kept(folder)) == 1


def test_a_loaded_training_program_takes_the_same_steps(folder, monkeypatch):
    x = jnp.linspace(0, 1, 12)[:, None]

    def run():
        def loss(model, x):
            return jnp.mean((model(x) - jnp.sin(x)) ** 2)

        graphdef, params, rest = split_model(MLP(1, 1, [5], rngs=nnx.Rngs(0)))
        smoother = as_smoother(optax.adam(1e-2))
        start = LoopState.start(
            params, rest, smoother.init(params), jax.random.key(1), (x,), batch_size=4
        )
        objective = Objective(loss, graphdef, (x,))
        loop = CompiledLoop(objective, smoother, start, batch_size=4)
        return loop.run(owned(start), objective, 7)

    (first, losses, _), compiled = compilations(monkeypatch, run)
    assert compiled == 1
    assert len(kept(folder)) == 1
    (second, again, _), compiled = compilations(monkeypatch, run)
    assert compiled == 0
    assert np.array_equal(losses, again)
    for one, other in zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True):
        assert jnp.array_equal(one, other)


@pytest.mark.parametrize("keep_programs", [True, False])
def test_a_trainer_keeps_programs_where_its_settings_say_so(folder, keep_programs):
    def loss(model, x):
        return jnp.mean(model(x) ** 2)

    config = MultilevelConfig(1, level_epochs=[1], keep_programs=keep_programs)
    trainer = CascadeTrainer([MLP(1, 1, [2], rngs=nnx.Rngs(0))], config=config)
    trainer.fit(loss, (jnp.ones((3, 1)),))
    assert len(kept(folder)) == keep_programs
