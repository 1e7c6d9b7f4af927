"""Small stores of timelines whose every token can be traced, in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ehrctx.artifacts import new_artifact
from ehrctx.timelines.store import KIND, SUBJECT, Timelines

torch.set_num_threads(1)
SPECIAL = 7


def _arrays(timed: list[int], n_static: list[int], splits: list[str]) -> dict[str, np.ndarray]:
    lengths = np.array(timed) + np.array(n_static)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    subjects = np.zeros(len(timed), dtype=SUBJECT)
    subjects["subject_id"] = 100 + np.arange(len(timed))
    subjects["split"], subjects["n_static"] = splits, n_static
    subjects["origin"], subjects["born"] = np.datetime64("1950-01-01", "us"), True
    seconds = np.concatenate([np.maximum(np.arange(n) - s + 1, 0) for n, s in zip(lengths, n_static, strict=True)])
    return {
        "tokens": np.arange(offsets[-1]) + SPECIAL,
        "seconds": seconds.astype(np.uint32),
        "event": np.concatenate([np.arange(n) for n in lengths]).astype(np.uint32),
        "offsets": offsets,
        "subjects": subjects,
    }


@pytest.fixture(scope="session")
def numbered_timelines():
    """A function (timed tokens, static tokens, splits by subject) -> a store in which every token is unique.

    Token t (t >= 7) is the (t - 7)-th of the whole store: a window says by itself from where it was cut.
    """

    def make(timed: list[int], n_static: list[int] | None = None, splits: list[str] | None = None) -> Timelines:
        arrays = _arrays(timed, n_static or [1] * len(timed), splits or ["train"] * len(timed))
        facts = {"vocabulary_size": len(arrays["tokens"]) + SPECIAL}
        return Timelines(path=Path("in memory"), manifest={"facts": facts}, **arrays)

    return make


@pytest.fixture(scope="session")
def write_timelines():
    """A function (folder, seed) -> a store of 36 short timelines in which each token tells the next: easily learned."""

    def write(folder: Path, seed: int = 0, vocabulary_size: int = 23) -> Path:
        rng = np.random.default_rng(seed)
        timed = rng.integers(3, 45, size=36).tolist()
        arrays = _arrays(timed, [1] * 36, (["train"] * 4 + ["tuning"] + ["held_out"]) * 6)
        kinds = vocabulary_size - SPECIAL
        first = np.repeat(rng.integers(0, kinds, size=36), np.diff(arrays["offsets"]))
        arrays["tokens"] = (SPECIAL + (first + 3 * arrays["event"]) % kinds).astype(np.uint16)
        facts = {"vocabulary_size": vocabulary_size, "first_age_token": None}
        with new_artifact(folder, KIND, {"seed": seed, "tokenizer": {"age_bands": []}}, {}, facts) as partial:
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", array)
        return folder

    return write


@pytest.fixture(scope="session")
def small_timelines(write_timelines, tmp_path_factory) -> Path:
    return write_timelines(tmp_path_factory.mktemp("small") / "timelines")
