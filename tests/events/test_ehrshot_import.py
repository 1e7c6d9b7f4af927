"""EHRSHOT's CSV release, planted by hand: every row of the MEDS folder, every label, every split, every refusal."""

import gzip
import json
from datetime import datetime

import numpy as np
import polars as pl
import pytest

from ehrctx.artifacts import read_manifest
from ehrctx.errors import InputError
from ehrctx.events import ehrshot as release_of
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.splits import hash_splits
from ehrctx.probe.few_shot import read_shots, shot_files
from ehrctx.study import FewShot, Labels
from ehrctx.tasks.ehrshot import TASKS, import_ehrshot
from ehrctx.tasks.given import read_given
from ehrctx.tasks.label_sets import read_labels, write_labels

HEADER = ",patient_id,start,end,code,value,unit,visit_id,omop_table"  # pandas wrote its index, too
SECRET = 115967095
ROWS = f"""
0,{SECRET},1950-03-04 00:00:00,,SNOMED/3950001,,,,person
1,{SECRET},1950-03-04 00:00:00,,Gender/F,,,,person
2,{SECRET},2015-03-09 09:00:00,,LOINC/718-7,12.5,g/dL,31251999.0,measurement
3,{SECRET},2015-03-01 10:00:00,2015-03-09 09:00:00,Visit/IP,,,31251999.0,visit_occurrence
4,{SECRET},2015-03-09 09:00:00,,LOINC/777-3,"adequate, ""see"" note",,31251999.0,measurement
5,{SECRET},2015-03-02 08:00:00,2015-03-02 08:30:00,LOINC/2951-2,0.0,mmol/L,31251999.0,measurement
6,{SECRET},2015-03-02 08:00:00,,LOINC/2951-2,1e3,,31251999.0,measurement
7,{SECRET},2015-03-02 08:00:00,,LOINC/2951-2,NaN,,31251999.0,measurement
8,{SECRET},2015-03-02 08:00:00,,LOINC/2951-2,1e39,,31251999.0,measurement
9,{SECRET},2015-03-02 08:00:00,,LOINC/2951-2,-inf,,31251999.0,measurement
10,{SECRET},2015-03-20T12:00,2015-03-20T11:00,Visit/IP,,,31252000.0,visit_occurrence
11,7,2018-01-11 06:00:00,2018-01-11 07:00:00,Visit/OP,,,5,visit_occurrence
12,7,2018-01-11,,ICD10CM/I10,,,,condition_occurrence
13,7,2018-01-12 00:00:00,,,3,,,measurement
14,7,,,ICD10CM/I10,,,,condition_occurrence
15,8,2019-01-01 00:00:00,2019-01-01 00:00:00,Visit/IP,,,,visit_occurrence
16,9,2019-01-01 00:00:00,,Gender/M,,,,person
"""
MAP = f"split,omop_person_id\ntrain,{SECRET}\nval,7\ntest,9\ntest,12345\n"

