"""`ehrctx score`: the written tables against scikit-learn, masked counts, refusals."""

from __future__ import annotations

import json
import shutil
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ehrctx.artifacts import fingerprint, new_artifact
from ehrctx.errors import InputError
from ehrctx.probe.groups import write_groups
from ehrctx.probe.predict import KIND as PREDICTED
from ehrctx.probe.predict import PREDICTIONS, probe_counts, read_predictions
from ehrctx.probe.statistics import FEW_POSITIVES
from ehrctx.probe.suppression import COUNTS
from ehrctx.probe.tables import model_tables, write_scores
from ehrctx.study import Privacy, Probe, Statistics
from ehrctx.tasks.label_sets import read_labels

ONE_HEAD = Probe(regularization=(1e-2,), max_iterations=100, baselines=("logistic_regression",))
STATISTICS = Statistics(replicates=40, level=0.9, seed=2)


def row(table: pl.DataFrame, **values: str) -> dict:
    found = table.filter(pl.all_horizontal(pl.col(k) == v for k, v in values.items()))
    assert found.height == 1
    return found.row(0, named=True)


@pytest.fixture(scope="module")
def counts(cohort, tmp_path_factory):
    """Predictions from counts of the cohort's tokens."""
    folder = tmp_path_factory.mktemp("probes") / "counts"
    probe_counts(cohort.timelines, cohort.labels, ONE_HEAD, folder)
    return folder


@pytest.fixture(scope="module")
def groups(cohort, repository, tmp_path_factory):
    """Age bands and sex at the cohort's prediction times."""
    folder = tmp_path_factory.mktemp("groups") / "groups"
    write_groups(cohort.events, str(repository / "pipelines/datasets/simulated.yaml"), cohort.labels, folder)
    return folder


def test_scores_of_the_cohort_end_to_end(cohort, counts, groups, write_model, tmp_path):
    _, predictions, facts = read_predictions(counts)
    predictions = predictions.collect()
    copy = tmp_path / "probes" / "mamba-tiny-16"
    with new_artifact(copy, PREDICTED, {"model": "mamba-tiny-16"}, {"labels": cohort.labels}, facts) as partial:
        predictions.with_columns(model=pl.lit("mamba-tiny-16")).write_parquet(partial / "predictions.parquet")
    model = write_model(tmp_path / "models" / "mamba-tiny-16", "mamba-tiny-16", cohort.timelines)
    out = tmp_path / "report"
    returned = write_scores(
        [counts, copy], [model], cohort.labels, groups, cohort.splits, STATISTICS, Privacy(minimum_count=60), out
    )
    tables = {file.stem: pl.read_csv(file, infer_schema=False) for file in out.glob("*.csv")}
    open_to_all = Privacy(minimum_count=1)
    write_scores(
        [counts, copy], [model], cohort.labels, groups, cohort.splits, STATISTICS, open_to_all, tmp_path / "exact"
    )
    exact = {file.stem: pl.read_csv(file, infer_schema=False) for file in (tmp_path / "exact").glob("*.csv")}
    assert sorted(tables) == [
        "calibration", "curves", "differences", "few_shot", "labels", "models", "net_benefit", "reliability", "scores",
        "subgroups", "wins",
    ]  # fmt: skip
    assert not [file.name for file in out.iterdir() if file.name.startswith(".")]

    stays = predictions.filter((pl.col("task") == "guo_los") & (pl.col("split") == "held_out"))
    auroc = roc_auc_score(stays["y"].to_numpy(), stays["p"].to_numpy())
    for of_model in ("counts", "mamba-tiny-16"):
        written = row(tables["scores"], task="guo_los", model=of_model, score="auroc")
        assert written["n_positive"] == "<60"
        assert [written[key] for key in ("value", "lower", "upper")] == [None] * 3, "an AUROC would tell how many"
        shown = row(exact["scores"], task="guo_los", model=of_model, score="auroc")
        assert float(shown["value"]) == pytest.approx(auroc, abs=1e-6)
        assert float(shown["lower"]) < auroc < float(shown["upper"])
    assert returned.height == tables["scores"].drop_nulls("value").height
    assert exact["differences"]["value"].cast(float).abs().max() == 0

    split = pl.read_parquet(cohort.splits)
    seen = []
    for task, labels in read_labels(cohort.labels).items():
        for name in ("train", "tuning", "held_out"):
            ids = split.filter(pl.col("split") == name)["subject_id"]
            part = labels.filter(pl.col("subject_id").is_in(ids.to_list()))
            positive = part.filter(pl.col("boolean_value"))
            numbers = {
                "n": part.height,
                "n_positive": positive.height,
                "n_subjects": len(set(part["subject_id"])),
                "n_positive_subjects": len(set(positive["subject_id"])),
            }
            written = row(tables["labels"], task=task, split=name)
            for key, number in numbers.items():
                whole = numbers[{"n_positive": "n", "n_positive_subjects": "n_subjects"}.get(key, key)]
                rest = whole - number
                bound = f">={max(60, whole - 59)}" if 0 < rest < 60 else str(number)
                assert written[key] == ("<60" if 0 < number < 60 else bound)
                seen.append(written[key])
    assert "<60" in seen
    assert any(value.isdigit() and value != "0" for value in seen)

    (of_model,) = tables["models"].to_dicts()
    assert (of_model["model"], of_model["context"], of_model["subjects"]) == ("mamba-tiny-16", "16", "<60")
    assert float(of_model["validation_loss"]) == 8.0
    curve = [(r["model"], r["arch"], r["context"], r["tokens"], float(r["loss"])) for r in tables["curves"].to_dicts()]
    assert curve == [("mamba-tiny-16", "mamba", "16", "1", 9.0), ("mamba-tiny-16", "mamba", "16", "2", 8.0)]

    provenance = json.loads((out / "provenance.json").read_text())
    for path in (counts, copy, model, cohort.labels, cohort.splits):
        assert fingerprint(path) in provenance["inputs"].values()


