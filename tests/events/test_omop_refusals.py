"""What cannot be imported: one sentence with file and row, exit code 2, nothing left behind, nobody given away."""

import polars as pl
import pytest
from omop_by_hand import small_cdm, table, write_cdm

SECRET = 987654321  # a person_id that no message may hold
PRIVATE = "Erika Mustermann"  # a value that no message may hold
SPLITS = ("--splits", "{hash: [.5, .2, .3]}")


def private_cdm():
    """The small CDM, whose first person has an id to hide."""
    tables = small_cdm()
    for rows in tables.values():
        for row in rows:
            if row.get("person_id") == 1:
                row["person_id"] = SECRET
    return tables


@pytest.fixture
def refused(run, tmp_path):
    """Imports the CDM in tmp_path/cdm; what was said, after checking what every refusal keeps to."""

    def sentence(*options):
        before = sorted(path.name for path in tmp_path.iterdir())
        code, out, said = run("import", "omop", tmp_path / "cdm", "--out", tmp_path / "meds", *SPLITS, *options)
        assert code == 2
        assert out == ""
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert str(SECRET) not in said
        assert PRIVATE not in said
        assert "Traceback" not in said
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        return said

    return sentence


def change(tables, name, row, **values):
    tables[name][row] |= values


FORMS = pytest.mark.parametrize("form", ["csv", "parquet"])


@pytest.mark.parametrize("name", ["person", "concept"])
def test_a_table_that_must_be_there(refused, tmp_path, name):
    tables = private_cdm()
    del tables[name]
    write_cdm(tmp_path / "cdm", tables)
    assert f"has no table {name.upper()} ({name}.csv, {name}.parquet or a folder {name}/)" in refused()


def test_no_folder_and_no_events(refused, tmp_path):
    assert "no such folder" in refused()
    tables = private_cdm()
    write_cdm(tmp_path / "cdm", {name: tables[name] for name in ("person", "concept")})
    assert "has no table with events" in refused()


def test_a_table_that_is_there_twice(refused, tmp_path):
    write_cdm(tmp_path / "cdm", private_cdm())
    write_cdm(tmp_path / "cdm", {"person": private_cdm()["person"]}, "parquet")
    assert "holds the table person twice: person.csv and person.parquet" in refused()


@FORMS
@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("person", "person_id"),
        ("concept", "vocabulary_id"),
        ("measurement", "person_id"),
        ("measurement", "measurement_concept_id"),
        ("visit_occurrence", "visit_occurrence_id"),
        ("concept_ancestor", "min_levels_of_separation"),
    ],
)
def test_a_missing_column(refused, tmp_path, form, name, column):
    tables = private_cdm()
    for row in tables[name]:
        del row[column]
    write_cdm(tmp_path / "cdm", tables, form)
    assert f"{name}.{form}: the column '{column}' is missing" in refused()


@FORMS
def test_a_missing_time(refused, tmp_path, form):
    tables = private_cdm()
    for row in tables["condition_occurrence"]:
        del row["condition_start_date"]
    write_cdm(tmp_path / "cdm", tables, form)
    said = refused()
    assert f"condition_occurrence.{form}: the columns 'condition_start_datetime' and 'condition_start_date'" in said
    tables = private_cdm()
    for row in tables["person"]:
        del row["birth_datetime"], row["year_of_birth"]
    write_cdm(tmp_path / "cdm", {"person": tables["person"]}, form)
    assert f"person.{form}: the columns 'year_of_birth' and 'birth_datetime' are missing" in refused()


@pytest.mark.parametrize(
    ("name", "row", "column", "value", "problem"),
    [
        ("condition_occurrence", 1, "condition_start_date", "03/02/2021", "is not a date or a date-time"),
        ("condition_occurrence", 0, "condition_start_date", "2020-02-31", "is not a date or a date-time"),
        ("visit_occurrence", 2, "visit_end_datetime", PRIVATE, "is not a date or a date-time"),
        ("measurement", 1, "measurement_concept_id", PRIVATE, "is not a whole number"),
        ("measurement", 1, "measurement_concept_id", "12.5", "is not a whole number"),
        ("death", 1, "person_id", PRIVATE, "is not a whole number"),
        ("death", 1, "person_id", 2**63 + SECRET, "is not a whole number"),
        ("person", 1, "month_of_birth", "13", "are no day that the calendar has"),
        ("person", 2, "person_id", SECRET, "this person_id is there twice"),
        ("person", 2, "person_id", None, "person_id is empty"),
        ("concept", 4, "concept_id", PRIVATE, "is not a whole number"),
    ],
)
def test_a_value_that_means_nothing(refused, tmp_path, name, row, column, value, problem):
    tables = private_cdm()
    change(tables, name, row, **{column: value})
    write_cdm(tmp_path / "cdm", tables)
    said = refused()
    assert f"{name}.csv, row {row + 1}: " in said
    assert problem in said
    assert str(2**63 + SECRET) not in said


