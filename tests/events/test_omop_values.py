"""Cells that mean nothing, or not what their column is for: read by a rule that counts them, or refused by row."""

import polars as pl
import pytest
from omop_by_hand import ICU, small_cdm, table, write_cdm

from ehrctx.errors import InputError
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.omop.convert import import_omop
from ehrctx.events.rules import LONGEST_CODE
from ehrctx.study import HashSplits, OmopOptions

SPLITS = HashSplits(hash=(0.5, 0.2, 0.3))


@pytest.fixture
def imported(tmp_path):
    """A function that imports tables; facts of its tables, and the events."""

    def run(tables, checked=True, **options):
        folder = write_cdm(tmp_path / "cdm", tables)
        facts = import_omop(folder, tmp_path / "meds", OmopOptions(**options), SPLITS)
        events = pl.concat([pl.read_parquet(f) for f in (tmp_path / "meds" / "data").iterdir()])
        if checked:
            assert check(open_dataset(tmp_path / "meds"))[1] == []
        return facts["tables"], events.sort("subject_id", maintain_order=True)

    return run


def tidy(imported):
    return imported(small_cdm())[1].rows()


@pytest.mark.parametrize("missing", ["NA", "N/A", "NULL", "None", "nan", r"\N", "", "<NA>", "na"])
def test_what_is_missing_in_typed_columns(imported, missing):
    """R writes NA for everything that is missing; a text, a code or a name may be NA."""
    rows = tidy(imported)
    tables = small_cdm()
    typed = ("_id", "_date", "_datetime", "value_as_number", "_of_birth", "_levels_of_separation", "unit_source_value")
    for name, table_rows in tables.items():
        for row in table_rows if name != "concept" else ():
            row |= {column: missing for column, value in row.items() if value is None and column.endswith(typed)}
    assert imported(tables)[1].rows() == rows


def test_the_concept_named_na_stays(imported, tmp_path):
    tables = small_cdm()
    tables["concept"].append(tables["concept"][-1] | {"concept_id": 5, "concept_name": "NA", "concept_code": "NA"})
    tables["measurement"][0] |= {"measurement_concept_id": 5, "value_as_number": None, "value_as_concept_id": 5}
    tables["measurement"][4] |= {"measurement_source_value": "NA"}
    _, events = imported(tables)
    assert events.filter(code="SNOMED/NA")["text_value"].to_list() == ["NA"]
    assert events.filter(code="UNMAPPED/measurement/NA").height == 1


@pytest.mark.parametrize("name", ["value_source_value", "value_as_string"])
def test_a_text_na_is_a_text(imported, name):
    tables = small_cdm()
    for row in tables["measurement"]:
        row[name] = "NA" if row is tables["measurement"][1] else None
    tables["measurement"][1] |= {"value_as_number": None}
    assert imported(tables)[1].filter(pl.col("text_value") == "NA").height == 1


def measurements(*values, **cells):
    """A row for each value of value_as_number, among 2,000 others."""
    day = "2020-01-06"
    rows = [(1, 3023103, day, None, value, None, 8753) for value in (*range(2000 - len(values)), *values)]
    columns = "person_id measurement_concept_id measurement_date value_source_value value_as_number"
    made = table(f"{columns} value_as_concept_id unit_concept_id", *rows)
    return [row | cells for row in made]


def test_numbers_with_a_comparator_and_texts_for_numbers(imported):
    written = [">100", "<= 5", "≥7", "1,5", "5 mg", "haemolysed"]
    counts, events = imported(small_cdm() | {"measurement": measurements(*written)})
    last = events.filter(table="measurement").tail(6).select("numeric_value", "text_value", "unit").rows()
    numbers = [(100, ">", "mmol/L"), (5, "<=", "mmol/L"), (7, ">=", "mmol/L")]
    assert last == [*numbers, (None, "1,5", None), (None, "5 mg", None), (None, "haemolysed", None)]
    counted = counts["measurement"]
    assert (counted["number_with_comparator"], counted["number_as_text"]) == (3, 3)
    assert counted["rows"] == counted["events"] == 2000


def test_a_text_for_a_number_is_the_text_before_all_others(imported):
    rows = measurements("1,5", value_as_concept_id=4181412, value_source_value="5")
    _, events = imported(small_cdm() | {"measurement": rows})
    assert events.filter(table="measurement")["text_value"].tail(1).to_list() == ["1,5"]


