"""The steps of `build` as artefacts, so that a cluster runs them as jobs: `count` and `encode` on each part of a data
set, `fit` and `gather` once. What comes out is the folder that `ehrctx tokenize` writes, to the byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.artifacts import new_artifact, read_manifest
from ehrctx.errors import InputError
from ehrctx.events.pieces import Piece, pieces_of
from ehrctx.events.splits import DEFAULT_PRIVACY
from ehrctx.study import Privacy
from ehrctx.timelines.build import CountedPart, Existing, Source, count, encode, finish, fit, new_timelines, spec_for
from ehrctx.timelines.counting import Unplaced
from ehrctx.timelines.encoding import total_coverage
from ehrctx.timelines.spec import TokenizerSpec
from ehrctx.timelines.statistics import Statistics
from ehrctx.timelines.vocabulary import Vocabulary

COUNTED, VOCABULARY, ENCODED = "counted events", "vocabulary", "encoded events"


def part_of(pieces: Sequence[Piece], part: str) -> list[tuple[int, Piece]]:
    """The numbered pieces of part `2-of-8`; every 8th, from the second on. Raises InputError for any other text."""
    found = re.fullmatch(r"([1-9][0-9]*)-of-([1-9][0-9]*)", part)
    if not found or int(found[1]) > int(found[2]):
        raise InputError(f"--part {part!r} is not a part such as 2-of-8.")
    first, of = int(found[1]) - 1, int(found[2])
    return list(enumerate(pieces))[first::of]


def count_part(
    data: Path, profile: str, splits: Path, part: str, out: Path, threads: int, privacy: Privacy = DEFAULT_PRIVACY
) -> dict[str, Any]:
    """Writes the folder `out` of one part's events as integers, and the statistics of its train subjects."""
    source = Source.open(data, profile, splits, privacy)
    pieces = part_of(pieces_of(source.dataset), part)
    facts: dict[str, Any] = {}
    choices = {"part": part, "profile": source.profile.model_dump()}
    # its own shards alone: to read all of them for each part would take as long as the work
    shards = {source.dataset.name_of(piece.shard): piece.shard for _, piece in pieces}
    with new_artifact(out, COUNTED, choices, {"splits": splits, **shards}, facts) as folder:
        counted = count(source, pieces, folder, threads)
        counted.statistics.in_order().write(folder)
        facts |= {"events": sum(piece.n_rows for _, piece in pieces), **asdict(counted.unplaced)}
        facts |= {"pieces": [piece.name for piece in counted.pieces], "train": counted.statistics.n_subjects}
    return facts


def _read_counted(folder: Path) -> CountedPart:
    facts = read_manifest(folder, COUNTED)["facts"]
    statistics = Statistics.read(folder, facts["train"])
    unplaced = Unplaced(**{name: facts[name] for name in asdict(Unplaced())})
    return CountedPart(tuple(folder / name for name in facts["pieces"]), statistics, unplaced)


def fit_parts(
    data: Path,
    profile: str,
    splits: Path,
    tokenizer: str | None,
    counted: Sequence[Path],
    out: Path,
    existing: Existing | None = None,
) -> dict[str, Any]:
    """Writes the folder `out` of the vocabulary for all parts: fitted on them, or an `existing` one."""
    source, spec = Source.open(data, profile, splits), spec_for(tokenizer, existing)
    facts: dict[str, Any] = {}
    choices: dict[str, Any] = {"tokenizer": spec.model_dump(), "existing": existing and existing._asdict()}
    inputs = {"splits": splits, **{f"part {i}": folder for i, folder in enumerate(counted, 1)}}
    with new_artifact(out, VOCABULARY, choices, inputs, facts) as folder:
        parts = [_read_counted(part) for part in counted]
        vocabulary, about = fit(source, parts, spec, existing)
        vocabulary.write(folder)
        facts |= {**about, **asdict(sum((part.unplaced for part in parts), Unplaced()))}
    return facts


def _read_fitted(folder: Path) -> tuple[Vocabulary, TokenizerSpec, Existing | None, dict[str, Any]]:
    """What `fit_parts` wrote: the vocabulary, its spec, where it is from, and facts."""
    manifest = read_manifest(folder, VOCABULARY)
    settings, given = manifest["settings"], manifest["settings"]["existing"]
    existing = Existing(Path(given["folder"]), given["adapts"], given["extend"]) if given else None
    spec = TokenizerSpec.model_validate(settings["tokenizer"])
    return Vocabulary.read(folder), spec, existing, manifest["facts"]


def encode_part(
    data: Path, profile: str, splits: Path, counted: Path, fitted: Path, out: Path, threads: int
) -> dict[str, Any]:
    """Writes the folder `out` of one part's tokens, and what became of its events."""
    source = Source.open(data, profile, splits)
    vocabulary, spec, existing, _ = _read_fitted(fitted)
    facts: dict[str, Any] = {}
    inputs = {"counted": counted, "vocabulary": fitted}
    with new_artifact(out, ENCODED, {"profile": source.profile.model_dump()}, inputs, facts) as folder:
        pieces = _read_counted(counted).pieces
        coverage = encode(source, pieces, vocabulary, spec, existing, folder, threads)
        coverage.write_parquet(folder / "coverage.parquet")
        facts["pieces"] = [piece.name for piece in pieces]
    return facts


def gather_parts(
    data: Path, profile: str, splits: Path, fitted: Path, encoded: Sequence[Path], out: Path
) -> dict[str, Any]:
    """Writes the folder `out` of timelines from all parts."""
    source = Source.open(data, profile, splits)
    vocabulary, spec, existing, about = _read_fitted(fitted)
    facts: dict[str, Any] = {}
    with new_timelines(source, splits, spec, existing, out, facts) as folder:
        pieces = {name: part / name for part in encoded for name in read_manifest(part, ENCODED)["facts"]["pieces"]}
        coverage = total_coverage([pl.read_parquet(part / "coverage.parquet") for part in encoded])
        finish(source, vocabulary, existing, coverage, [pieces[name] for name in sorted(pieces)], folder, facts)
        facts |= about
    return facts
