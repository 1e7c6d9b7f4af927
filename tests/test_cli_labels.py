"""`ehrctx label` from the command line, with labels that are given."""

import json
from datetime import datetime

import polars as pl
import pytest
import yaml


def test_labels_in_the_layout_of_ehrshot_are_taken_as_they_are(run, cohort, repository, write_given_labels, tmp_path):
    """All fourteen tasks, as the shipped study asks for them: simulated events with labels that came from elsewhere."""
    study = yaml.safe_load((repository / "pipelines/studies/ehrshot.yaml").read_text())
    subjects = pl.read_parquet(cohort.splits)["subject_id"].to_list()[:20]
    given = write_given_labels(tmp_path / "given", study["tasks"], subjects)
    out = tmp_path / "labels"
    words = [word for task in study["tasks"] for word in ("--task", task)]
    settings = json.dumps({"given": str(tmp_path / "given")})
    code, said, _ = run("label", cohort.events, *words, "--profile", "ehrshot", "--settings", settings, "--out", out)
    assert code == 0
    assert sorted(p.stem for p in out.glob("*.parquet")) == sorted([*study["tasks"], "history"])
    facts = json.loads(said)
    for task, table in given.items():
        grade, answer = table["integer_value"], table["boolean_value"]
        positive = [g > 0 for g in grade] if task.startswith("lab_") else answer.to_list()
        wanted = list(zip(table["subject_id"], table["prediction_time"], positive, grade, strict=True))
        written = pl.read_parquet(out / f"{task}.parquet")
        assert written.columns == ["subject_id", "prediction_time", "boolean_value", "integer_value"]
        assert written.rows() == sorted(wanted, key=lambda row: row[:2])
        assert (facts[task]["labels"], facts[task]["positive"]) == (40, sum(positive))


def test_a_label_file_that_is_wrong_is_one_sentence_and_exit_code_2(run, cohort, tmp_path):
    lines = [f"{i},2012-05-03T23:59:00,True,boolean" for i in range(16)]
    file = tmp_path / "new_lupus.csv"
    file.write_text("\n".join(["patient_id,prediction_time,value,label_type", *lines, "17,05/03/2012,True,boolean"]))
    code, printed, said = run("label", cohort.events, "--task", file, "--out", tmp_path / "labels")
    assert (code, printed) == (2, "")
    assert said == (
        f"error: {file}, row 17: prediction_time is not an ISO date-time (it looks like MM/DD/YYYY). "
        f"Write it as YYYY-MM-DDTHH:MM:SS.\n"
    )
    assert not (tmp_path / "labels").exists()


def test_the_limit_of_times_holds_for_given_labels(run, cohort, write_given_labels, tmp_path):
    subjects = pl.read_parquet(cohort.splits)["subject_id"].to_list()[:9]
    given = write_given_labels(tmp_path / "given", ["guo_los", "lab_anemia"], subjects)
    settings = json.dumps({"given": str(tmp_path / "given"), "max_times_per_subject": 1})
    words = ["--task", "guo_los", "--task", "lab_anemia", "--settings", settings, "--out", tmp_path / "labels"]
    assert run("label", cohort.events, *words)[0] == 0
    anemia = pl.read_parquet(tmp_path / "labels" / "lab_anemia.parquet")
    assert anemia["subject_id"].to_list() == sorted(subjects)  # one each, of the two given
    key = ["subject_id", "prediction_time"]
    assert anemia.join(given["lab_anemia"], on=key, how="semi").height == 9
    assert pl.read_parquet(tmp_path / "labels" / "guo_los.parquet").height == 18


LABELS = {"subject_id": [987654321], "prediction_time": [datetime(2020, 1, 1)], "boolean_value": [True]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction_time": ...}, "the column 'prediction_time' is missing"),
        ({"boolean_value": ...}, "neither boolean_value nor integer_value is there"),
        ({"boolean_value": [None]}, "row 1: boolean_value is empty"),
        ({"boolean_value": ["perhaps"]}, "boolean_value"),
        ({"prediction_time": ["tomorrow"]}, "prediction_time"),
        ({"subject_id": ["someone"]}, "subject_id"),
        (None, "no labels of 'guo_los' in"),
        (b"not parquet", "is not a readable parquet file"),
    ],
)
def test_wrong_given_labels_are_refused(run, cohort, tmp_path, changes, words):
    file = tmp_path / "given" / "guo_los.parquet"
    file.parent.mkdir()
    if isinstance(changes, dict):
        columns = {k: v for k, v in (LABELS | changes).items() if v is not ...}
        pl.DataFrame(columns).write_parquet(file)
    elif changes is not None:
        file.write_bytes(changes)
    settings = json.dumps({"given": str(file.parent)})
    asked = ["--task", "guo_los", "--settings", settings, "--out", tmp_path / "labels"]
    code, out, said = run("label", cohort.events, *asked)
    assert (code, out) == (2, "")
    assert said.startswith("error: ")
    assert words in said
    assert said.count("\n") == 1
    assert "987654321" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["given"]
