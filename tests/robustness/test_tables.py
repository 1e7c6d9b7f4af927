"""The tables of `ehrctx robustness`: every row, counts of few people masked, and nothing half-written on failure."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrctx.artifacts import fingerprint, new_artifact
from ehrctx.errors import InputError
from ehrctx.probe.predict import KIND as PREDICTED
from ehrctx.probe.predict import PREDICTIONS
from ehrctx.robustness.progression import KIND as LOSSES
from ehrctx.robustness.properties import COUNTS, PROPERTIES
from ehrctx.robustness.properties import KIND as DESCRIBED
from ehrctx.robustness.strata import STRATIFIED, TABLE
from ehrctx.robustness.tables import write_tables
from ehrctx.study import Perplexity, Privacy, Statistics

STATISTICS = Statistics(replicates=30, level=0.9, seed=2)
SETTINGS = Perplexity(minimum_tokens=5, minimum_subjects=2, bins_per_octave=1)
MODELS = ("gpt-tiny-64", "mamba-tiny-64")
N_LABELS, N_SUBJECTS = 41, 13
NAMES = ("perplexity.csv", "robustness.json", "strata.csv")


def write(folder: Path, kind: str, settings: dict, inputs: dict, name: str, table: pl.DataFrame) -> Path:
    with new_artifact(folder, kind, settings, inputs) as partial:
        table.write_parquet(partial / name)
    return folder


@pytest.fixture
def made(tmp_path):
    """What `ehrctx robustness` reads: the predictions of two models, properties of the same labels, token losses."""
    labels = tmp_path / "labels.txt"
    labels.write_text("the labels")
    rng = np.random.default_rng(3)
    key = {
        "subject_id": [900_000 + i % N_SUBJECTS for i in range(N_LABELS)],
        "prediction_time": [datetime(2001, 1, 1) + timedelta(days=i) for i in range(N_LABELS)],
    }
    y = rng.random(N_LABELS) < 0.4
    predictions, losses = [], []
    for model in MODELS:
        constants = {"task": "stay", "model": model, "head": "logistic_regression", "k": "all", "replicate": 0}
        frame = pl.DataFrame({**constants, **key, "split": "held_out", "y": y, "p": rng.random(N_LABELS)})
        frame = frame.select(pl.col(c).cast(t) for c, t in PREDICTIONS.items())
        place = tmp_path / "probes" / model
        predictions.append(write(place, PREDICTED, {"model": model}, {"labels": labels}, "predictions.parquet", frame))
        lengths = [4 + 3 * i for i in range(N_SUBJECTS)]
        tokens = pl.DataFrame(
            {
                "subject_id": np.repeat(900_000 + np.arange(N_SUBJECTS), lengths),
                "position": np.concatenate([np.arange(1, n + 1) for n in lengths]),
                "repeat": np.concatenate([np.arange(n) % 2 == 1 for n in lengths]),
                "loss": rng.exponential(2, sum(lengths)).astype(np.float32),
            }
        )
        place = tmp_path / "losses" / model
        losses.append(write(place, LOSSES, {"model": model}, {}, "losses.parquet", tokens))
    values = {c: rng.integers(1, 99, N_LABELS) if c in COUNTS else rng.random(N_LABELS) for c in PROPERTIES}
    described = pl.DataFrame(values | key).select(pl.col(c).cast(t) for c, t in PROPERTIES.items())
    inputs = {"labels": labels}
    properties = write(tmp_path / "properties", DESCRIBED, {}, inputs, "properties.parquet", described)
    return {"predictions": predictions, "properties": properties, "losses": losses}


def tables_of(made, out, minimum_count=1, **changes):
    arguments = {"statistics": STATISTICS, "perplexity": SETTINGS, "privacy": Privacy(minimum_count=minimum_count)}
    return write_tables(**(made | arguments | changes), out=out)


def read(file: Path) -> pl.DataFrame:
    return pl.read_csv(file, infer_schema=False)


def test_both_tables_and_their_sources_are_written(made, tmp_path):
    out = tmp_path / "report"
    returned = tables_of(made, out)
    assert sorted(p.name for p in out.iterdir()) == list(NAMES)
    strata, perplexity = read(out / "strata.csv"), read(out / "perplexity.csv")
    assert strata.columns == list(TABLE)
    assert strata.height == len(MODELS) * len(STRATIFIED) * 5
    assert perplexity.columns == [
        "model", "position_from", "position_to", "kind", "median", "lower", "upper", "n", "n_subjects",
    ]  # fmt: skip
    assert set(perplexity["model"]) == set(MODELS)
    for name, written in (("strata", strata), ("perplexity", perplexity)):
        assert returned[name].height == written.height
        for column in ("value", "lower", "upper") if name == "strata" else ("median", "lower", "upper"):
            assert written[column].cast(float).to_numpy() == pytest.approx(returned[name][column].to_numpy(), abs=1e-6)


def test_the_brier_score_of_all_quarters_together_is_that_of_the_task(made, tmp_path):
    tables_of(made, tmp_path / "report")
    strata = read(tmp_path / "report" / "strata.csv").filter(pl.col("task") == "stay", pl.col("stratum") != "Q4-Q1")
    for model, folder in zip(MODELS, made["predictions"], strict=True):
        frame = pl.read_parquet(folder / "predictions.parquet")
        brier = ((frame["p"] - frame["y"].cast(float)) ** 2).mean()
        for name in STRATIFIED:
            own = strata.filter(pl.col("model") == model, pl.col("property") == name)
            n, value = own["n"].cast(int).to_numpy(), own["value"].cast(float).to_numpy()
            assert n.sum() == N_LABELS
            assert (n * value).sum() / n.sum() == pytest.approx(brier, abs=1e-6)


def test_no_subject_is_named(made, tmp_path):
    tables_of(made, tmp_path / "report")
    for file in (tmp_path / "report").iterdir():
        assert not re.search(r"9000[01][0-9]", file.read_text()), "a subject's id"


def test_the_first_position_has_one_token_of_every_subject(made, tmp_path):
    tables_of(made, tmp_path / "report")
    rows = read(tmp_path / "report" / "perplexity.csv").filter(position_from="1", kind="all")
    for model, folder in zip(MODELS, made["losses"], strict=True):
        losses = pl.read_parquet(folder / "losses.parquet").filter(pl.col("position") == 1)["loss"].cast(float)
        (row,) = rows.filter(model=model).to_dicts()
        assert (row["position_to"], row["n"], row["n_subjects"]) == ("1", str(N_SUBJECTS), str(N_SUBJECTS))
        assert float(row["median"]) == pytest.approx(np.median(np.exp(losses.to_numpy())), rel=1e-5)


def test_counts_under_the_minimum_are_masked_and_no_others(made, tmp_path):
    exact, masked = tmp_path / "exact", tmp_path / "masked"
    tables_of(made, exact)
    tables_of(made, masked, minimum_count=11)
    seen = set()
    for name in ("strata", "perplexity"):
        before, after = read(exact / f"{name}.csv"), read(masked / f"{name}.csv")
        for column in before.columns:
            if column not in ("n", "n_positive", "n_subjects", "n_positive_subjects"):
                assert before[column].equals(after[column])
                continue
            for count, shown in zip(before[column], after[column], strict=True):
                if shown.startswith(">="):  # it would give another away
                    assert int(shown[2:]) <= int(count)
                else:
                    assert shown == ("<11" if 0 < int(count) < 11 else count)
                seen.add((name, column, shown == "<11"))
    assert {("strata", c, True) for c in ("n", "n_positive", "n_subjects")} <= seen
    assert {("strata", "n", False), ("perplexity", "n", True), ("perplexity", "n_subjects", True)} <= seen


def test_settings_and_fingerprints_are_recorded(made, tmp_path):
    tables_of(made, tmp_path / "report")
    recorded = json.loads((tmp_path / "report" / "robustness.json").read_text())
    assert recorded["statistics"] == STATISTICS.model_dump(mode="json")
    assert recorded["perplexity"] == SETTINGS.model_dump()
    sources = [*made["predictions"], made["properties"], *made["losses"]]
    assert recorded["inputs"] == {f"{p.parent.name}/{p.name}": fingerprint(p) for p in sources}
    assert len(recorded["inputs"]) == 5


def test_the_same_inputs_give_the_same_bytes(made, tmp_path):
    for out in ("first", "second"):
        tables_of(made, tmp_path / out)
    for name in NAMES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def break_losses(made):
    (made["losses"][-1] / "manifest.json").unlink()
    return InputError


def break_properties(made):
    (made["properties"] / "manifest.json").unlink()
    return InputError


def break_predictions(made):
    (made["predictions"][0] / "manifest.json").unlink()
    return InputError


@pytest.mark.parametrize("damage", [break_losses, break_properties, break_predictions])
def test_a_failure_leaves_the_old_tables_alone(made, tmp_path, damage):
    out = tmp_path / "report"
    tables_of(made, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(damage(made), match="is not a finished"):
        tables_of(made, out, minimum_count=11)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    with pytest.raises(InputError):
        tables_of(made, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize("failing", ["strata.csv", "perplexity.csv"])
def test_a_file_is_written_whole_or_not_at_all(made, tmp_path, monkeypatch, failing):
    """A disk that fills up in the middle of a table: no partial file is left, and nothing says that it is finished."""
    out = tmp_path / "report"
    write_csv = pl.DataFrame.write_csv

    def full(frame, file, **options):
        if failing in Path(file).name:
            Path(file).write_text("task,mod")
            raise OSError(28, "No space left on device")
        return write_csv(frame, file, **options)

    monkeypatch.setattr(pl.DataFrame, "write_csv", full)
    with pytest.raises(OSError, match="No space left"):
        tables_of(made, out)
    left = sorted(p.name for p in out.iterdir())
    assert failing not in left
    assert "robustness.json" not in left
    assert not [name for name in left if name.startswith(".")]


def test_predictions_and_properties_of_different_labels_are_refused(made, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("other labels")
    folder = made["properties"]
    table = pl.read_parquet(folder / "properties.parquet")
    write(folder, DESCRIBED, {}, {"labels": labels}, "properties.parquet", table)
    with pytest.raises(InputError, match="made from different labels") as caught:
        tables_of(made, tmp_path / "report")
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "report").exists()