BIRTH, MARCH_1, MARCH_2 = datetime(1950, 3, 4), datetime(2015, 3, 1, 10), datetime(2015, 3, 2, 8)
MARCH_9, MARCH_20 = datetime(2015, 3, 9, 9), datetime(2015, 3, 20, 12)
LAB, VISIT, NEW_YEAR = "measurement", "visit_occurrence", datetime(2019, 1, 1)
# time, code, number, text, unit, visit, table, end
EXPECTED = {
    SECRET: [
        (BIRTH, "SNOMED/3950001", None, None, None, None, "person", None),
        (BIRTH, "Gender/F", None, None, None, None, "person", None),
        (MARCH_1, "Visit/IP", None, None, None, 31251999, VISIT, MARCH_9),
        (MARCH_2, "LOINC/2951-2", 0.0, None, "mmol/L", 31251999, LAB, datetime(2015, 3, 2, 8, 30)),
        (MARCH_2, "LOINC/2951-2", 1000.0, None, None, 31251999, LAB, None),
        *[(MARCH_2, "LOINC/2951-2", None, None, None, 31251999, LAB, None)] * 3,
        (MARCH_9, "LOINC/718-7", 12.5, None, "g/dL", 31251999, LAB, None),
        (MARCH_9, "LOINC/777-3", None, 'adequate, "see" note', None, 31251999, LAB, None),
        (MARCH_9, "Visit/IP//END", None, None, None, 31251999, VISIT, None),
        (MARCH_20, "Visit/IP", None, None, None, 31252000, VISIT, datetime(2015, 3, 20, 11)),
    ],
    7: [
        (datetime(2018, 1, 11), "ICD10CM/I10", None, None, None, None, "condition_occurrence", None),
        (datetime(2018, 1, 11, 6), "Visit/OP", None, None, None, 5, VISIT, datetime(2018, 1, 11, 7)),
    ],
    8: [
        (NEW_YEAR, "Visit/IP", None, None, None, None, VISIT, NEW_YEAR),
        (NEW_YEAR, "Visit/IP//END", None, None, None, None, VISIT, None),
    ],
    9: [(NEW_YEAR, "Gender/M", None, None, None, None, "person", None)],
}


def labels_of(task):
    """The labels of a task as the release writes them, and the rows that are to come of them."""
    t = TASKS.index(task)
    rows = [(SECRET, datetime(2015, 3, 1 + t, 23, 59)), (7, datetime(2018, 1, 11, 7, t)), (555, datetime(2020, 1, 1))]
    if task.startswith("lab_"):
        answers = [("categorical", str((t + i) % 4), (t + i) % 4 > 0, (t + i) % 4) for i in range(3)]
    else:
        answers = [("boolean", str((t + i) % 2 == 0), (t + i) % 2 == 0, None) for i in range(3)]
    lines = [
        f"{subject},{time.isoformat(sep=' ' if t % 2 else 'T')},{text},{kind}"
        for (subject, time), (kind, text, *_) in zip(rows, answers, strict=True)
    ]
    expected = [(*row, *answer[2:]) for row, answer in zip(rows, answers, strict=True)]
    return "\n".join(["patient_id,prediction_time,value,label_type", *lines]) + "\n", sorted(expected)


def shots_of(task):
    value = 1 if task.startswith("lab_") else True
    columns = {"patient_ids": SECRET, "label_times": "2015-03-01T23:59:00", "label_values": value}
    drawn = {f"{column}_{split}_k": [entry] for split in ("train", "val") for column, entry in columns.items()}
    return {task: {"1": {"0": drawn}}}


@pytest.fixture
def plant(tmp_path):
    """A function that writes the release and returns the folder to import."""

    def write(rows=ROWS, splits=MAP, **labels):
        folder = tmp_path / "download" / "EHRSHOT_ASSETS"
        for part in ("data", "splits"):
            (folder / part).mkdir(parents=True)
        (folder / "data" / "ehrshot.csv").write_text(HEADER + rows)
        (folder / "splits" / "person_id_map.csv").write_text(splits)
        for task in (*TASKS, "chexpert"):
            place = folder / "benchmark" / task
            place.mkdir(parents=True)
            several = "patient_id,prediction_time,value,label_type\n7,2018-01-11,8192,categorical\n"
            text = labels.get(task) or (several if task == "chexpert" else labels_of(task)[0])
            (place / "labeled_patients.csv").write_text(text)
            (place / "all_shots_data.json").write_text(json.dumps(shots_of(task)))
        return tmp_path / "download"

    return write


def events_in(folder):
    """The rows by subject, in the order of the files."""
    events = pl.concat([pl.read_parquet(file) for file in sorted((folder / "data").glob("*.parquet"))])
    parts = events.partition_by("subject_id", as_dict=True, maintain_order=True, include_key=False)
    return {subject: part.rows() for (subject,), part in parts.items()}


