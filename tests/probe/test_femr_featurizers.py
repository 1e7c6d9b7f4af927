"""Our counts and ages against femr's own featurizers (femr 0.2.4), where both count the same thing.

What differs by design: femr counts value-less events alone unless it is told otherwise, where each of our tokens has a
column, values in bins too; femr's age is in whole days over 365, ours in seconds over 365.25 days; femr's vocabulary is
that of the labelled subjects, ours that of the train split.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrctx.probe.counts import count_features
from ehrctx.tasks.femr_labels import CONVERT, EVENT
from ehrctx.timelines.build import build_timelines
from ehrctx.timelines.store import Timelines

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("femr") is None, reason="needs femr (pip install --editable '.[femr]' brings it)"
)
T = datetime(2020, 1, 1)


def features_of_femr(data, labels, folder):
    """By (subject, time), the age and the count of each code, from femr's featurizers over a meds_reader database."""
    import pandas as pd
    from femr.featurizers import AgeFeaturizer, CountFeaturizer, FeaturizerList
    from meds_reader import SubjectDatabase

    subprocess.run([sys.executable, "-c", CONVERT, str(data), str(folder), "--num_threads", "1"], check=True)
    database = SubjectDatabase(str(folder), num_threads=1)
    rows = pd.DataFrame(labels, columns=["subject_id", "prediction_time"]).assign(boolean_value=True)
    counter = CountFeaturizer()
    featurizers = FeaturizerList([AgeFeaturizer(is_normalize=False), counter])
    featurizers.preprocess_featurizers(database, rows)
    found = featurizers.featurize(database, rows)
    dense = found["features"].toarray()
    names = {column: code for code, column in counter.code_to_column_index.items()}
    by_key = {}
    for subject, time, row in zip(found["subject_ids"], found["feature_times"], dense, strict=True):
        counts = {names[c]: int(n) for c, n in enumerate(row[1:]) if n}
        by_key[int(subject), time.astype("datetime64[us]").item()] = float(row[0]), counts
    return by_key


def features_of_ours(data, labels, folder, repository):
    """The same, of our count features: the counts are of tokens that are a code alone, and the age is in days."""
    subjects = sorted({s for s, _ in labels})
    profile, splits = folder / "plain.yaml", folder / "splits.parquet"
    profile.write_text("name: plain\n")  # nothing is moved to the end of its day: femr does not
    everybody = pl.read_parquet(data / "data" / "**" / "*.parquet", columns=["subject_id"])["subject_id"].unique()
    pl.DataFrame({"subject_id": everybody, "split": "train"}).write_parquet(splits)
    build_timelines(data, str(profile), splits, str(repository / "tokenizers" / "clmbr.yaml"), folder / "timelines")
    store = Timelines.open(folder / "timelines")
    tokens = pl.read_parquet(folder / "timelines" / "vocabulary.parquet").filter(pl.col("kind") == "code")
    names = dict(tokens.select("token", "code").iter_rows())
    positions = store.positions_of(np.array([s for s, _ in labels]))
    assert set(store.subjects["subject_id"][positions]) == set(subjects)
    rows = count_features(store, positions, np.array([t for _, t in labels], dtype="datetime64[us]")).toarray()
    by_key = {}
    for key, row in zip(labels, rows, strict=True):
        counts = {names[c]: int(n) for c, n in enumerate(row[:-1]) if n and c in names}
        by_key[key] = float(row[-1]) * 365.25, counts
    return by_key


def same_age(days, years_of_femr):
    """femr's whole days, and ours with their fraction, which float32 holds to a hundredth."""
    whole = round(years_of_femr * 365)
    return whole - 0.01 <= days < whole + 1.01


def born(subject, time=datetime(1980, 3, 1)):
    return (subject, time, "MEDS_BIRTH", None, None)