def test_the_mean_does_not_give_a_hidden_task_away(cohort, counts, groups, tmp_path):
    """Of three tasks one has few positive subjects: the mean less the other two would tell its score."""
    shown = {}
    for minimum in (1, 24):
        out, privacy = tmp_path / str(minimum), Privacy(minimum_count=minimum)
        write_scores([counts], [], cohort.labels, groups, cohort.splits, STATISTICS, privacy, out)
        table = pl.read_csv(out / "scores.csv", infer_schema=False).filter(score="auroc", head="logistic_regression")
        shown[minimum] = {own["task"]: own for own in table.to_dicts()}
    for minimum, rows in shown.items():
        means = [rows.pop(name) for name in ("macro", "macro_many_positives") if name in rows]
        hidden = {task for task, own in rows.items() if not all(own[count].isdigit() for count in COUNTS)}
        assert len(hidden) == (0 if minimum == 1 else 1)
        parts = [own for task, own in rows.items() if task not in hidden]
        many = [own for own in parts if int(own["n_positive_subjects"]) >= FEW_POSITIVES]
        assert len(means) == 2
        for mean, of in zip(means, (parts, many), strict=True):
            assert int(mean["n_positive"]) == sum(int(own["n_positive"]) for own in of)
            assert float(mean["value"]) == pytest.approx(np.mean([float(own["value"]) for own in of]), abs=1e-6)
        assert all(rows[task]["lower"] is None for task in hidden)


def test_predictions_of_other_labels_or_other_splits_and_repeated_ones_are_refused(cohort, counts, groups, tmp_path):
    words = [STATISTICS, Privacy(), tmp_path / "report"]
    with pytest.raises(InputError, match="predictions of 'counts' are given twice"):
        write_scores([counts, counts], [], cohort.labels, groups, cohort.splits, *words)
    other = tmp_path / "labels"
    shutil.copytree(cohort.labels, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"facts": {}}))
    with pytest.raises(InputError, match="made from other labels"):
        write_scores([counts], [], other, groups, cohort.splits, *words)
    moved = pl.read_parquet(cohort.splits).with_columns(
        split=pl.when(pl.col("split") == "held_out").then(pl.lit("tuning")).otherwise(pl.col("split"))
    )
    moved.write_parquet(tmp_path / "splits.parquet")
    with pytest.raises(InputError, match=r"splits\.parquet puts [0-9]+ subjects into another split"):
        write_scores([counts], [], cohort.labels, groups, tmp_path / "splits.parquet", *words)
    assert not (tmp_path / "report").exists()