def test_every_row(plant, tmp_path, run):
    code, said, _ = run("import", "ehrshot", plant(), "--out", tmp_path / "meds")
    assert code == 0
    assert str(SECRET) not in said
    assert events_in(tmp_path / "meds") == EXPECTED
    summary, violations = check(open_dataset(tmp_path / "meds"))
    assert violations == []
    assert summary["subjects"] == 4
    facts = read_manifest(tmp_path / "meds", "events")["facts"]
    assert facts["rows"] == 17
    assert facts["events"] == 17 == sum(map(len, EXPECTED.values()))
    assert facts["ends_of_visits"] == 2
    assert facts["left_out"] == {"without a code": 1, "without a start": 1}
    assert facts["adjusted"] == {"values that are not finite": 3, "ends of visits before their start": 1}
    assert facts["rows"] == facts["events"] - facts["ends_of_visits"] + sum(facts["left_out"].values())
    assert facts["tasks_left_out"] == ["chexpert"]
    assert facts["tasks_without_labels"] == []


def test_blocks_and_shards_change_no_row(plant, tmp_path, monkeypatch):
    source = plant()
    monkeypatch.setattr(release_of, "BLOCK", 600)
    monkeypatch.setattr(release_of, "BYTES_PER_ROW", 1)
    monkeypatch.setattr("ehrctx.events.writer.EVENTS_PER_SHARD", 200)
    monkeypatch.setattr("ehrctx.events.writer.SPILLED", 3)
    import_ehrshot(source, tmp_path / "meds")
    assert len(list((tmp_path / "meds" / "data").iterdir())) > 1
    assert events_in(tmp_path / "meds") == EXPECTED


def test_a_compressed_file_of_the_required_columns_alone(plant, tmp_path):
    source = plant()
    file = source / "EHRSHOT_ASSETS" / "data" / "ehrshot.csv"
    bare = pl.read_csv(file, infer_schema=False).select("code", "value", "patient_id", "start")
    file.unlink()
    with gzip.open(file.with_name("ehrshot.csv.gz"), "wb") as stream:
        bare.write_csv(stream)
    import_ehrshot(source, tmp_path / "meds")
    assert events_in(tmp_path / "meds") == {
        subject: [(*row[:4], None, None, None, None) for row in rows if row[1] != "Visit/IP//END"]
        for subject, rows in EXPECTED.items()
    }


def test_splits_are_the_releases_own(plant, tmp_path):
    facts = import_ehrshot(plant(), tmp_path / "meds")
    splits = dict(pl.read_parquet(tmp_path / "meds" / "metadata" / "subject_splits.parquet").iter_rows())
    drawn = hash_splits(np.array([8]), release_of.THIRDS)["split"][0]
    assert splits == {SECRET: "train", 7: "tuning", 9: "held_out", 12345: "held_out", 8: drawn}
    assert facts["subjects_by_hash_split"] == 1
    assert sum(facts["splits"].values()) == 5


def test_every_label(plant, tmp_path):
    facts = import_ehrshot(plant(), tmp_path / "meds")
    for task in TASKS:
        file = tmp_path / "meds" / "labels" / task / "labels.parquet"
        assert pl.read_parquet(file).rows() == labels_of(task)[1]
        assert pl.read_parquet(file).equals(read_given(file))
        assert facts["labels"][task] == 3
        assert facts["labels_of_subjects_without_events"][task] == 1
    assert {file.name for file in (tmp_path / "meds" / "labels").iterdir()} == set(TASKS)


