"""`ehrctx tokenize`: events -> counted pieces -> vocabulary -> encoded pieces -> the store.

The four steps are functions of their own, since a cluster makes them jobs of their own (pipelines/rules/timelines.smk):
counting and encoding run on any part of the data set beside the others, fitting and gathering once. The result does not
depend on how many parts, shards or threads there are.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from ehrctx.artifacts import new_artifact
from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.events.meds import Dataset, open_dataset, read_codes, subjects_in_two_shards
from ehrctx.events.ontology import parents_of
from ehrctx.events.pieces import Piece, pieces_of
from ehrctx.events.profile import DatasetProfile, find_profile
from ehrctx.events.shards import read_piece
from ehrctx.events.splits import read_splits
from ehrctx.timelines.counting import Counted, count_piece, splits_of
from ehrctx.timelines.coverage import coverage_facts
from ehrctx.timelines.encoding import Encoder, added
from ehrctx.timelines.gather import gather, write_piece
from ehrctx.timelines.spec import TokenizerSpec, find_spec
from ehrctx.timelines.statistics import Accumulator, Statistics
from ehrctx.timelines.store import KIND
from ehrctx.timelines.vocabulary import Vocabulary, fit_vocabulary

A = TypeVar("A")
B = TypeVar("B")
COVERAGE_ROWS = 1_000_000  # that wait to be added up


def _side_by_side(run: Callable[[A], B], given: Iterable[A], threads: int) -> Iterator[B]:
    """The results in order; no more than `threads` of them are made, and wait, at a time."""
    with ThreadPoolExecutor(threads) as pool:
        rest = iter(given)
        ahead = deque(pool.submit(run, one) for one in islice(rest, threads))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(run, one) for one in islice(rest, 1))
            yield result


@dataclass(frozen=True)
class Source:
    """What the tokens are made from."""

    dataset: Dataset
    profile: DatasetProfile
    splits: pl.DataFrame  # (subject_id, split), by subject_id

    @classmethod
    def open(cls, data: Path, profile: str, splits: Path) -> Source:
        """`profile` is the name of a shipped file, or a path."""
        chosen = load(DatasetProfile, find_profile(profile))
        return cls(open_dataset(data), chosen, read_splits(splits).sort("subject_id"))


@dataclass(frozen=True)
class CountedPart:
    """Some pieces of a data set as integers."""

    pieces: tuple[Path, ...]  # folders of `Counted`
    statistics: Statistics  # of their train subjects
    early: int  # events before their subject's origin


def count(source: Source, pieces: Sequence[tuple[int, Piece]], out: Path, threads: int) -> CountedPart:
    """Writes each numbered piece as integers to a folder in `out`."""

    def one(numbered: tuple[int, Piece]) -> tuple[Path, Statistics, int]:
        number, piece = numbered
        name = source.dataset.name_of(piece.shard)
        events = read_piece(source.dataset, piece, source.profile)
        try:
            split = splits_of(events.subjects, source.splits)
            counted, statistics, early = count_piece(events, split, source.profile.birth)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        folder = out / f"{number:06d}"
        counted.write(folder)
        return folder, statistics, early

    total, early, folders = Accumulator(), 0, []
    for folder, statistics, before in _side_by_side(one, pieces, threads):
        folders.append(folder)
        total.add(statistics)
        early += before
    return CountedPart(tuple(folders), total.result(), early)


def _check_pieces(dataset: Dataset, numbered: Sequence[tuple[int, Piece]], counted: Sequence[Path]) -> None:
    """Raises InputError if a piece is missing, or a subject is in two pieces."""
    if [folder.name for folder in counted] != [f"{number:06d}" for number, _ in numbered]:
        raise InputError(
            f"the counted parts hold {len(counted):,} pieces of a data set of {len(numbered):,}, or some twice. Give "
            f"all parts of the same division."
        )
    ids = [np.load(folder / "subjects.npy")["subject_id"] for folder in counted]
    named = [(dataset.name_of(piece.shard), own) for (_, piece), own in zip(numbered, ids, strict=True)]
    if found := subjects_in_two_shards(named):
        raise InputError(str(found[0]))


def fit(source: Source, parts: Sequence[CountedPart], spec: TokenizerSpec) -> tuple[Vocabulary, dict[str, Any]]:
    """The vocabulary of all parts of a data set, and facts about it.

    Raises InputError if a subject is in two shards.
    """
    folders = sorted((folder for part in parts for folder in part.pieces), key=lambda folder: folder.name)
    _check_pieces(source.dataset, list(enumerate(pieces_of(source.dataset))), folders)
    codes = read_codes(source.dataset)
    statistics = parts[0].statistics if len(parts) == 1 else Statistics.merged(part.statistics for part in parts)
    return fit_vocabulary(statistics, spec, codes, parents_of(codes))


def width_of(vocabulary: Vocabulary) -> np.dtype:
    """Of a token in the store."""
    return np.dtype(np.uint16 if vocabulary.tokens.height < 2**16 else np.uint32)


def encode(
    source: Source, counted: Sequence[Path], vocabulary: Vocabulary, spec: TokenizerSpec, out: Path, threads: int
) -> pl.DataFrame:
    """Writes the tokens of each counted piece to a folder of the same name in `out`; returns their COVERAGE."""
    codes = read_codes(source.dataset)
    encoder = Encoder(vocabulary, spec, source.profile, codes, parents_of(codes))

    def one(folder: Path) -> pl.DataFrame:
        piece = Counted.read(folder)
        encoded = encoder.encode(piece)
        write_piece(piece, encoded, width_of(vocabulary), out / folder.name)
        return encoded.coverage

    met = [added([])]
    for own in _side_by_side(one, counted, threads):
        met.append(own)
        if sum(part.height for part in met) > COVERAGE_ROWS:
            met = [added(met)]
    return added(met)


def build_timelines(
    data: Path, profile: str, splits: Path, tokenizer: str, out: Path, threads: int = 2
) -> dict[str, Any]:
    """Fits the vocabulary on the train split, encodes every subject, and writes the store to the folder `out`.

    `profile` and `tokenizer` are names of shipped files, or paths. Returns the facts of the manifest: see `facts_of`.
    """
    source, spec = Source.open(data, profile, splits), load(TokenizerSpec, find_spec(tokenizer))
    facts: dict[str, Any] = {}
    with new_timelines(data, source, splits, spec, out, facts) as folder:
        counted, encoded = folder / ".counted", folder / ".encoded"
        counted.mkdir()
        encoded.mkdir()
        part = count(source, list(enumerate(pieces_of(source.dataset))), counted, threads)
        vocabulary, about = fit(source, [part], spec)
        coverage = encode(source, part.pieces, vocabulary, spec, encoded, threads)
        facts |= finish(vocabulary, coverage, [encoded / piece.name for piece in part.pieces], folder)
        facts |= {**about, "events_before_origin": part.early}
        shutil.rmtree(counted)
        shutil.rmtree(encoded)
    return facts


@contextmanager
def new_timelines(
    data: Path, source: Source, splits: Path, spec: TokenizerSpec, out: Path, facts: dict[str, Any]
) -> Iterator[Path]:
    """A folder for the store, with its provenance."""
    choices = {"tokenizer": spec.model_dump(), "profile": source.profile.model_dump()}
    with new_artifact(out, KIND, choices, {"events": data, "splits": splits}, facts) as folder:
        yield folder


def finish(vocabulary: Vocabulary, coverage: pl.DataFrame, encoded: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Writes all files of the store but the manifest; returns facts about them."""
    vocabulary.write(folder)
    coverage.write_parquet(folder / "coverage.parquet")
    subjects, n_all = gather(encoded, width_of(vocabulary), folder)
    n_tokens = int(np.load(folder / "offsets.npy", mmap_mode="r")[-1])
    ages = vocabulary.tokens.filter(kind="age")
    return {
        "fitted_on": "train",
        "vocabulary_size": vocabulary.tokens.height,
        "subjects": len(subjects),
        "subjects_without_token": n_all - len(subjects),
        "tokens": n_tokens,
        "first_age_token": int(ages["token"][0]) if ages.height else None,
        **coverage_facts(coverage),
    }
