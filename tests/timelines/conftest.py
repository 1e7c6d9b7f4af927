"""Small random data sets, stores built from them, and a slow tokenizer to compare with."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import yaml

SPECIALS = ["[BOS]", "[EOS]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]
SCHEMA = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
    "unit": pl.String,
}
SPLITS = ("train", "train", "train", "tuning", "held_out")


def _kind(event):
    value, text = event["numeric_value"], event["text_value"]
    if value is not None and math.isfinite(value):
        return "number"
    return "text" if text else "code"


def _edges(weighted, bins):
    """Interior edges of weighted quantile bins, in exact arithmetic. `weighted` is a list of (value, Fraction)."""
    total = sum(w for _, w in weighted)
    edges = []
    for i in range(1, bins):
        so_far = Fraction(0)
        for value, weight in sorted(weighted):
            so_far += weight
            if so_far > total * i / bins:
                edges.append(value)
                break
    lowest = min(v for v, _ in weighted)
    return sorted({e for e in edges if e > lowest})


def _vocabulary(subjects, bins, size):
    """CLMBR's vocabulary from the train subjects' events (a list of lists of dicts): a list of dicts, ranked.

    Written from the published rules: an event weighs 1 / (subjects x events of the subject); codes count value-less
    events, texts count by (code, text), numbers fall into weighted quantile bins of (code, unit), each of which weighs
    an equal share; the smallest p ln p + (1 - p) ln(1 - p) come first.
    """
    plain, counts, numbers = {}, {}, {}
    for events in subjects:
        for event in events:
            weight = Fraction(1, len(subjects) * len(events))
            kind = _kind(event)
            if kind == "number":
                key = (event["code"], event["unit"])
                numbers.setdefault(key, []).append((event["numeric_value"] + 0.0, weight))
            else:
                key = (kind, event["code"], event["text_value"] if kind == "text" else None)
                plain[key] = plain.get(key, 0) + weight
                counts[key] = counts.get(key, 0) + 1
    entries = [
        {"kind": k, "code": c, "unit": None, "text": t, "lower": None, "upper": None, "p": p, "count": counts[k, c, t]}
        for (k, c, t), p in plain.items()
    ]
    for (code, unit), weighted in numbers.items():
        edges = [-math.inf, *_edges(weighted, bins), math.inf]
        share = sum(w for _, w in weighted) / bins
        for lower, upper in pairwise(edges):
            count = sum(lower <= value < upper for value, _ in weighted)
            assert count > 0
            entry = {"kind": "number", "code": code, "unit": unit, "text": None, "lower": lower, "upper": upper}
            entries.append(entry | {"p": share, "count": count})

    def rank(entry):
        p = float(entry["p"])
        score = 0.0 if p in (0.0, 1.0) else p * math.log(p) + (1 - p) * math.log1p(-p)
        tie = (entry["kind"], entry["code"], entry["unit"] or "", entry["text"] or "", entry["lower"] or 0.0)
        return (float(f"{score:.10e}"), *tie)

    return sorted(entries, key=rank)[: size - len(SPECIALS)]


def _encode(events, rows, unknown, static_prefix):
    """Event by event: (token or None, outcome). `rows` are the vocabulary's rows as dicts."""
    found = []
    for event in events:
        if event["time"] is None and not static_prefix:
            found.append((None, "static"))
            continue
        kind = _kind(event)
        exact = fallback = None
        for row in rows:
            if row["kind"] == "special" or row["code"] != event["code"]:
                continue
            if row["kind"] == "code":
                fallback = row["token"]
            if row["kind"] != kind:
                continue
            if (
                kind == "code"
                or (kind == "text" and row["text"] == event["text_value"])
                or (
                    kind == "number"
                    and (row["unit"] or "") == (event["unit"] or "")
                    and row["lower"] <= event["numeric_value"] < row["upper"]
                )
            ):
                assert exact is None
                exact = row["token"]
        if exact is not None:
            found.append((exact, kind))
        elif fallback is not None:
            found.append((fallback, "value ignored"))
        elif unknown == "unk":
            found.append((SPECIALS.index("[UNK]"), "unknown token"))
        else:
            found.append((None, "out of vocabulary"))
    return found


