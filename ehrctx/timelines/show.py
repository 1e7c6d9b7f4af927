"""`ehrctx show`: one subject's timeline in words, read back from the store alone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.printable import printable
from ehrctx.timelines.store import Timelines

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


def _number(value: float) -> str:
    return f"{value:g}"


def meaning(row: dict[str, Any]) -> str:
    """What a token of the vocabulary says, in words, as they can be printed."""
    return printable(_meaning(row))


def _meaning(row: dict[str, Any]) -> str:
    if row["kind"] == "piece":
        return str(row["text"])
    said = str(row["code"])
    if row["description"]:
        said = f"{said} ({row['description']})"
    if row["kind"] == "text":
        return f"{said}: {row['text']}"
    if row["kind"] in ("number", "time", "age"):
        lower, upper = row["lower"], row["upper"]
        bounds = [f"from {_number(lower)}"] if np.isfinite(lower) else []
        bounds += [f"below {_number(upper)}"] if np.isfinite(upper) else []
        of = {"number": row["unit"] or "", "time": "days", "age": "years"}[row["kind"]]
        return f"{said}: {' '.join([' '.join(bounds) or 'any value', of]).strip()}"
    return said


def lines_of(store: Timelines, vocabulary: pl.DataFrame, position: int, first: int) -> list[tuple[str, str, str, str]]:
    """(time, event, token, meaning) of the first tokens of the subject at `position`; time is empty for static ones."""
    lo, hi = int(store.offsets[position]), int(store.offsets[position + 1])
    rows = vocabulary.to_dicts()
    subject = store.subjects[position]
    found = []
    for i in range(lo, min(hi, lo + first)):
        static = i - lo < subject["n_static"]
        time = "" if static else f"{subject['origin'].item() + timedelta(seconds=int(store.seconds[i])):{TIME_FORMAT}}"
        token = int(store.tokens[i])
        found.append((time, str(int(store.event[i])), str(token), meaning(rows[token])))
    return found


def show(timelines: Path, subject_id: int, first: int) -> str:
    """The first tokens of one subject's timeline as a table. Raises InputError if it has none."""
    store = Timelines.open(timelines)
    position = int(store.positions_of(np.array([subject_id]))[0])
    if position < 0:
        raise InputError(f"{timelines} holds no timeline of this subject. Check the number, or whether it has events.")
    vocabulary = pl.read_parquet(Path(timelines) / "vocabulary.parquet")
    rows = [("time", "event", "token", "meaning"), *lines_of(store, vocabulary, position, first)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in rows]
    rest = int(store.offsets[position + 1] - store.offsets[position]) - (len(rows) - 1)
    return "\n".join([*lines, *([f"… and {rest:,} tokens more"] if rest else [])])