def test_the_operator_leads(imported):
    rows = measurements(">5", operator_concept_id=4171756)
    _, events = imported(small_cdm() | {"measurement": rows})
    assert events.filter(table="measurement")["text_value"].unique().to_list() == ["<"]


@pytest.mark.parametrize(("n", "refused"), [(20, False), (21, True)])
def test_at_most_one_in_a_hundred_is_no_number(imported, n, refused):
    tables = small_cdm() | {"measurement": measurements(*["1,5"] * n)}
    if not refused:
        assert imported(tables)[0]["measurement"]["number_as_text"] == n
        return
    with pytest.raises(InputError) as caught:
        imported(tables)
    assert str(caught.value).endswith(
        "measurement.csv, row 1,980: value_as_number is not a number, here and in 1.1% of the rows that have one (at "
        "most 10 of them, or 1%, may be texts). Write numbers with a point and without unit, and put texts into "
        "value_as_string."
    )


def test_ten_texts_for_numbers_are_few_in_any_table(imported):
    ten = [row | {"value_as_number": "1,5"} for row in small_cdm()["measurement"][:5]] * 2
    assert imported(small_cdm() | {"measurement": ten})[0]["measurement"]["number_as_text"] == 10
    with pytest.raises(InputError, match=r"row 1: value_as_number is not a number, here and in 100\.0% of the rows"):
        imported(small_cdm() | {"measurement": [*ten, ten[0]]})


def test_comparators_are_no_reason_to_refuse(imported):
    counts, _ = imported(small_cdm() | {"measurement": measurements(*[">5"] * 1000)})
    assert counts["measurement"]["number_with_comparator"] == 1000


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_numbers_without_end(imported, tmp_path, form):
    tables = small_cdm()
    tables["measurement"][0]["value_as_number"] = float("inf")
    facts = import_omop(write_cdm(tmp_path / "inf", tables, form), tmp_path / "infinite", OmopOptions(), SPLITS)
    assert facts["tables"]["measurement"]["number_beyond_float32"] == 1


LONG = "x" * 600


def test_long_codes_are_cut_and_stay_two(imported, tmp_path):
    tables = small_cdm()
    tables["condition_occurrence"] += [
        tables["condition_occurrence"][1] | {"condition_source_value": value}
        for value in (LONG + "1", LONG + "2", LONG + "1", "ü" * 300, "a\nb\tc", "\x00 \x01")
    ]
    tables["person"][1]["gender_source_value"] = LONG
    counts, events = imported(tables)
    codes = events.filter(table="condition_occurrence", subject_id=2)["code"].to_list()
    cut = [code for code in codes if "~" in code]
    assert len(cut) == 4
    assert len(set(cut)) == 3
    assert max(len(code.encode()) for code in cut) <= LONGEST_CODE
    assert cut[0].startswith("UNMAPPED/condition_occurrence/" + "x" * 400)
    assert "UNMAPPED/condition_occurrence/a b c" in codes
    assert counts["condition_occurrence"]["code_altered"] == 6
    assert counts["person"]["code_altered"] == 1
    named = pl.read_parquet(tmp_path / "meds" / "metadata" / "codes.parquet")["code"]
    assert set(events["code"]) <= set(named)


def test_a_long_code_of_a_concept(imported, tmp_path):
    tables = small_cdm()
    row = next(row for row in tables["concept"] if row["concept_id"] == 9201)
    row["concept_code"] = LONG
    _, events = imported(tables)
    (code,) = events.filter(pl.col("code").str.starts_with("Visit/x"), ~pl.col("code").str.ends_with("//END"))[
        "code"
    ].unique()
    assert f"{code}//END" in set(events["code"])
    named = pl.read_parquet(tmp_path / "meds" / "metadata" / "codes.parquet")
    assert named.filter(code=code)["description"].to_list() == ["Inpatient Visit"]


@pytest.mark.parametrize("end", ["9999-12-31", "2999-12-31", "2500-01-01", "1699-12-31", "1111-11-11"])
def test_an_end_that_is_a_placeholder(imported, end):
    tables = small_cdm()
    tables["visit_occurrence"][0] |= {"visit_end_datetime": f"{end} 00:00:00"}
    tables["visit_detail"][0] |= {"visit_detail_end_date": end}
    tables["drug_exposure"][0] |= {"drug_exposure_end_date": end}
    counts, events = imported(tables)
    for name in ("visit_occurrence", "visit_detail", "drug_exposure"):
        assert counts[name]["end_is_placeholder"] == 1
    assert counts["visit_occurrence"]["without_end"] == 1  # one has none
    assert not set(events.filter(visit_id=10)["code"]) & {"Visit/IP//END", f"VISIT_DETAIL//{ICU}//END"}
    assert events.filter(visit_id=10)["end"].drop_nulls().dt.year().unique().to_list() == [2020]
    assert events["time"].dt.year().max() == 2022


