"""What a store says, in words that a test can spell out."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ehrctx.timelines.store import Timelines


def names_of(store: Path) -> list[str]:
    """The name of each token: `A`, `A=text`, `A mg [1.0, 2.0)`, a piece, or [DAY 1]."""
    names = []
    for row in pl.read_parquet(store / "vocabulary.parquet").iter_rows(named=True):
        if row["kind"] == "text":
            names.append(f"{row['code']}={row['text']}")
        elif row["kind"] == "number":
            unit = f" {row['unit']}" if row["unit"] else ""
            names.append(f"{row['code']}{unit} [{row['lower']}, {row['upper']})")
        else:
            names.append(row["text"] if row["kind"] == "piece" else row["code"])
    return names


def said(store: Path, subject: int) -> list[str]:
    """The names of a subject's tokens; [] where it has none."""
    return [name for name, _, _ in said_when(store, subject)]


def said_when(store: Path, subject: int) -> list[tuple[str, int, int]]:
    """The same with their seconds and events."""
    timelines, names = Timelines.open(store), names_of(store)
    found = [i for i, one in enumerate(timelines.subjects["subject_id"].tolist()) if one == subject]
    if not found:
        return []
    own = slice(timelines.offsets[found[0]], timelines.offsets[found[0] + 1])
    columns = (timelines.tokens[own].tolist(), timelines.seconds[own].tolist(), timelines.event[own].tolist())
    return [(names[token], second, event) for token, second, event in zip(*columns, strict=True)]


def outcomes(store: Path) -> dict[str, int]:
    """How many events met what; what none met is left out."""
    counted = Timelines.open(store).manifest["facts"]["events_by_outcome"]
    return {outcome: n for outcome, n in counted.items() if n}


def entries(store: Path) -> list[tuple[str, float, int]]:
    """(name, weight, count) of the tokens after those that the spec has in any case."""
    rows = pl.read_parquet(store / "vocabulary.parquet").select("kind", "weight", "count").rows()
    named = zip(names_of(store), rows, strict=True)
    return [(name, weight, count) for name, (kind, weight, count) in named if kind in ("code", "text", "number")]
