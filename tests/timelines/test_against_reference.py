"""Vocabularies, bins and timelines, event by event, against the reference: all shipped specs and many more."""

import random
from pathlib import Path

import polars as pl
import pytest
import yaml
from compared import check_bins, check_store, check_timelines, check_vocabulary, reference_for
from random_records import PROFILE, SPLITS, codes_frame, random_records
from reference_events import subjects_of

from ehrctx.events.profile import DatasetProfile
from ehrctx.timelines.build import build_timelines

SHIPPED = sorted(Path(__file__).resolve().parents[2].joinpath("tokenizers").glob("*.yaml"))
OUTCOMES = {
    "code", "text", "number", "value ignored", "unseen unit", "rolled up", "unknown token", "out of vocabulary",
    "static", "code in place of its description", "value is not finite", "text is a note",
}  # fmt: skip


def shipped(file):
    return yaml.safe_load(file.read_text())


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
@pytest.mark.parametrize("seed", range(2))
def test_shipped_specs(build, file, seed):
    raw = random_records(seed, subjects=25)
    spec = shipped(file) | ({"roll_up": {"fewer_than": 6}} if "roll_up" in shipped(file) else {})
    store = build(raw, SPLITS, spec, PROFILE, codes_frame())
    check_store(store, raw, SPLITS, spec, PROFILE, codes_frame())


def combined_specs():
    """Every choice with every other, in time; deterministic."""
    draw = random.Random(0)
    for number in range(48):
        spec = {
            "bins": [0, 2, 5, 10][number % 4],
            "values": ["joined", "separate"][number // 4 % 2],
            "ranking": ["entropy", "count"][number // 8 % 2],
            "weights": draw.choice(["subject", "event"]),
            "texts": draw.random() < 0.7,
            "vocabulary_size": draw.choice([150, 170, 250, 1000]),
            "unknown": draw.choice(["drop", "unk"]),
            "static_prefix": draw.random() < 0.7,
            "visit_tokens": draw.random() < 0.5,
        }
        if draw.random() < 0.5:
            weeks = draw.choice([1, 3, 7])
            spec["time_tokens"] = {"weeks_from": weeks, "months_from": 4 * weeks, "long_term_from": 50 * weeks}
        if draw.random() < 0.3:
            spec["age_bands"] = [1, 18, 60]
        if number % 5 == 4:
            spec |= {"descriptions": True} | ({"values": "separate"} if spec["bins"] else {})
        elif draw.random() < 0.5:
            spec["roll_up"] = {"fewer_than": draw.choice([1, 3, 6, 12, 40])}
        yield spec


def test_combined_specs(build):
    """In one test, since together they are to meet everything that an event can meet."""
    met = set()
    for seed, spec in enumerate(combined_specs()):
        raw = random_records(seed, subjects=(6, 15, 25)[seed % 3], longest=(5, 40, 80)[seed % 3])
        store = build(raw, SPLITS, spec, PROFILE, codes_frame())
        met |= check_store(store, raw, SPLITS, spec, PROFILE, codes_frame()).keys()
    assert met == OUTCOMES


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ranking", ["entropy", "count"])
def test_weights_are_those_of_exact_arithmetic(build, seed, ranking):
    """The store counts in whole units; the order of entries that weigh the same may differ by these."""
    spec, raw = {"bins": 4, "ranking": ranking}, random_records(seed, subjects=20)
    store = build(raw, SPLITS, spec, PROFILE)
    chosen = subjects_of(raw.iter_rows(named=True), DatasetProfile(name="p", **PROFILE))
    exact = reference_for(store, chosen, SPLITS, spec, PROFILE, whole=None)
    columns = ["kind", "code", "unit", "text", "lower"]
    ours = {
        row[:-1]: row[-1] for row in pl.read_parquet(store / "vocabulary.parquet")[7:].select(*columns, "weight").rows()
    }
    expected = {tuple(row[c] for c in columns): float(row["p"]) for row in exact.vocabulary[7:]}
    assert ours == pytest.approx(expected, abs=1e-9)
    assert list(exact.bins_of) == list(exact.bins_of)


# ---------------------------------------------------------------------------------------------- real data


@pytest.fixture(scope="module")
def demo(mimic_demo, repository):
    """The demo's profile, its events by subject, its splits and codes."""
    file = repository / "pipelines/datasets/mimic_iv.yaml"
    profile = yaml.safe_load(file.read_text())
    columns = ["subject_id", "time", "code", "numeric_value", "text_value", "unit"]
    shards = sorted((mimic_demo / "data").rglob("*.parquet"))
    raw = pl.concat([pl.read_parquet(shard, columns=columns) for shard in shards])
    subjects = subjects_of(raw.iter_rows(named=True), DatasetProfile(**profile))
    splits = dict(pl.read_parquet(mimic_demo / "metadata/subject_splits.parquet").select("subject_id", "split").rows())
    codes = pl.read_parquet(mimic_demo / "metadata/codes.parquet").select("code", "description", "parent_codes")
    return file, profile, subjects, splits, codes


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_real_demo(mimic_demo, demo, tmp_path, file):
    profile_file, profile, subjects, splits, codes = demo
    splits_file = mimic_demo / "metadata/subject_splits.parquet"
    facts = build_timelines(mimic_demo, str(profile_file), splits_file, str(file), tmp_path / "timelines")
    reference = reference_for(tmp_path / "timelines", subjects, splits, shipped(file), profile, codes)
    check_vocabulary(tmp_path / "timelines", reference)
    check_bins(tmp_path / "timelines", reference)
    check_timelines(tmp_path / "timelines", reference, subjects)
    assert facts["events"] == 916_166
    assert facts["subjects"] == 100
    assert facts["largest_quantile_error"] == 0.0
