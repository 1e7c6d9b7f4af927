"""Random training windows of at most 2,048 tokens from a store of timelines, against what others keep timelines in.

The same subjects and starts for all: Hugging Face `datasets` with a row per subject (as its users have it, and with
numpy instead of lists), and Python event objects in memory, as the reference has, that become tokens when read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measure import line, medians, options

from ehrctx.artifacts import MANIFEST
from ehrctx.timelines.store import SUBJECT, Timelines
from ehrctx.timelines.windows import Windows

CONTEXT, VOCABULARY, WINDOWS = 2_048, 39_818, 512


@dataclass
class Event:
    code: str
    value: float | None
    second: int


def store(folder: Path, n_tokens: int) -> Timelines:
    """Made-up timelines as long as the study's (log-normal, median 71, p99 10k)."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(4.26, 2.13, n_tokens // 100)).astype(np.int64).clip(max=200_000)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), n_tokens)) + 1]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "tokens.npy", rng.integers(7, VOCABULARY, offsets[-1]).astype(np.uint16))
    np.save(folder / "seconds.npy", np.arange(offsets[-1], dtype=np.uint32))
    np.save(folder / "event.npy", np.arange(offsets[-1], dtype=np.uint32))
    subjects = np.zeros(len(lengths), dtype=SUBJECT)
    subjects["subject_id"], subjects["split"] = np.arange(len(lengths)), "train"
    np.save(folder / "subjects.npy", subjects)
    facts = {"vocabulary_size": VOCABULARY, "first_age_token": None}
    about = {"kind": "timelines", "schema": 2, "facts": facts, "settings": {"tokenizer": {"age_bands": []}}}
    (folder / MANIFEST).write_text(json.dumps(about))
    return Timelines.open(folder)


Reader = Callable[[int, int], object]


def in_datasets(timelines: Timelines, folder: Path) -> tuple[Reader, Reader]:
    """Readers of (subject, start): rows as lists, and as numpy arrays."""
    import pyarrow as pa
    from datasets import Dataset, load_from_disk

    tokens = pa.array(np.asarray(timelines.tokens).astype(np.int32))
    rows = pa.LargeListArray.from_arrays(pa.array(timelines.offsets), tokens)
    Dataset(pa.table({"input_ids": rows})).save_to_disk(folder / "datasets")
    kept = load_from_disk(folder / "datasets")
    as_numpy = kept.with_format("numpy")
    return (
        lambda subject, start: np.array(kept[subject]["input_ids"][start : start + CONTEXT - 1]),
        lambda subject, start: as_numpy[subject]["input_ids"][start : start + CONTEXT - 1],
    )


def in_objects(timelines: Timelines, subjects: np.ndarray) -> Reader:
    """A reader of (subject, start) from event objects of the subjects that are asked for alone, as all fill 10 GB."""
    ids = {f"CODE/{token}": token for token in range(VOCABULARY)}
    held = {}
    for subject in np.unique(subjects).tolist():
        own = timelines.tokens[timelines.offsets[subject] : timelines.offsets[subject + 1]].tolist()
        held[subject] = [Event(f"CODE/{token}", None, second) for second, token in enumerate(own)]
    return lambda subject, start: np.array([ids[e.code] for e in held[subject][start : start + CONTEXT - 1]])


def main() -> None:
    is_quick = options(__doc__, runs_on_gpu=False).quick
    n_tokens, repeats = (5_000_000, 3) if is_quick else (50_000_000, 5)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "store").mkdir()
        timelines = store(folder / "store", n_tokens)
        windows = Windows(timelines, CONTEXT)
        rng = np.random.default_rng(1)
        # a token is as likely as any other to be in a window, so that long timelines count
        first = np.sort(rng.integers(0, timelines.offsets[-1], WINDOWS))
        subjects = np.searchsorted(timelines.offsets, first, side="right") - 1
        starts = windows.training_starts(subjects, rng.random(WINDOWS))
        order = rng.permutation(WINDOWS)
        asked = list(zip(subjects[order].tolist(), starts[order].tolist(), strict=True))
        as_lists, as_numpy = in_datasets(timelines, folder)
        readers = {
            "ours": windows.training,
            "Hugging Face datasets": as_lists,
            "Hugging Face datasets, numpy": as_numpy,
            "event objects in memory": in_objects(timelines, subjects),
        }
        for subject, start in asked[:16]:  # the same tokens, but for [BOS] and [EOS]
            own = timelines.tokens[timelines.offsets[subject] :][start : start + CONTEXT - 1]
            length = min(CONTEXT - 1, int(timelines.offsets[subject + 1] - timelines.offsets[subject]) - start)
            for name, read in readers.items():
                found = np.asarray(read(subject, start))
                assert (found[1 : 1 + length] if name == "ours" else found == own[:length]).all(), name
        took = medians(
            {name: lambda read=read: [read(*one) for one in asked] for name, read in readers.items()}, repeats
        )
        for name in list(readers)[1:]:
            case = f"{n_tokens:,} tokens, {WINDOWS} windows of at most {CONTEXT:,}"
            rates = WINDOWS / took["ours"], WINDOWS / took[name]
            line("store", case, "windows/s", *rates, name, repeats, more_is_better=True)


if __name__ == "__main__":
    main()
