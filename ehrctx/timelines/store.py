"""The memory-mapped store of integer timelines: flat arrays, readable with numpy alone.

`docs/results.md` tells what each file holds.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ehrctx.artifacts import read_manifest
from ehrctx.errors import InputError

KIND = "timelines"
SUBJECT = np.dtype(
    [
        ("subject_id", "<i8"),
        ("split", "<U8"),
        ("origin", "<M8[us]"),  # birth, else the first timed event; NaT where nothing is timed
        ("born", "?"),  # whether the origin is a birth
        ("n_static", "<u4"),  # the first tokens of the timeline that are static
    ]
)
MICROSECONDS = 1_000_000
SECONDS_OF_A_YEAR = 365.25 * 86_400


@dataclass(frozen=True)
class Timelines:
    """All subjects' timelines. Subject i (in the store's order) owns tokens [offsets[i], offsets[i + 1])."""

    path: Path
    tokens: np.ndarray
    seconds: np.ndarray
    event: np.ndarray
    offsets: np.ndarray
    subjects: np.ndarray
    manifest: dict[str, Any]
    age_bands: tuple[int, ...] = ()  # in years, where the tokenizer has some
    first_age_token: int | None = None  # that of ages below the first band's edge

    @classmethod
    def open(cls, path: Path) -> Timelines:
        """Opens the folder without reading it into memory. Raises InputError if it is not a finished store."""
        path = Path(path)
        manifest = read_manifest(path, KIND)
        first_age = manifest["facts"].get("first_age_token")
        arrays = {
            # plain arrays over the mapped files: taking a slice of a np.memmap costs more than copying it
            name: np.asarray(np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False))
            for name in ("tokens", "seconds", "event", "offsets")
        }
        return cls(
            path=path,
            subjects=np.load(path / "subjects.npy", allow_pickle=False),
            manifest=manifest,
            age_bands=tuple(manifest["settings"]["tokenizer"]["age_bands"]) if first_age is not None else (),
            first_age_token=first_age,
            **arrays,
        )

    @property
    def vocabulary_size(self) -> int:
        return int(self.manifest["facts"]["vocabulary_size"])

    def age_token(self, seconds: int) -> int:
        """The token of the age band at so many seconds since birth. Only where there are age bands."""
        return int(self.first_age_token or 0) + bisect_right(self.age_bands, seconds / SECONDS_OF_A_YEAR)

    def __len__(self) -> int:
        return len(self.subjects)

    def in_split(self, split: str) -> np.ndarray:
        """Positions (int64) of the subjects of one split. Raises InputError if there are none."""
        found = np.flatnonzero(self.subjects["split"] == split)
        if not len(found):
            raise InputError(f"{self.path}: the split {split!r} holds no subject with tokens. Use other splits.")
        return found

    def positions_of(self, subject_ids: np.ndarray) -> np.ndarray:
        """Positions (int64[n]) of subject ids; -1 for a subject that has no timeline."""
        order = np.argsort(self.subjects["subject_id"], kind="stable")
        ids = self.subjects["subject_id"][order]
        place = np.minimum(np.searchsorted(ids, subject_ids), len(ids) - 1)
        return np.where(ids[place] == subject_ids, order[place], -1)

    def visible(self, position: int, prediction_times: np.ndarray) -> np.ndarray:
        """How many of a subject's tokens may be seen at each time (datetime64[n] -> int64[n]).

        An event is visible iff its time <= the prediction time, to the second: event times were rounded up when
        stored, prediction times are rounded down here. Static tokens are always visible.
        """
        lo, hi = self.offsets[position], self.offsets[position + 1]
        n_static = int(self.subjects["n_static"][position])
        origin = self.subjects["origin"][position]
        if np.isnat(origin):
            return np.full(len(prediction_times), n_static, dtype=np.int64)
        since = (prediction_times.astype("datetime64[us]") - origin).astype(np.int64) // MICROSECONDS
        timed = self.seconds[lo + n_static : hi]
        return n_static + np.searchsorted(timed, since, side="right").astype(np.int64)