def test_label_and_probe_read_what_was_imported(plant, tmp_path, repository):
    import_ehrshot(plant(), tmp_path / "meds")
    profile = str(repository / "pipelines" / "datasets" / "ehrshot.yaml")
    choices = Labels(given=str(tmp_path / "meds" / "labels"))
    facts = write_labels(tmp_path / "meds", profile, list(TASKS), choices, tmp_path / "labels", None)
    made = read_labels(tmp_path / "labels")
    for task in TASKS:
        assert made[task].rows() == [row for row in labels_of(task)[1] if row[0] != 555]
        assert facts[task]["left_out"]["of subjects that the data set does not have"] == 1
    for task, file in shot_files(tmp_path / "meds" / "shots", TASKS).items():
        (shot,) = read_shots(file, task, FewShot(k=(1,), replicates=1))
        assert shot.labels["train"] == [(SECRET, datetime(2015, 3, 1, 23, 59), True)]


def test_stays_end_where_the_release_says(plant, tmp_path, repository):
    import_ehrshot(plant(), tmp_path / "meds")
    profile = str(repository / "pipelines" / "datasets" / "ehrshot.yaml")
    write_labels(tmp_path / "meds", profile, ["guo_los"], Labels(), tmp_path / "labels", None)
    # eight days less an hour; the stay without a valid end is open, and that of subject 8 ended at once
    assert read_labels(tmp_path / "labels")["guo_los"].rows() == [(SECRET, datetime(2015, 3, 1, 23, 59), True, None)]


def test_descriptions_and_parents_of_an_athena_download(plant, tmp_path, write_athena):
    names = ["LOINC/718-7", "ICD10CM/I10", "SNOMED/59621000", "SNOMED/38341003", "Gender/F"]
    concept = [
        (i, f"about {n}", "", n.split("/")[0], "", "", n.split("/")[1], 0, 0, "") for i, n in enumerate(names, 1)
    ]
    related = [(2, 3, "Maps to"), (3, 4, "Is a"), (4, 3, "Subsumes"), (1, 1, "Maps to")]
    files = {"CONCEPT.csv": concept, "CONCEPT_RELATIONSHIP.csv": [(*pair, 0, 0, "") for pair in related]}
    facts = import_ehrshot(plant(), tmp_path / "meds", write_athena(tmp_path / "athena", files))
    codes = {c: (d, p) for c, d, p in pl.read_parquet(tmp_path / "meds" / "metadata" / "codes.parquet").iter_rows()}
    assert codes["LOINC/718-7"] == ("about LOINC/718-7", None)
    assert codes["ICD10CM/I10"] == ("about ICD10CM/I10", ["SNOMED/59621000"])
    assert codes["SNOMED/59621000"] == ("about SNOMED/59621000", ["SNOMED/38341003"])
    assert codes["SNOMED/38341003"] == ("about SNOMED/38341003", None)
    assert codes["Visit/IP"] == (None, None)
    assert codes["Visit/IP//END"][0]
    assert facts["codes"] == 10
    assert facts["codes_without_description"] == 6
    plain = import_ehrshot(tmp_path / "download", tmp_path / "plain")
    assert plain["codes"] == 10
    table = pl.read_parquet(tmp_path / "plain" / "metadata" / "codes.parquet")
    assert table["description"].drop_nulls().to_list() == ["End of an inpatient visit"]


def test_the_meds_release_is_used_in_place(write_meds, tmp_path, run):
    folder = write_meds(tmp_path / "EHRSHOT_MEDS", {"data": pl.DataFrame({"subject_id": [1]})}, {1: "train"})
    code, said, error = run("import", "ehrshot", tmp_path, "--out", tmp_path / "out")
    assert (code, said) == (2, "")
    assert f"`data: {folder}` and `labels: {{given: {folder / 'labels'}}}`" in error
    assert not (tmp_path / "out").exists()