def _random_events(seed, subjects=12, longest=40, microseconds=False, static=True):
    """Sorted raw events of subjects 1..n with values, texts, units, zeros, NaN and infinities."""
    rng = np.random.default_rng(seed)
    rows = []
    for subject in range(1, subjects + 1):
        for _ in range(int(rng.integers(0, 3)) if static else 0):
            rows.append((subject, None, f"STATIC//{rng.integers(0, 4)}", None, None, None))
        seconds = np.sort(rng.integers(0, 40 * 86_400, int(rng.integers(1, longest))))
        born = rng.random() < 0.5
        for i, second in enumerate(seconds.tolist()):
            time = datetime(2000, 1, 1) + timedelta(seconds=0 if born and not i else second)
            if microseconds and (i or not born):
                time += timedelta(microseconds=int(rng.choice([0, 1, 500_000, 999_999])))
            code = "MEDS_BIRTH" if born and not i else f"C{int(rng.integers(0, 9)) ** 2 // 9}"
            if rng.random() < 0.05 and code != "MEDS_BIRTH":
                code = f"RARE//{subject}"
            value = unit = text = None
            if code != "MEDS_BIRTH":
                draw = rng.random()
                if draw < 0.5:
                    value = float(np.float32(rng.choice([rng.normal(), 0.0, -0.0, float(rng.integers(0, 4))])))
                    unit = [None, "mg", "mmol"][int(rng.integers(0, 3))]
                elif draw < 0.55:
                    value = [math.nan, math.inf, -math.inf][int(rng.integers(0, 3))]
                if rng.random() < 0.25:
                    text = ["", "low", "high", f"t{rng.integers(0, 20)}"][int(rng.integers(0, 4))]
            rows.append((subject, time, code, value, text, unit))
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return frame.sort("subject_id", "time", nulls_last=False, maintain_order=True)


@pytest.fixture(scope="session")
def slow():
    """The slow, obviously right tokenizer: `slow.kind`, `slow.edges`, `slow.vocabulary`, `slow.encode`."""
    return SimpleNamespace(kind=_kind, edges=_edges, vocabulary=_vocabulary, encode=_encode, specials=SPECIALS)


@pytest.fixture(scope="session")
def random_events():
    return _random_events


@pytest.fixture(scope="session")
def events_frame():
    """A function: rows of (subject_id, time, code, numeric_value, text_value, unit) as a frame, filled with nulls."""

    def frame(rows):
        return pl.DataFrame([(*r, *[None] * (6 - len(r))) for r in rows], schema=SCHEMA, orient="row")

    return frame


@pytest.fixture(scope="session")
def build(tmp_path_factory, write_meds):
    """A function: a frame (or a dict of shards) -> the folder of its timelines, by way of files.

    Subjects i belong to train, train, train, tuning, held_out in turn unless `splits` says otherwise; `spec` and
    `profile` are keys of the YAML files.
    """
    from ehrctx.timelines.build import build_timelines

    def made(shards, splits=None, spec=None, profile=None, codes=None):
        shards = shards if isinstance(shards, dict) else {"0": shards}
        root = tmp_path_factory.mktemp("store")
        subjects = sorted({s for f in shards.values() for s in f["subject_id"].to_list()})
        splits = splits or {s: SPLITS[i % len(SPLITS)] for i, s in enumerate(subjects)}
        write_meds(root / "events", shards, splits, codes)
        (root / "profile.yaml").write_text(yaml.safe_dump({"name": "p", "unit_column": "unit"} | (profile or {})))
        (root / "spec.yaml").write_text(yaml.safe_dump({"name": "t"} | (spec or {})))
        splits_file = root / "events" / "metadata" / "subject_splits.parquet"
        out = root / "timelines"
        build_timelines(root / "events", str(root / "profile.yaml"), splits_file, str(root / "spec.yaml"), out)
        return out

    return made
