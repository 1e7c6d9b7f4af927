"""Tasks whose given labels cannot give a score: each is a reason that is told, from the label files to the page."""

import json
import math
import re
from datetime import timedelta

import polars as pl
import pytest

from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.probe.embed import embed
from ehrctx.probe.groups import write_groups
from ehrctx.probe.predict import probe_counts, probe_embeddings, read_predictions
from ehrctx.probe.tables import left_out_text, write_scores
from ehrctx.report.page import write_report
from ehrctx.robustness.properties import write_properties
from ehrctx.robustness.tables import write_tables
from ehrctx.robustness.token_losses import write_token_losses
from ehrctx.study import Labels, Perplexity, Privacy, Probe, Simulation, Statistics, Study
from ehrctx.tasks.imports import first_events
from ehrctx.tasks.label_sets import write_labels

PROBE = Probe(regularization=(0.1, 1.0), baselines=("logistic_regression",))
STATISTICS = Statistics(replicates=20)
PRIVACY = Privacy(minimum_count=3)
MODEL = "gpt-tiny-32"


def given_labels(cohort, folder, tasks):
    """(a) all negative, (b) of one subject alone, (c) none that can be used."""
    first = first_events(open_dataset(cohort.events)).join(pl.read_parquet(cohort.splits), on="subject_id")
    base = first.sort("subject_id").select("subject_id", "split", prediction_time=pl.col("first") + timedelta(days=900))
    train, held_out = (base.filter(pl.col("split") == split).head(1) for split in ("train", "held_out"))

    def of_one(subject):
        """Both classes, at three times."""
        return pl.concat(
            subject.with_columns(pl.col("prediction_time") + timedelta(days=d), boolean_value=pl.lit(d > 0))
            for d in range(3)
        )

    early = base.with_columns(pl.col("prediction_time") - timedelta(days=1_000), boolean_value=pl.lit(True))
    frames = {
        "never": base.with_columns(boolean_value=pl.lit(False)),
        "one_in_train": of_one(train),
        "one_held_out": of_one(held_out),
        "nobody": pl.concat([early.head(7), early.tail(2).with_columns(subject_id=pl.lit(-1, pl.Int64))]),
    }
    folder.mkdir()
    for task in tasks:
        frames[task].drop("split").write_parquet(folder / f"{task}.parquet")
    return [str(folder / f"{task}.parquet") for task in tasks]


NOTES = {
    "never": "one class only in train and held_out",
    "one_in_train": "no labels in held_out",
    "one_held_out": "no labels in train",
    "nobody": "no labels in train and held_out",
}


@pytest.mark.parametrize(
    ("others", "hard"),
    [(["guo_los"], list(NOTES)), ([], list(NOTES)), ([], ["nobody"])],
    ids=["beside a task with scores", "alone", "no label at all"],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_each_reason_is_reported_to_the_end(cohort, repository, write_model, tmp_path, others, hard):
    notes = {task: NOTES[task] for task in hard}
    tasks = [*others, *given_labels(cohort, tmp_path / "given", hard)]
    profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
    labels, report = tmp_path / "labels", tmp_path / "report"
    write_labels(cohort.events, profile, tasks, Labels(), labels)
    model = write_model(tmp_path / MODEL, MODEL, cohort.timelines)

    embed(model, cohort.timelines, labels, tmp_path / "embeddings", threads=1)
    probe_embeddings(tmp_path / "embeddings", labels, PROBE, tmp_path / "probe")
    probe_counts(cohort.timelines, labels, PROBE, tmp_path / "counts")
    predictions = [tmp_path / "probe", tmp_path / "counts"]
    for folder in predictions:
        _, predicted, facts = read_predictions(folder)
        assert set(predicted.collect()["task"]) == set(others)
        assert {task: facts[task]["not_estimable"] for task in notes} == notes
    write_groups(cohort.events, profile, labels, tmp_path / "groups")
    write_scores(predictions, [model], labels, tmp_path / "groups", cohort.splits, STATISTICS, PRIVACY, report)

    write_properties(cohort.timelines, labels, tmp_path / "properties")
    perplexity = Perplexity(subjects=12, minimum_tokens=1, minimum_subjects=1)
    write_token_losses(model, cohort.timelines, perplexity, tmp_path / "losses", 2_000, 1)
    write_tables(predictions, tmp_path / "properties", [tmp_path / "losses"], STATISTICS, perplexity, PRIVACY, report)

    summary = tmp_path / "summary.json"
    found, _ = check(open_dataset(cohort.events))
    summary.write_text(json.dumps({"name": "cohort", **found}))
    study = Study(name="s", simulate=Simulation(), models=(MODEL,), tasks=tuple(tasks))
    write_report(report, cohort.timelines, summary, study.model_dump(mode="json"), tmp_path / "index.html")

    for name in ("scores", "differences", "strata"):
        table = pl.read_csv(report / f"{name}.csv")
        assert set(table["task"]) == set(others)
        assert all(math.isfinite(value) for value in table["value"])
    assert not [file.name for file in report.glob("*.csv") if "NaN" in file.read_text()]
    counted = pl.read_csv(report / "labels.csv").with_columns(pl.col("note", "left_out").fill_null(""))
    assert dict(counted.filter(pl.col("task") != "guo_los").select("task", "note").rows()) == notes
    assert set(counted.filter(pl.col("task") == "nobody")["left_out"]) == {
        "7 before the subject's first event; <3 of subjects that the data set does not have"
    }
    page = (tmp_path / "index.html").read_text()
    for task, note in notes.items():
        assert f"<li><b>{task}</b> is not estimable: {note}.</li>" in page
    assert "7 before the subject&#39;s first event; &lt;3 of subjects that the data set does not have" in page
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page), flags=re.IGNORECASE)


def test_small_counts_are_masked_and_nothing_is_told_of_reasons_that_do_not_apply():
    left_out = {"given twice": 9, "before the subject's first event": 0, "in an unknown unit": 1_234}
    assert left_out_text(left_out, Privacy(minimum_count=10)) == "<10 given twice; 1,234 in an unknown unit"
    assert left_out_text(left_out, Privacy(minimum_count=1)) == "9 given twice; 1,234 in an unknown unit"
    assert left_out_text({}, Privacy()) == ""
