"""Drawn CDMs, as patchy as real ones, against the slow importer; and the slow importer against the rows by hand."""

import numpy as np
import polars as pl
import pytest
from omop_by_hand import SMALL_MEDS, Tables, read_rows, slow_import, small_cdm, write_cdm

from ehrctx.events import csv_files
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.omop.convert import import_omop
from ehrctx.events.omop.rows import SCHEMA
from ehrctx.study import HashSplits, OmopOptions

KINDS = {
    "visit_occurrence": ("visit", "visit_start", "visit_end"),
    "visit_detail": ("visit_detail", "visit_detail_start", "visit_detail_end"),
    "condition_occurrence": ("condition", "condition_start", "condition_end"),
    "drug_exposure": ("drug", "drug_exposure_start", "drug_exposure_end"),
    "procedure_occurrence": ("procedure", "procedure", "procedure_end"),
    "measurement": ("measurement", "measurement", None),
    "observation": ("observation", "observation", None),
    "device_exposure": ("device", "device_exposure_start", "device_exposure_end"),
    "death": ("cause", "death", None),
}


def drawn_cdm(seed: int) -> Tables:
    """Tables of rows whose every cell is drawn: concepts that are there, are not, or are 0; few days, so many ties."""
    draw = np.random.default_rng(seed)
    tables = {name: small_cdm()[name] for name in ("person", "concept", "concept_ancestor", "concept_relationship")}
    ids = [row["concept_id"] for row in tables["concept"]]

    def one_of(*choices):
        return choices[draw.integers(len(choices))]

    def concept():
        return one_of(0, None, 777777, *draw.choice(ids, 4).tolist())

    def moment():
        day = f"2020-01-{draw.integers(1, 6):02d}"
        return day, one_of(None, f"{day} 00:00:00", f"{day} {draw.integers(24):02d}:30:00")

    for name, (stem, start, end) in KINDS.items():
        tables[name] = []
        for _ in range(draw.integers(1, 40)):
            row = {"person_id": one_of(1, 2, 3, 4), f"{stem}_concept_id": concept()}
            row |= {f"{stem}_source_concept_id": concept(), f"{stem}_source_value": one_of(None, "x", "I10", "2823-3")}
            row |= dict(zip((f"{start}_date", f"{start}_datetime"), moment(), strict=True))
            if end:
                stated = one_of((None, None), moment(), moment())
                row |= dict(zip((f"{end}_date", f"{end}_datetime"), stated, strict=True))
            if name != "death":
                row["visit_occurrence_id"] = (
                    one_of(0, None, 5, 6) if name != "visit_occurrence" else draw.integers(1, 99)
                )
            if name in ("measurement", "observation"):
                row |= {
                    "value_as_number": one_of(None, 0, 1.5, -3),
                    "value_as_concept_id": concept(),
                    "value_as_string": one_of(None, "low", "grade 2"),
                    "value_source_value": one_of(None, "<5", ">= 3", "≤1", "haemolysed", "1.5", "1.5 mg"),
                    "operator_concept_id": one_of(None, 0, 4171756, 4171754, 4172704, 4171755, 4172703),
                    "unit_concept_id": one_of(0, None, 8753, 777777),
                    "unit_source_value": one_of(None, "mmol/L"),
                }
            tables[name].append(row)
    return tables


def test_the_slow_importer_finds_the_rows_by_hand(tmp_path):
    rows = slow_import(write_cdm(tmp_path, small_cdm()))
    hand = [row for row in SMALL_MEDS if not row[2].startswith("CARE_SITE/")]  # which it does not know
    assert [(*row[:3], row[3], *row[4:]) for row in rows] == hand


@pytest.mark.parametrize("codes", ["standard", "source"])
@pytest.mark.parametrize("seed", range(12))
def test_drawn_tables(tmp_path, monkeypatch, seed, codes):
    monkeypatch.setattr(csv_files, "BLOCK", 1_000)
    folder = write_cdm(tmp_path / "cdm", drawn_cdm(seed))
    facts = import_omop(folder, tmp_path / "meds", OmopOptions(codes=codes), HashSplits(hash=(0.4, 0.3, 0.3)))
    (shard,) = (tmp_path / "meds" / "data").iterdir()
    slow = pl.DataFrame(slow_import(folder, codes == "source"), schema=SCHEMA, orient="row")
    events = pl.read_parquet(shard)
    assert events.rows() == slow.rows()
    assert check(open_dataset(tmp_path / "meds"))[1] == []
    assert_all_rows_counted(facts, folder, events)


def assert_all_rows_counted(facts, folder, events):
    """Each row of each table has events, or was left out for one reason; each event is of a table."""
    counted = facts["tables"]
    of_tables = dict(events["table"].value_counts().iter_rows())
    for name, counts in counted.items():
        assert counts["rows"] == len(read_rows(folder, name))
        assert counts["rows"] == counts["rows_imported"] + sum(counts.get("left_out", {}).values())
        assert counts["events"] == of_tables.get(name, 0)
    assert set(of_tables) <= set(counted)
    assert facts["events"] == events.height == sum(counts["events"] for counts in counted.values())


@pytest.mark.parametrize("seed", range(8))
def test_patchy_tables_are_counted_row_by_row(tmp_path, seed):
    """Cells that hold nothing, placeholders, long codes and texts for numbers, in any of the tables."""
    tables = drawn_cdm(seed)
    draw = np.random.default_rng(seed)
    odd = {
        "person_id": ["NA", "99"],
        "_date": ["NA", "", "9999-12-31", "1111-11-11", "2020-01-03 00:00:00.0000000 +00:00"],
        "_datetime": ["", "NULL"],
        "_concept_id": ["NA", "0", ""],
        "_source_value": ["x" * 600, "a\nb", " ", "NA"],
    }
    for name, rows in tables.items():
        for row in rows if name in KINDS else ():
            for column in row:
                kind = next((kind for kind in odd if column.endswith(kind)), None)
                if kind and draw.random() < 0.15:
                    row[column] = draw.choice(odd[kind])
    folder = write_cdm(tmp_path / "cdm", tables)
    options = OmopOptions(implausible_time="drop", before_birth="drop")
    facts = import_omop(folder, tmp_path / "meds", options, HashSplits(hash=(0.4, 0.3, 0.3)))
    events = pl.concat([pl.read_parquet(file) for file in (tmp_path / "meds" / "data").iterdir()])
    assert_all_rows_counted(facts, folder, events)
    assert check(open_dataset(tmp_path / "meds"))[1] == []
