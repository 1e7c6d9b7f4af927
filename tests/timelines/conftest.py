"""Small random data sets and stores built from them."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import yaml
from random_records import SCHEMA

SPLITS = ("train", "train", "train", "tuning", "held_out")


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

    def made(shards, splits=None, spec=None, profile=None, codes=None, threads=1):
        shards = shards if isinstance(shards, dict) else {"0": shards}
        root = tmp_path_factory.mktemp("store")
        subjects = sorted({s for f in shards.values() for s in f["subject_id"].to_list()})
        splits = splits or {s: SPLITS[i % len(SPLITS)] for i, s in enumerate(subjects)}
        write_meds(root / "events", shards, splits, codes)
        (root / "profile.yaml").write_text(yaml.safe_dump({"name": "p", "unit_column": "unit"} | (profile or {})))
        (root / "spec.yaml").write_text(yaml.safe_dump({"name": "t"} | (spec or {})))
        splits_file = root / "events" / "metadata" / "subject_splits.parquet"
        out = root / "timelines"
        build_timelines(root / "events", str(root / "profile.yaml"), splits_file, str(root / "spec.yaml"), out, threads)
        return out

    return made
