"""Pieces of timelines -> the store, subjects in ascending order of id, however the data set was cut up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ehrctx.timelines.counting import Counted
from ehrctx.timelines.encoding import Encoded
from ehrctx.timelines.store import SUBJECT

ARRAYS = ("tokens", "seconds", "event")


MOST_OPEN = 256  # files at a time


def _data_start(file: Path) -> int:
    """Where the numbers of a .npy file begin."""
    with file.open("rb") as stream:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        return stream.tell()


def _write_array(file: Path, dtype: np.dtype, parts: Sequence[Path], slices: np.ndarray) -> None:
    """One .npy file of `slices` (part, from, to) of `parts`, which are .npy files of the same type.

    Read and written, not mapped: the pages of mapped files would count as this process's memory.
    """
    starts = [_data_start(part) for part in parts]
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (int((slices[:, 2] - slices[:, 1]).sum()),),
    }
    opened: dict[int, int] = {}
    try:
        with file.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for part, first, end in slices.tolist():
                if part not in opened:
                    if len(opened) == MOST_OPEN:
                        os.close(opened.pop(next(iter(opened))))
                    opened[part] = os.open(parts[part], os.O_RDONLY)
                at, size = starts[part] + first * dtype.itemsize, (end - first) * dtype.itemsize
                stream.write(os.pread(opened[part], size, at))
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def write_piece(piece: Counted, encoded: Encoded, width: np.dtype, folder: Path) -> None:
    """One piece's tokens, in the order of its subjects."""
    subjects = np.zeros(len(piece.subjects), dtype=SUBJECT)
    for name in ("subject_id", "split", "origin", "born"):
        subjects[name] = piece.subjects[name]
    subjects["n_static"] = encoded.n_static
    folder.mkdir()
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(encoded, name).astype(_dtype(name, width)))
    np.save(folder / "lengths.npy", encoded.lengths)
    np.save(folder / "subjects.npy", subjects)


def _dtype(name: str, width: np.dtype) -> np.dtype:
    return width if name == "tokens" else np.dtype(np.uint32)


def gather(parts: Sequence[Path], width: np.dtype, out: Path) -> tuple[np.ndarray, int]:
    """Writes the store's arrays to the folder `out` from `parts`, folders of `write_piece`.

    Returns SUBJECT[n] of the subjects with tokens, which alone are kept, and how many there are altogether.
    """
    subjects = [np.load(part / "subjects.npy") for part in parts]
    ends = [np.cumsum(np.load(part / "lengths.npy")) for part in parts]
    of_part = np.repeat(np.arange(len(parts)), [len(s) for s in subjects])
    everybody = np.concatenate([np.zeros(0, dtype=SUBJECT), *subjects])
    end = np.concatenate([np.zeros(0, dtype=np.int64), *ends])
    first = np.concatenate([np.zeros(0, dtype=np.int64), *(np.append(0, e[:-1])[: len(e)] for e in ends)])
    order = np.argsort(everybody["subject_id"], kind="stable")
    order = order[end[order] > first[order]]
    rows = np.column_stack([of_part[order], first[order], end[order]]).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(rows[:, 2] - rows[:, 1])]).astype(np.int64)
    # neighbours that lie side by side are copied at once
    apart = (rows[1:, 0] != rows[:-1, 0]) | (rows[1:, 1] != rows[:-1, 2])
    starts = np.flatnonzero(np.append(True, apart)[: len(rows)])
    lasts = np.append(starts[1:], len(rows))[: len(starts)] - 1
    runs = np.column_stack([rows[starts, 0], rows[starts, 1], rows[lasts, 2]])
    for name in ARRAYS:
        _write_array(out / f"{name}.npy", _dtype(name, width), [part / f"{name}.npy" for part in parts], runs)
    np.save(out / "offsets.npy", offsets)
    np.save(out / "subjects.npy", everybody[order])
    return everybody[order], len(everybody)
