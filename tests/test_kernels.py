"""Compiled loops run wherever they are installed: with a cache where a folder can be written, without one elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

numba = pytest.importorskip("numba")

from numba.core.caching import _CacheLocator  # noqa: E402

from ehrctx import kernels  # noqa: E402


@pytest.fixture
def nowhere_to_write(monkeypatch):
    """As in a container: numba finds no folder that it can write. (Root could write everywhere.)"""

    def refuse(self):
        raise PermissionError("read-only")

    monkeypatch.setattr(_CacheLocator, "ensure_cache_path", refuse)
    kernels._warn_that_nothing_is_kept.cache_clear()


def twice(x):
    return x + x


def test_a_kernel_is_kept_in_the_folder_that_the_user_names(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert kernels.kernel(nogil=True)(twice)(21) == 42
    assert list(tmp_path.rglob("*.nbi"))


def test_without_a_folder_a_kernel_is_compiled_anew(nowhere_to_write, caplog):
    assert kernels.kernel(nogil=True)(twice)(21) == 42
    assert kernels.kernel()(twice)(1.5) == 3.0
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once for all kernels
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_another_mistake_is_not_hidden(monkeypatch):
    def fail(**options):
        raise RuntimeError("something else")

    monkeypatch.setattr(kernels, "njit", fail)
    with pytest.raises(RuntimeError, match="something else"):
        kernels.kernel()(twice)


EVERY_MODULE = """
import importlib, sys
from pathlib import Path
import numpy as np
from numba.core.caching import _CacheLocator

def refuse(self):
    raise PermissionError

_CacheLocator.ensure_cache_path = refuse
modules = {}
for file in sorted(Path("ehrctx").rglob("*_numba.py")):
    name = ".".join(file.with_suffix("").parts)
    modules[file.stem] = importlib.import_module(name)
print(*modules)
modules["hashing_numba"].factorize(np.array([7, 7, 9]))
y, p, order, weights = np.array([1.0, 0.0]), np.array([0.9, 0.1]), np.arange(2), np.ones((1, 2), np.uint8)
print(modules["statistics_numba"].scores_of_replicates(y, p, order, weights)[0, 0])
"""


def test_every_kernel_of_the_package_can_do_without_a_folder(repository):
    found = subprocess.run(
        [sys.executable, "-c", EVERY_MODULE], cwd=repository, env=os.environ, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    modules, auroc = found.stdout.splitlines()
    assert {"counting_numba", "encoding_numba", "selective_scan_numba"} < set(modules.split())
    assert float(auroc) == 1.0
    assert found.stderr.count("NUMBA_CACHE_DIR") == 1