def test_the_row_is_one_of_its_part(refused, tmp_path):
    tables = private_cdm()
    write_cdm(tmp_path / "cdm", {k: v for k, v in tables.items() if k != "person"})
    (tmp_path / "cdm" / "person").mkdir()
    rows = tables["person"]
    write_cdm(tmp_path / "cdm" / "person", {"0": rows[:2], "1": [rows[2], rows[0]]})
    assert "person/1.csv, row 2: this person_id is there twice" in refused()


def test_an_event_long_before_birth(refused, run, tmp_path):
    tables = private_cdm()
    change(tables, "measurement", 4, measurement_datetime="1980-02-03 04:00:00")  # 30 days and an hour
    write_cdm(tmp_path / "cdm", tables)
    said = refused()
    assert "measurement.csv, row 5: the event is more than 30 days before the person's birth" in said
    assert "--before-birth drop" in said
    code, out, _ = run(
        "import", "omop", tmp_path / "cdm", "--out", tmp_path / "meds", *SPLITS, "--before-birth", "drop"
    )
    assert code == 0
    assert '"before_birth": "<10"' in out  # counts of few are not printed
    events = pl.read_parquet(tmp_path / "meds" / "data" / "*.parquet")
    assert events.filter(pl.col("time").dt.year() == 1980)["code"].to_list() == ["MEDS_BIRTH"]


def test_text_that_is_no_utf_8(refused, tmp_path):
    tables = private_cdm()
    change(tables, "observation", 0, value_as_string="Müller")
    tables["observation"].insert(0, tables["observation"][0] | {"value_as_string": "x"})
    folder = write_cdm(tmp_path / "cdm", tables)
    file = folder / "observation.csv"
    file.write_bytes(file.read_text(encoding="utf-8").encode("latin-1"))
    assert "observation.csv, row 2: value_as_string is not UTF-8 text" in refused()


def test_a_row_of_another_length(refused, tmp_path):
    folder = write_cdm(tmp_path / "cdm", private_cdm())
    with (folder / "death.csv").open("a") as stream:
        stream.write(f"{SECRET},2020-01-01,{PRIVATE}\n")
    assert "death.csv, row 3: it has 3 fields where the header has 6" in refused()


@pytest.mark.parametrize("name", ["person", "concept", "measurement", "concept_ancestor"])
def test_a_file_that_is_cut_off(refused, tmp_path, name):
    folder = write_cdm(tmp_path / "cdm", private_cdm(), "parquet")
    file = folder / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    assert f"{name}.parquet is not a readable parquet file" in refused()


def test_a_compressed_file_that_is_cut_off(refused, tmp_path):
    folder = write_cdm(tmp_path / "cdm", private_cdm(), "gz")
    file = folder / "measurement.csv.gz"
    file.write_bytes(file.read_bytes()[:-20])
    assert "measurement.csv.gz" in refused()


def test_files_without_anything(refused, tmp_path):
    folder = write_cdm(tmp_path / "cdm", private_cdm())
    (folder / "person.csv").write_text("person_id,year_of_birth\n")
    assert "person.csv holds no person" in refused()
    (folder / "person.csv").write_text("")
    assert "person.csv is empty. Write it with its header, or remove it." in refused()


def test_a_table_of_headers_alone_is_no_mistake(run, tmp_path):
    folder = write_cdm(tmp_path / "cdm", private_cdm())
    for name in ("death", "concept_ancestor", "care_site", "measurement"):
        file = folder / f"{name}.csv"
        file.write_text(file.read_text().partition("\n")[0] + "\n")
    code, _, said = run("import", "omop", tmp_path / "cdm", "--out", tmp_path / "meds", *SPLITS)
    assert code == 0
    assert "error" not in said


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--codes", "both"), "`codes`: expected 'standard' or 'source', found 'both'"),
        (("--before-birth", "keep"), "`before_birth`: expected 'refuse' or 'drop', found 'keep'"),
        (("--splits", "{hash: [.5, .2]}"), "--splits"),
    ],
)
def test_options_that_do_not_exist(refused, tmp_path, options, problem):
    write_cdm(tmp_path / "cdm", private_cdm())
    assert problem in refused(*options)


def test_an_older_result_stays_when_an_import_fails(run, tmp_path):
    folder = write_cdm(tmp_path / "cdm", private_cdm())
    words = ("import", "omop", folder, "--out", tmp_path / "meds", *SPLITS)
    assert run(*words)[0] == 0
    before = {file: file.read_bytes() for file in (tmp_path / "meds").rglob("*") if file.is_file()}
    write_cdm(folder, {"death": table("person_id death_date", (2, "soon"))})
    assert run(*words)[0] == 2
    assert {file: file.read_bytes() for file in (tmp_path / "meds").rglob("*") if file.is_file()} == before
