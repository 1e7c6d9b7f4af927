"""EHRSHOT's release and femr's databases as accidents leave them: read, refused by row, counted, named."""

import gzip
import subprocess
import sys
from datetime import datetime

import polars as pl
import pytest

from ehrctx.artifacts import read_manifest
from ehrctx.errors import InputError
from ehrctx.events.check import check
from ehrctx.events.femr import import_femr
from ehrctx.events.meds import open_dataset
from ehrctx.events.rules import LONGEST_CODE
from ehrctx.tasks.ehrshot import import_ehrshot

HEADER = "patient_id,start,end,code,value,unit,visit_id,omop_table"
ROWS = """
7,1950-03-04 00:00:00,,SNOMED/3950001,,,,person
7,2015-03-01 10:00:00,2015-03-09 09:00:00,Visit/IP,,,31251999.0,visit_occurrence
7,2015-03-02 08:00:00,,LOINC/2951-2,140,mmol/L,31251999.0,measurement
7,2015-03-09 09:00:00,,LOINC/777-3,"adequate, ""see"" note",,31251999.0,measurement
9,2019-01-01 00:00:00,,Gender/M,,,,person
"""
MAP = "split,omop_person_id\ntrain,7\ntest,9\n"
LABELS = "patient_id,prediction_time,value,label_type\n7,2015-03-01T23:59:00,True,boolean\n"


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "EHRSHOT_ASSETS"
    files = {"data/ehrshot.csv": HEADER + ROWS, "splits/person_id_map.csv": MAP}
    for name, text in (files | {"benchmark/guo_los/labeled_patients.csv": LABELS}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def imported(tmp_path, release):
    """A function that imports the release; its facts and its events."""

    def run(**options):
        facts = import_ehrshot(release, tmp_path / "meds", **options)
        events = pl.concat([pl.read_parquet(file) for file in (tmp_path / "meds" / "data").iterdir()])
        assert facts["rows"] == facts["events"] - facts["ends_of_visits"] + sum(facts["left_out"].values())
        assert facts["events"] == events.height
        if events["time"].dt.year().min() >= 1700:  # births before are no violation where a profile names their code
            assert check(open_dataset(tmp_path / "meds"))[1] == []
        return facts, events.sort("subject_id", maintain_order=True)

    return run


def change(release, name, edit):
    file = release / name
    file.write_bytes(edit(file.read_bytes()))


EVENTS, SPLITS, TASK = "data/ehrshot.csv", "splits/person_id_map.csv", "benchmark/guo_los/labeled_patients.csv"
FORMS = {
    "capital letters and gzip": lambda folder: [
        ((folder / name).with_name((folder / name).name.upper() + ".GZ").write_bytes(
            gzip.compress((folder / name).read_bytes())), (folder / name).unlink())
        for name in (EVENTS, SPLITS, TASK)
    ],
    "gzip without the suffix": lambda folder: [change(folder, name, gzip.compress) for name in (EVENTS, SPLITS, TASK)],
    "a byte order mark": lambda folder: [change(folder, n, b"\xef\xbb\xbf".__add__) for n in (EVENTS, SPLITS, TASK)],
    "CR LF": lambda folder: [
        change(folder, name, lambda text: text.replace(b"\n", b"\r\n")) for name in (EVENTS, SPLITS, TASK)
    ],
    "blank lines at the end": lambda folder: [change(folder, name, lambda t: t + b"\n\n") for name in (EVENTS, SPLITS)],
    "semicolons": lambda folder: change(
        folder, EVENTS, lambda text: text.replace(b",", b";").replace(b"adequate;", b"adequate,")
    ),
    "NA in typed columns": lambda folder: change(
        folder, EVENTS, lambda text: text.replace(b"00:00:00,,", b"00:00:00,NA,").replace(b",,31", b",NA,31")
        .replace(b",,person", b",NA,person")
    ),
    "fractions of seconds and offsets": lambda folder: change(
        folder, EVENTS, lambda text: text.replace(b"08:00:00,", b"08:00:00.0000000 +01:00,")
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_release(release, imported, form):
    _, tidy = imported()
    FORMS[form](release)
    facts, events = imported()
    assert events.equals(tidy)
    assert facts["labels"] == {"guo_los": 1}


REFUSED = {
    "UTF-16": (EVENTS, lambda text: text.decode().encode("utf-16"), "ehrshot.csv is not UTF-8 text, it looks like UT"),
    "a map in UTF-16": (SPLITS, lambda text: text.decode().encode("utf-16-be"), "person_id_map.csv is not UTF-8 text"),
    "labels in UTF-16": (TASK, lambda text: text.decode().encode("utf-16"), "labeled_patients.csv is not UTF-8 text"),
    "latin-1": (EVENTS, lambda text: text.replace(b"adequate", b"ad\xe9quate"), "row 4: value is not UTF-8 text."),
    "latin-1 in the first line": (EVENTS, lambda text: b"\xe9," + text, "its first line is not UTF-8 text."),
    "a map in latin-1": (SPLITS, lambda text: text + b"tr\xe9in,8\n", "row 3: split is not UTF-8 text."),
    "cut off": (EVENTS, lambda text: gzip.compress(text)[:-20], "ehrshot.csv is not a readable CSV file"),
    "an empty file": (EVENTS, lambda text: b"", "ehrshot.csv is empty."),
    "an empty map": (SPLITS, lambda text: b"", "person_id_map.csv is empty."),
    "a start that is a placeholder": (
        EVENTS, lambda text: text.replace(b"2015-03-02", b"9999-12-31"), "row 3: start lies before 1700 or after 2499",
    ),
    "an id that is missing": (EVENTS, lambda text: text.replace(b"\n9,", b"\nNA,"), "row 5: patient_id is empty."),
    "quotes that are not doubled": (
        EVENTS, lambda text: text.replace(b'""see""', b'"see"'), "row 4: a field begins with a quotation mark",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(release, imported, tmp_path, case):
    name, edit, sentence = REFUSED[case]
    change(release, name, edit)
    with pytest.raises(InputError) as caught:
        imported()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["EHRSHOT_ASSETS"]


def test_placeholders_are_dropped_and_counted(release, imported):
    change(release, EVENTS, lambda text: text.replace(b"2015-03-02", b"9999-12-31"))
    change(release, EVENTS, lambda text: text.replace(b"2015-03-09 09:00:00,Visit", b"9999-12-31 00:00:00,Visit"))
    change(release, EVENTS, lambda text: text.replace(b"1950", b"1600").replace(b"9,2019", b"9,1601"))
    facts, events = imported(implausible_time="drop")
    assert facts["left_out"] == {"with a start before 1700 or after 2499": 1}
    assert facts["adjusted"] == {
        "ends that are placeholders": 1, "events at a birth before 1700, which lose their time": 1,
    }  # fmt: skip
    assert events.filter(subject_id=9).select("time", "code").rows() == [(None, "Gender/M")]
    assert "Visit/IP//END" not in set(events["code"])
    assert events["time"].min() == datetime(1600, 3, 4)  # a birth shifted by centuries


def test_codes_that_meds_cannot_hold(release, imported):
    change(release, EVENTS, lambda text: text.replace(b"LOINC/2951-2", b"x" * 600).replace(b"LOINC/777-3", b"  "))
    facts, events = imported()
    assert facts["left_out"] == {"without a code": 1}
    assert facts["adjusted"] == {"codes that were too long or held control characters": 1}
    assert max(len(code) for code in events["code"]) <= LONGEST_CODE


@pytest.mark.parametrize("unit", ["NA", "n/a", "NULL", "None", " nan "])
def test_units_that_are_missing(release, imported, unit):
    change(release, EVENTS, lambda text: text.replace(b"mmol/L", unit.encode()))
    assert imported()[1]["unit"].null_count() == imported()[1].height


def test_every_file_of_the_release_is_accounted_for(release, run, tmp_path):
    others = {
        "benchmark/chexpert/labeled_patients.csv": "labels of 14 findings in one number",
        "benchmark/README.md": "about the data",
        "femr/extract/meta": "nothing of which events or labels are made",
        "old/guo_los/labeled_patients.csv": "labels beside those of benchmark/",
    }
    unknown = ["benchmark/guo_los/notes.csv", "data/ehrshot_2.csv"]
    for name in [*others, *unknown, "benchmark/guo_los/all_shots_data.json"]:
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_text("{}")
    code, out, said = run("import", "ehrshot", release, "--out", tmp_path / "meds", "--verbose")
    assert code == 0
    assert f"warning: {release}: not read: {', '.join(unknown)}. The release holds" in said
    assert {line for line in said.splitlines() if line.startswith("ignored")} == {
        f"ignored: {name} ({rule})" for name, rule in others.items()
    }
    assert '"rows": "<10"' in out
    assert '"ends_of_visits": "<10"' in out
    facts = read_manifest(tmp_path / "meds", "events")["facts"]
    assert facts["files"] == {"read": 4, "ignored": 4, "not_read": unknown}


@pytest.fixture
def database(write_meds, tmp_path):
    """A function that makes a meds_reader database of events."""
    pytest.importorskip("meds_reader", reason="the extra femr is not installed")

    def make(*rows):
        schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
        events = pl.DataFrame(rows, schema, orient="row").with_columns(numeric_value=pl.lit(None, pl.Float32))
        data = write_meds(tmp_path / "data", {"0": events}, {7: "train"})
        command = "import meds_reader; meds_reader.meds_reader_convert()"
        words = [sys.executable, "-c", command, str(data), str(tmp_path / "database"), "--num_threads", "1"]
        subprocess.run(words, check=True, capture_output=True)
        return tmp_path / "database"

    return make


def test_a_database_of_femr_is_imported_as_far_as_meds_can_hold_it(database, tmp_path, capsys):
    old = datetime(1600, 1, 1)
    rows = [(7, old, "MEDS_BIRTH"), (7, old, "Gender/F"), (7, datetime(2000, 1, 1), "x" * 600)]
    folder = database(*rows, (7, datetime(9999, 12, 31), "A"))
    (folder / "notes.txt").write_text("")
    with pytest.raises(InputError, match="database holds an event whose time lies before 1700 or after 2499"):
        import_femr(folder, tmp_path / "meds")
    assert not (tmp_path / "meds").exists()
    facts = import_femr(folder, tmp_path / "meds", implausible_time="drop")
    assert (facts["rows"], facts["events"]) == (4, 3)
    assert facts["left_out"] == {"with a start before 1700 or after 2499": 1}
    assert facts["adjusted"] == {
        "codes that were too long or held control characters": 1,
        "events at a birth before 1700, which lose their time": 1,
    }
    (file,) = (tmp_path / "meds" / "data").iterdir()
    assert pl.read_parquet(file).select("time", "code").rows()[:2] == [(None, "Gender/F"), (old, "MEDS_BIRTH")]
    assert facts["files"]["not_read"] == ["notes.txt"]
    assert "database: not read: notes.txt. " in capsys.readouterr().err
