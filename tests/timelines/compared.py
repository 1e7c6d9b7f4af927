"""A store, file by file, against the reference tokenizer."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
from reference_events import Event, kind_of, origin_of, subjects_of
from reference_tokenizer import Reference

from ehrctx.events.profile import DatasetProfile
from ehrctx.timelines.spec import TokenizerSpec
from ehrctx.timelines.store import Timelines

WHOLE = 2**36  # the weight of a subject
COLUMNS = ("kind", "code", "unit", "text", "lower", "upper")


def reference_for(
    store: Path,
    subjects: dict[int, list[Event]],
    splits: dict[int, str],
    spec: dict,
    profile: dict,
    codes: pl.DataFrame | None = None,
    whole: int | None = WHOLE,
) -> Reference:
    """Fitted to the train split; word pieces are taken from the store."""
    codes = () if codes is None else codes.iter_rows()
    made = Reference(TokenizerSpec(**{"name": "t"} | spec), DatasetProfile(**{"name": "p"} | profile), codes)
    pieces = pl.read_parquet(store / "vocabulary.parquet").filter(kind="piece")["text"].to_list()
    return made.fit({s: events for s, events in subjects.items() if splits.get(s) == "train"}, pieces, whole)


def check_vocabulary(store: Path, reference: Reference) -> None:
    ours = pl.read_parquet(store / "vocabulary.parquet")
    expected = reference.vocabulary
    assert ours["token"].to_list() == list(range(len(ours)))
    # the tokens that stand for themselves, by name
    n = sum("name" in row for row in expected)
    assert ours.head(n).select("kind", "code").rows() == [(row["kind"], row["name"]) for row in expected[:n]]
    rows, wanted = ours.slice(n).to_dicts(), expected[n:]
    if not reference.spec.descriptions:
        assert [tuple(r[c] for c in COLUMNS) for r in rows] == [tuple(r[c] for c in COLUMNS) for r in wanted]
        assert [r["count"] for r in rows] == [r["count"] for r in wanted]
        np.testing.assert_allclose([r["weight"] for r in rows], [float(r["p"]) for r in wanted], rtol=1e-12)
        for row in rows:
            assert row["description"] == reference.listed.get(row["code"])
    assert len(ours) <= reference.spec.vocabulary_size


def check_bins(store: Path, reference: Reference) -> None:
    ours = pl.read_parquet(store / "bins.parquet").to_dicts()
    columns = ("code", "unit", "lower", "upper", "bin", "weight", "count", "token")
    key = {"code": "", "unit": "", "lower": 0.0}
    ours.sort(key=lambda r: tuple(r[c] or empty for c, empty in key.items()))
    expected = sorted(reference.bins, key=lambda r: tuple(r[c] or empty for c, empty in key.items()))
    assert [tuple(r[c] for c in columns) for r in ours] == [tuple(r[c] for c in columns) for r in expected]


def check_timelines(store: Path, reference: Reference, subjects: dict[int, list[Event]]) -> Counter:
    """Event by event; returns how often each outcome is met."""
    timelines = Timelines.open(store)
    facts = timelines.manifest["facts"]
    coverage: Counter[tuple[str, str]] = Counter()
    n_tokens = before_origin = without = 0
    ids = []
    for subject, events in sorted(subjects.items()):
        expected = reference.timeline(events)
        coverage.update(zip((e.code for e in events), expected.outcomes, strict=True))
        before_origin += expected.before_origin
        n_tokens += len(expected.tokens)
        if not expected.tokens:
            without += 1
            continue
        position = len(ids)
        ids.append(subject)
        own = slice(timelines.offsets[position], timelines.offsets[position + 1])
        assert int(timelines.subjects["subject_id"][position]) == subject
        assert timelines.tokens[own].tolist() == expected.tokens
        assert timelines.seconds[own].tolist() == expected.seconds
        assert timelines.event[own].tolist() == expected.event
        row = timelines.subjects[position]
        assert row["n_static"] == expected.n_static
        assert row["born"] == any(e.code == reference.profile.birth and e.time is not None for e in events)
        origin = origin_of(events, reference.profile.birth)
        assert np.isnat(row["origin"]) if origin is None else row["origin"].item() == origin
    assert timelines.subjects["subject_id"].tolist() == ids
    written = pl.read_parquet(store / "coverage.parquet")
    for event in itertools.chain.from_iterable(subjects.values()):
        # counted besides
        if event.value is not None and not math.isfinite(event.value):
            coverage[event.code, "value is not finite"] += 1
        if kind_of(event) == "code" and event.text:
            coverage[event.code, "text is a note"] += 1
    assert {(c, o): n for c, o, n in written.select("code", "outcome", "events").iter_rows()} == dict(coverage)
    outcomes: Counter[str] = Counter()
    for (_, outcome), n in coverage.items():
        outcomes[outcome] += n
    assert facts["subjects"] == len(ids)
    assert facts["subjects_without_token"] == without
    assert facts["tokens"] == n_tokens == len(timelines.tokens)
    assert facts["events"] == sum(map(len, subjects.values()))
    assert facts["events_before_origin"] == before_origin
    assert facts["vocabulary_size"] == len(reference.vocabulary)
    assert {name: n for name, n in facts["events_by_outcome"].items() if n} == dict(outcomes)
    return outcomes


def check_store(
    store: Path, raw: pl.DataFrame, splits: dict[int, str], spec: dict, profile: dict, codes: pl.DataFrame | None = None
) -> Counter:
    """All files of a store; returns how often each outcome is met."""
    chosen = DatasetProfile(**{"name": "p"} | profile)
    subjects = subjects_of(raw.iter_rows(named=True), chosen)
    reference = reference_for(store, subjects, splits, spec, profile, codes)
    check_vocabulary(store, reference)
    check_bins(store, reference)
    return check_timelines(store, reference, subjects)
