"""What femr keeps, back as MEDS: meds_reader databases row for row, and extracts of femr 0.1 that its own ETL makes."""

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from ehrctx.artifacts import read_manifest
from ehrctx.errors import InputError
from ehrctx.events import femr, femr01
from ehrctx.events.check import check
from ehrctx.events.femr import import_femr
from ehrctx.events.meds import open_dataset

CONVERT = "import meds_reader; meds_reader.meds_reader_convert()"
SECRET = 115967095


@pytest.fixture
def database(tmp_path):
    """A function that makes a meds_reader database of a MEDS data set."""
    pytest.importorskip("meds_reader", reason="the extra femr is not installed")

    def make(data):
        words = [sys.executable, "-c", CONVERT, str(data), str(tmp_path / "database"), "--num_threads", "1"]
        subprocess.run(words, check=True, capture_output=True)
        return tmp_path / "database"

    return make


def rows_of(folder):
    """All events in the order of subjects; columns by name."""
    events = pl.concat([pl.read_parquet(f, glob=False) for f in sorted((folder / "data").rglob("*.parquet"))])
    return events.select(sorted(events.columns)).sort("subject_id", maintain_order=True)


def planted():
    us = pl.Datetime("us")
    time = [
        None,
        datetime(2000, 1, 1),
        datetime(2000, 1, 1, 5, 6, 7, 891),
        datetime(1999, 12, 31),
        datetime(2001, 1, 1),
    ]
    return pl.DataFrame(
        {
            "subject_id": pl.Series([7, 7, 7, SECRET, SECRET], dtype=pl.Int64),
            "time": pl.Series(time, dtype=us),
            "code": ["SEX//F", "A", "B", "A", "A"],
            "numeric_value": pl.Series([None, 0.0, 1.5, -2.25, None], dtype=pl.Float32),
            "text_value": [None, None, "hey, ünder", None, "x"],
            "unit": [None, "mg", None, None, "mg"],
            "visit_id": pl.Series([None, 3, 2**40, None, -1], dtype=pl.Int64),
            "end": pl.Series([None, datetime(2000, 1, 2), None, None, None], dtype=us),
            "dose": pl.Series([None, 0.1, None, None, None], dtype=pl.Float64),
        }
    )


@pytest.mark.parametrize("events_per_shard", [1, 10_000])
def test_there_and_back(write_meds, database, tmp_path, run, monkeypatch, events_per_shard):
    codes = pl.DataFrame({"code": ["A", "B"], "description": ["a", "b"], "parent_codes": [["X"], None]})
    data = write_meds(tmp_path / "data", {"0": planted()}, {7: "train", SECRET: "tuning"}, codes)
    monkeypatch.setattr(femr, "EVENTS_PER_SHARD", events_per_shard)
    code, said, _ = run("import", "femr", database(data), "--out", tmp_path / "back")
    assert code == 0
    assert str(SECRET) not in said
    assert rows_of(tmp_path / "back").equals(rows_of(data))
    assert len(open_dataset(tmp_path / "back").shards) == (2 if events_per_shard == 1 else 1)
    for name in ("codes.parquet", "subject_splits.parquet"):
        assert (tmp_path / "back" / "metadata" / name).read_bytes() == (data / "metadata" / name).read_bytes()
    assert check(open_dataset(tmp_path / "back"))[1] == []
    facts = read_manifest(tmp_path / "back", "events")["facts"]
    assert (facts["subjects"], facts["events"], facts["codes"]) == (2, 5, 3)


def test_a_database_without_metadata(write_meds, database, tmp_path):
    import_femr(database(write_meds(tmp_path / "data", {"0": planted()})), tmp_path / "back")
    assert pl.read_parquet(tmp_path / "back" / "metadata" / "codes.parquet")["code"].to_list() == ["A", "B", "SEX//F"]
    assert not (tmp_path / "back" / "metadata" / "subject_splits.parquet").exists()


def test_mimic_there_and_back(mimic_demo, database, tmp_path):
    import_femr(database(mimic_demo), tmp_path / "back")
    ours, theirs = rows_of(tmp_path / "back"), rows_of(mimic_demo)
    assert ours.height > 900_000
    empty = pl.when(pl.col(pl.String) != "").then(pl.col(pl.String))  # meds_reader knows no empty text
    assert ours.equals(theirs.with_columns(empty))


