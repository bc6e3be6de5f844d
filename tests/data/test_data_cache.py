"""Cache files: keyed by all parameters, whole or absent, repaired when damaged."""

import numpy as np
import pytest

from opifex.data.cache import cache_path, cached_arrays, default_cache_dir


def counting(values):
    calls = []

    def compute():
        calls.append(1)
        return {"values": np.asarray(values)}

    return compute, calls


def test_computed_once_and_stored(tmp_path):
    compute, calls = counting([1.0, 2.0])
    for _ in range(3):
        arrays = cached_arrays("x", {"n": 2}, compute, tmp_path / "new")
        assert list(arrays) == ["values"]
        assert np.array_equal(arrays["values"], [1.0, 2.0])
    assert len(calls) == 1
    assert [p.suffix for p in (tmp_path / "new").iterdir()] == [".npz"]


def test_every_parameter_counts(tmp_path):
    paths = {cache_path("x", p, tmp_path) for p in ({"n": 1}, {"n": 2}, {"n": 1, "m": 1})}
    assert len(paths) == 3
    assert cache_path("x", {"a": 1, "b": 2}) == cache_path("x", {"b": 2, "a": 1})


@pytest.mark.parametrize("damage", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_damaged_files_are_replaced(tmp_path, damage):
    compute, calls = counting([3.0])
    cached_arrays("x", {}, compute, tmp_path)
    cache_path("x", {}, tmp_path).write_bytes(damage)
    assert cached_arrays("x", {}, compute, tmp_path)["values"] == [3.0]
    assert cached_arrays("x", {}, compute, tmp_path)["values"] == [3.0]
    assert len(calls) == 2


def test_truncated_files_are_replaced(tmp_path):
    compute, calls = counting(np.arange(1000.0))
    cached_arrays("x", {}, compute, tmp_path)
    path = cache_path("x", {}, tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    assert cached_arrays("x", {}, compute, tmp_path)["values"].size == 1000
    assert len(calls) == 2


def test_files_of_other_parameters_are_not_taken(tmp_path):
    compute, _ = counting([1.0])
    cached_arrays("x", {"n": 1}, compute, tmp_path)
    cache_path("x", {"n": 1}, tmp_path).rename(cache_path("x", {"n": 2}, tmp_path))
    other, calls = counting([2.0])
    assert cached_arrays("x", {"n": 2}, other, tmp_path)["values"] == [2.0]
    assert len(calls) == 1


def test_failure_leaves_no_file(tmp_path):
    class Unsavable:
        def __reduce__(self):
            raise RuntimeError("cannot be saved")

    def unsavable():
        return {"values": np.asarray([1.0]), "more": np.asarray([Unsavable()], object)}

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_arrays("x", {}, interrupted, tmp_path)
    with pytest.raises(RuntimeError, match="cannot be saved"):
        cached_arrays("x", {}, unsavable, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OPIFEX_CACHE_DIR", str(tmp_path / "a"))
    assert default_cache_dir() == tmp_path / "a"
    monkeypatch.delenv("OPIFEX_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_cache_dir() == tmp_path / "b" / "opifex"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir().parts[-2:] == (".cache", "opifex")