ROW = "1,{},2019-01-01 00:00:00,,Gender/M,,,,person\n"
BAD_ROWS = {
    "row 3: patient_id is not a whole number": ROW.format("7x"),
    "row 3: patient_id is empty": ROW.format(""),
    "row 3: start is not a date or a date-time": ROW.format(7).replace("2019-01-01", "01/02/2019"),
    "row 3: end is not a date or a date-time": ROW.format(7).replace(",,Gender", ",soon,Gender"),
    "row 3: visit_id is not a whole number": ROW.format(7).replace(",,person", ",v9,person"),
    "row 3: it has 3 fields where the header has 9": "1,7,2019-01-01\n",
}


@pytest.mark.parametrize("said", BAD_ROWS)
@pytest.mark.parametrize("block", [120, 2**25])
def test_bad_rows_are_named(plant, tmp_path, run, monkeypatch, said, block):
    monkeypatch.setattr(release_of, "BLOCK", block)
    source = plant(rows="\n" + ROW.format(SECRET) * 2 + BAD_ROWS[said] + ROW.format(SECRET))
    code, _, error = run("import", "ehrshot", source, "--out", tmp_path / "out")
    assert code == 2
    assert f"ehrshot.csv, {said}" in error
    assert error.count("\n") == 1
    assert not any(word in error for word in (str(SECRET), "7x", "v9", "soon", "Gender"))
    assert [p.name for p in tmp_path.iterdir()] == ["download"]


BAD_SPLITS = {
    "row 2: this subject is in two splits": "split,omop_person_id\nval,9\ntrain,8\ntest,8\n",
    "row 1: split is not train, val or test": "split,omop_person_id\ndev,9\n",
    "row 2: omop_person_id is not a whole number": "split,omop_person_id\ntrain,9\ntrain,x\n",
    "the column 'split' is missing": "omop_person_id\n9\n",
}


@pytest.mark.parametrize("said", BAD_SPLITS)
def test_bad_splits_are_named(plant, tmp_path, said):
    with pytest.raises(InputError, match=said):
        import_ehrshot(plant(splits=BAD_SPLITS[said]), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["download"]


def test_a_subject_twice_in_one_split_counts_once(plant, tmp_path):
    facts = import_ehrshot(plant(splits=MAP + f"train,{SECRET}\n"), tmp_path / "out")
    assert sum(facts["splits"].values()) == 5


def test_bad_labels_are_named(plant, tmp_path):
    bad = "patient_id,prediction_time,value,label_type\n7,2018-01-11 10:00:00,True,boolean\n7,03/04/2018,True,boolean\n"
    with pytest.raises(InputError, match=r"new_lupus/labeled_patients.csv, row 2: prediction_time is not an ISO"):
        import_ehrshot(plant(new_lupus=bad), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["download"]


EVENTS_FILE = "data/ehrshot.csv"
NOT_WHOLE = {
    "holds no data/ehrshot.csv": (EVENTS_FILE, None),
    "holds no splits/person_id_map.csv": ("splits/person_id_map.csv", None),
    "the column 'code' is missing": (EVENTS_FILE, b"patient_id,start,value\n"),
    "holds no events": (EVENTS_FILE, b"patient_id,start,code,value\n"),
    "is empty": (EVENTS_FILE, b""),
    "holds the events twice": ("ehrshot.csv", HEADER.encode()),
    "row 1: code is not UTF-8 text": (EVENTS_FILE, HEADER.encode() + b"\n1,7,2019-01-01,,A\xff,,,,\n"),
}


@pytest.mark.parametrize("said", NOT_WHOLE)
def test_releases_that_are_not_whole(plant, tmp_path, said):
    source, (name, content) = plant(), NOT_WHOLE[said]
    file = source / "EHRSHOT_ASSETS" / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        import_ehrshot(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_events_without_labels(plant, tmp_path):
    source = plant()
    (source / "EHRSHOT_ASSETS" / "benchmark").rename(tmp_path / "elsewhere")
    facts = import_ehrshot(source, tmp_path / "meds")
    assert facts["labels"] == {}
    assert facts["tasks_without_labels"] == list(TASKS)
    assert not (tmp_path / "meds" / "labels").exists()