def test_it_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such folder"):
        import_femr(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "database").mkdir()
    with pytest.raises(InputError, match=r"neither a meds_reader database .* nor an extract of femr 0\.1"):
        import_femr(tmp_path / "database", tmp_path / "out")
    (tmp_path / "database" / femr.VERSION_FILE).write_text("1")
    monkeypatch.setattr(femr.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install --editable '\.\[femr\]'"):
        import_femr(tmp_path / "database", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["database"]


# femr's simple format; a subject's events of one time come in the order of concept ids, which femr numbers at random
SIMPLE = f"""patient_id,start,code,value,end,unit,visit_id,omop_table,clarity_table,note_id
{SECRET},1950-03-04T00:00:00,SNOMED/3950001,,,,,person,,
{SECRET},2015-03-01T10:00:00,Visit/IP,,2015-03-09T09:00:00,,31251999,visit_occurrence,shc_pat_enc,
{SECRET},2015-03-01T11:00:00,Visit/IP,,2015-03-05T09:00:00,,31251999,visit_detail,,
{SECRET},2015-03-02T08:00:00,LOINC/2951-2,0.0,,mmol/L,31251999,measurement,,n12
{SECRET},2015-03-02T09:00:00,LOINC/2951-2,140.5,,mmol/L,31251999,measurement,,
{SECRET},2015-03-09T09:00:00,LOINC/777-3,adequate,,,31251999,measurement,,
2,1980-03-04T00:00:00,SNOMED/3950001,,,,,person,,
2,2018-01-11T06:07:00,ICD10CM/I10,,,,,condition_occurrence,,
"""


@pytest.fixture(scope="module")
def environment():
    """Where femr 0.1 is installed; tests fetch nothing."""
    folder = Path(os.environ.get("EHRCTX_FEMR01", femr01.ENVIRONMENT))
    if not femr01.is_made(folder):
        pytest.skip("set EHRCTX_FEMR01 to an environment that `ehrctx import femr` made for extracts of femr 0.1")
    return folder


@pytest.fixture
def extract(environment, tmp_path):
    """A function that makes an extract with femr's own ETL, of CSV text and the tables of an Athena download."""

    def make(text, athena):
        source = tmp_path / "simple"
        source.mkdir()
        (source / "events.csv").write_text(text)
        words = [environment / "bin" / "etl_simple_femr", source, tmp_path / "extract", tmp_path / "temporary"]
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([*words, "--athena_download", athena], check=True, capture_output=True, env=environ)
        return tmp_path / "extract"

    return make


def test_an_extract_of_femr_0_1(extract, environment, write_athena, tmp_path, run):
    names = {1: "LOINC/2951-2", 2: "LOINC/group", 3: "ICD10CM/I10", 4: "SNOMED/59621000"}
    concept = [
        (i, f"about {n}", "", n.split("/")[0], "", "S" if i != 3 else "", n.split("/")[1], 0, 0, "")
        for i, n in names.items()
    ]
    related = [(1, 2, "Is a", 0, 0, ""), (3, 4, "Maps to", 0, 0, "")]
    athena = write_athena(tmp_path / "athena", {"CONCEPT.csv": concept, "CONCEPT_RELATIONSHIP.csv": related})
    made = extract(SIMPLE, athena)
    code, said, _ = run("import", "femr", made, "--out", tmp_path / "meds", "--environment", environment.absolute())
    assert code == 0
    assert str(SECRET) not in said
    start, end, visit = datetime(2015, 3, 1, 10), datetime(2015, 3, 9, 9), 31251999
    expected = {
        2: [
            (datetime(1980, 3, 4), "SNOMED/3950001", None, None, None, None, "person", None, None, None),
            (datetime(2018, 1, 11, 6, 7), "ICD10CM/I10", None, None, None, None, "condition_occurrence", *[None] * 3),
        ],
        SECRET: [
            (datetime(1950, 3, 4), "SNOMED/3950001", None, None, None, None, "person", None, None, None),
            (start, "Visit/IP", None, None, None, visit, "visit_occurrence", end, "shc_pat_enc", None),
            (
                datetime(2015, 3, 1, 11), "Visit/IP", None, None, None, visit, "visit_detail",
                datetime(2015, 3, 5, 9), None, None,
            ),
            (datetime(2015, 3, 2, 8), "LOINC/2951-2", 0.0, None, "mmol/L", visit, "measurement", None, None, "n12"),
            (datetime(2015, 3, 2, 9), "LOINC/2951-2", 140.5, None, "mmol/L", visit, "measurement", *[None] * 3),
            (end, "LOINC/777-3", None, "adequate", None, visit, "measurement", None, None, None),
            (end, "Visit/IP//END", None, None, None, visit, "visit_occurrence", None, None, None),
        ],
    }  # fmt: skip
    events = pl.concat([pl.read_parquet(file) for file in sorted((tmp_path / "meds" / "data").iterdir())])
    parts = events.partition_by("subject_id", as_dict=True, maintain_order=True, include_key=False)
    assert {subject: part.rows() for (subject,), part in parts.items()} == expected
    codes = {c: (d, p) for c, d, p in pl.read_parquet(tmp_path / "meds" / "metadata" / "codes.parquet").iter_rows()}
    assert codes["LOINC/2951-2"] == ("about LOINC/2951-2", ["LOINC/group"])
    assert codes["LOINC/group"] == ("about LOINC/group", None)
    assert codes["ICD10CM/I10"] == ("about ICD10CM/I10", ["SNOMED/59621000"])
    assert check(open_dataset(tmp_path / "meds"))[1] == []
    facts = read_manifest(tmp_path / "meds", "events")["facts"]
    assert (facts["subjects"], facts["rows"], facts["events"], facts["ends_of_visits"]) == (2, 8, 9, 1)
    assert sum(facts["splits"].values()) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["athena", "extract", "meds", "simple", "temporary"]


def test_a_damaged_extract_is_refused_without_its_content(extract, environment, write_athena, tmp_path, monkeypatch):
    athena = write_athena(tmp_path / "athena", {"CONCEPT.csv": [], "CONCEPT_RELATIONSHIP.csv": []})
    made = extract(SIMPLE, athena)
    (made / "meta").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be read by femr 0\.1\.16"):
        import_femr(made, tmp_path / "meds", environment)
    assert not (tmp_path / "meds").exists()


def test_buckets_of_hf_ehr_become_splits():
    buckets = pl.DataFrame({"patient_id": [4, 3, 2, 1], "bucket": [99, 85, 84, 69]})
    assert femr01._splits(buckets).rows() == [(1, "train"), (2, "tuning"), (3, "held_out"), (4, "held_out")]