@pytest.mark.parametrize("end", ["2199-12-31", "2099-12-31"])
def test_an_end_decades_after_its_start_is_one_of_a_visit_alone(imported, end):
    """2199 would be refused later, as too far from the person's other events; a condition may last for decades."""
    tables = small_cdm()
    tables["visit_occurrence"][0] |= {"visit_end_datetime": f"{end} 00:00:00"}
    tables["visit_detail"][0] |= {"visit_detail_end_date": end}
    tables["drug_exposure"][0] |= {"drug_exposure_end_date": end}
    counts, events = imported(tables)
    for name in ("visit_occurrence", "visit_detail"):
        assert counts[name]["end_is_placeholder"] == 1
    assert "end_is_placeholder" not in counts["drug_exposure"]
    assert not set(events.filter(visit_id=10)["code"]) & {"Visit/IP//END", f"VISIT_DETAIL//{ICU}//END"}
    assert events["time"].dt.year().max() == 2022


@pytest.mark.parametrize("year", [2499, 1700])
def test_the_years_between_are_times(imported, year):
    tables = small_cdm()
    tables["person"][0] |= {"birth_datetime": "1650-03-04"}
    tables["visit_occurrence"][0] |= {"visit_start_datetime": f"{year}-01-01 08:00:00", "visit_end_datetime": None}
    tables["visit_occurrence"][0] |= {"visit_end_date": f"{year}-12-31"}
    _, events = imported(tables, checked=False)  # no life is as long
    assert events.filter(pl.col("code") == "Visit/IP//END", visit_id=10)["time"].dt.year().to_list() == [year]


STARTS = {
    "visit_occurrence": ("visit_start_datetime", "Visit/IP"),
    "measurement": ("measurement_datetime", "LOINC/2823-3"),
    "death": ("death_datetime", "MEDS_DEATH"),
}


@pytest.mark.parametrize("start", ["9999-12-31 00:00:00", "1601-01-01 00:00:00"])
@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_is_a_placeholder(imported, name, start):
    column, code = STARTS[name]
    rows = tidy(imported)
    tables = small_cdm()
    tables[name][0][column] = start
    with pytest.raises(InputError) as caught:
        imported(tables)
    stem = column.removesuffix("_datetime")
    assert f"{name}.csv, row 1: {stem}_date or {stem}_datetime lies before 1700 or after 2499" in str(caught.value)
    assert str(caught.value).endswith("or drop such rows with --implausible-time drop.")
    counts, events = imported(tables, implausible_time="drop")
    assert counts[name]["left_out"] == {"implausible_time": 1}
    dropped = {"visit_occurrence": 2, "measurement": 1, "death": 2}[name]
    assert events.height == len(rows) - dropped
    assert events.filter(code=code).height < sum(row[2] == code for row in rows)


def test_a_placeholder_of_a_person_who_is_not_there_is_not_refused(imported):
    tables = small_cdm()
    tables["condition_occurrence"][3]["condition_start_date"] = "9999-12-31"
    assert imported(tables)[0]["condition_occurrence"]["left_out"] == {"no_person": 1, "no_code": 1}


def test_births_shifted_by_centuries_are_kept(imported):
    """De-identified sources shift the births of patients over 89."""
    tables = small_cdm()
    tables["person"][0] |= {"birth_datetime": None, "year_of_birth": 1600}
    tables["person"][1] |= {"year_of_birth": 1}
    _, events = imported(tables)
    assert events.filter(code="MEDS_BIRTH")["time"].dt.year().to_list() == [1600, 1, 2000]


def test_the_option_of_the_command(run, tmp_path):
    tables = small_cdm()
    tables["measurement"][0]["measurement_datetime"] = "9999-12-31"
    words = ("import", "omop", write_cdm(tmp_path / "cdm", tables), "--out", tmp_path / "meds")
    assert run(*words)[0] == 2
    code, out, _ = run(*words, "--implausible-time", "drop")
    assert code == 0
    assert '"implausible_time": "<10"' in out
    code, _, said = run(*words, "--implausible-time", "keep")
    assert code == 2
    assert "`implausible_time`: expected 'refuse' or 'drop', found 'keep'" in said