def test_no_subject_is_named(cohort, write_labels_folder, write_groups_folder, write_model, tmp_path):
    ids = 987_654_000 + np.arange(60)
    labels = pl.DataFrame(
        {"subject_id": ids, "prediction_time": [datetime(2001, 2, 3)] * 60, "boolean_value": ids % 3 == 0}
    )
    folder = write_labels_folder(tmp_path / "labels", {"stay": labels})
    split = np.where(ids % 2, "train", "held_out")
    pl.DataFrame({"subject_id": ids, "split": split}).write_parquet(tmp_path / "splits.parquet")
    constants = {"task": "stay", "model": "counts", "head": "logistic_regression", "k": "all", "replicate": 0}
    frame = labels.rename({"boolean_value": "y"}).with_columns(
        split=pl.Series(split), p=0.5, **{k: pl.lit(v) for k, v in constants.items()}
    )
    with new_artifact(tmp_path / "counts", PREDICTED, {"model": "counts"}, {"labels": folder}, {"stay": {}}) as partial:
        frame.select(pl.col(c).cast(t) for c, t in PREDICTIONS.items()).write_parquet(partial / "predictions.parquet")
    model = write_model(tmp_path / "gpt-tiny-16", "gpt-tiny-16", cohort.timelines)
    groups = write_groups_folder(tmp_path / "groups", folder)
    words = [STATISTICS, Privacy(), tmp_path / "report"]
    write_scores([tmp_path / "counts"], [model], folder, groups, tmp_path / "splits.parquet", *words)
    files = list((tmp_path / "report").iterdir())
    assert len(files) == 12
    assert not [file.name for file in files if "987654" in file.read_text()]
    pl.DataFrame({"subject_id": ids, "split": "held_out"}).write_parquet(tmp_path / "splits.parquet")
    with pytest.raises(InputError, match="30 subjects into another split") as caught:
        write_scores([tmp_path / "counts"], [model], folder, groups, tmp_path / "splits.parquet", *words)
    assert "987654" not in str(caught.value)


def test_models_and_their_curves_are_told(cohort, write_model, tmp_path):
    names = ("llama-tiny-32", "hyena-tiny-16")
    table, curves = model_tables([write_model(tmp_path / name, name, cohort.timelines) for name in names])
    assert table.columns == [
        "model", "arch", "context", "parameters", "tokens", "seconds", "tokens_per_second", "real_token_share",
        "subjects", "passes", "device", "earlier_tokens", "validation_loss",
    ]  # fmt: skip
    assert table.rows() == [
        (name, name.split("-")[0], context, 1, 2, 3.0, 4.0, 0.5, 7, 1.5, "cpu", 0, 8.0)
        for name, context in zip(names, (32, 16), strict=True)
    ]
    assert curves.columns == ["model", "arch", "context", "tokens", "loss"]
    assert curves.rows() == [
        (name, name.split("-")[0], context, tokens, loss)
        for name, context in zip(names, (32, 16), strict=True)
        for tokens, loss in ((1, 9.0), (2, 8.0))
    ]


def test_no_models_give_empty_tables():
    table, curves = model_tables([])
    assert table.height == curves.height == 0


def test_a_task_that_cannot_be_estimated_says_why(cohort, write_labels_folder, write_groups_folder, tmp_path):
    stays = read_labels(cohort.labels)["guo_los"]
    labels = write_labels_folder(
        tmp_path / "labels", {"never": stays.with_columns(boolean_value=pl.lit(False)), "stay": stays}
    )
    probe_counts(cohort.timelines, labels, ONE_HEAD, tmp_path / "counts")
    privacy = Privacy(minimum_count=1)
    words = [write_groups_folder(tmp_path / "groups", labels), cohort.splits, STATISTICS, privacy, tmp_path / "report"]
    table = write_scores([tmp_path / "counts"], [], labels, *words)
    assert table["task"].unique().to_list() == ["stay"]
    counted = pl.read_csv(tmp_path / "report" / "labels.csv")
    notes = {task: set(counted.filter(pl.col("task") == task)["note"]) for task in ("never", "stay")}
    assert notes["never"] == {"one class only in train and held_out"}
    assert not any(notes["stay"] - {None})
    assert counted.filter(pl.col("task") == "never")["n_positive"].to_list() == [0, 0, 0]