HAND_MADE = [
    (1, None, "SEX//F", None, None), born(1),
    (1, T, "A", None, None), (1, T, "A", None, None), (1, T, "B", None, None),
    (1, T, "SODIUM", 140.0, None), (1, T, "SMOKER", None, "never"),
    (1, T + timedelta(hours=1), "A", None, None), (1, T + timedelta(hours=1, seconds=1), "C", None, None),
    (2, None, "SEX//M", None, None), (2, None, "RACE//X", None, None), born(2, datetime(2019, 2, 28, 12)),
    (2, T + timedelta(days=2), "C", None, None), (2, T + timedelta(days=3), "C", None, None),
    (3, None, "SEX//F", None, None), born(3, datetime(1950, 1, 1)),
]  # fmt: skip
LABELS = [
    (1, T - timedelta(seconds=1)), (1, T), (1, T + timedelta(hours=1)), (1, T + timedelta(days=900)),
    (2, T), (2, T + timedelta(days=2)), (2, T + timedelta(days=3)),
    (3, T),
]  # fmt: skip


def test_a_hand_made_data_set(write_meds, repository, tmp_path):
    data = write_meds(tmp_path / "meds", {"0": pl.DataFrame(HAND_MADE, schema=EVENT, orient="row")})
    theirs = features_of_femr(data, LABELS, tmp_path / "database")
    ours = features_of_ours(data, LABELS, tmp_path, repository)
    assert theirs.keys() == ours.keys() == set(LABELS)
    for key in LABELS:
        assert ours[key][1] == theirs[key][1]
        assert same_age(ours[key][0], theirs[key][0])
    # and by hand, at the very second of two events and one second before a third
    assert ours[LABELS[2]][1] == {"SEX//F": 1, "MEDS_BIRTH": 1, "A": 3, "B": 1}
    assert ours[LABELS[7]][1] == {"SEX//F": 1, "MEDS_BIRTH": 1}


def test_values_are_counted_by_us_alone(write_meds, repository, tmp_path):
    data = write_meds(tmp_path / "meds", {"0": pl.DataFrame(HAND_MADE, schema=EVENT, orient="row")})
    theirs = features_of_femr(data, LABELS[:4], tmp_path / "database")
    features_of_ours(data, LABELS[:4], tmp_path, repository)
    store = Timelines.open(tmp_path / "timelines")
    kinds = dict(pl.read_parquet(tmp_path / "timelines" / "vocabulary.parquet").select("token", "kind").iter_rows())
    position = store.positions_of(np.array([1]))
    row = count_features(store, position, np.array([T], dtype="datetime64[us]")).toarray()[0, :-1]
    total = sum(theirs[1, T][1].values())
    assert total == sum(n for c, n in enumerate(row) if kinds[c] == "code") == 5
    assert row.sum() == total + 2


def test_real_patients(mimic_demo, repository, tmp_path):
    """Six subjects of the demo, each at eight moments of its own, among them the times of events themselves."""
    raw = pl.read_parquet(mimic_demo / "data" / "*" / "*.parquet")
    sizes = raw.group_by("subject_id").len().filter(pl.col("len").is_between(500, 4_000)).sort("subject_id")
    chosen = sizes["subject_id"].head(6).to_list()
    own = raw.filter(pl.col("subject_id").is_in(chosen))
    data = tmp_path / "meds"
    for name in ("data", "metadata"):
        (data / name).mkdir(parents=True)
    columns = ["subject_id", "time", "code", "numeric_value", "text_value"]
    own.select(columns).write_parquet(data / "data" / "0.parquet")
    labels = []
    for subject in chosen:
        times = own.filter(pl.col("subject_id") == subject)["time"].drop_nulls().unique().sort().to_list()
        labels += [(subject, times[len(times) * i // 8]) for i in range(1, 8)]
        labels.append((subject, times[-1] + timedelta(days=30)))
    theirs = features_of_femr(data, labels, tmp_path / "database")
    ours = features_of_ours(data, labels, tmp_path, repository)
    has_value = pl.col("numeric_value").is_not_null() | pl.col("text_value").is_not_null()
    valued = set(own.filter(has_value)["code"])
    compared = 0
    for key in labels:
        mine, other = ({c: n for c, n in found[key][1].items() if c not in valued} for found in (ours, theirs))
        assert mine == other
        assert same_age(ours[key][0], theirs[key][0])
        compared += sum(mine.values())
    assert compared > 5_000
