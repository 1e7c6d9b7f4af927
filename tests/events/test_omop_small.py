"""A small CDM, in every form in which one may lie there, against MEDS rows written by hand."""

import json

import polars as pl
import pytest
from omop_by_hand import SMALL_MEDS, as_5_3, as_5_4, small_cdm, write_cdm

from ehrctx.events import batches, csv_files, writer
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.omop.convert import import_omop
from ehrctx.events.omop.rows import SCHEMA
from ehrctx.events.shards import read_shard
from ehrctx.study import HashSplits, OmopOptions

SPLITS = HashSplits(hash=(0.5, 0.2, 0.3))


def rows_of(folder):
    files = sorted((folder / "data").glob("*.parquet"))
    events = pl.concat([pl.read_parquet(file) for file in files]).sort("subject_id", maintain_order=True)
    assert dict(events.schema) == SCHEMA
    return [(*row[:3], None if row[3] is None else round(row[3], 5), *row[4:]) for row in events.rows()]


def imported(folder, out, **options):
    return import_omop(folder, out, OmopOptions(**options), SPLITS), rows_of(out)


@pytest.mark.parametrize("form", ["csv", "CSV", "semicolons", "tabs", "parquet", "PARQUET", "gz", "parts", "spark"])
@pytest.mark.parametrize("version", [as_5_3, as_5_4])
def test_the_rows_are_those_written_by_hand(tmp_path, form, version):
    facts, rows = imported(write_cdm(tmp_path / "cdm", version(small_cdm()), form), tmp_path / "meds")
    assert rows == SMALL_MEDS
    summary, violations = check(open_dataset(tmp_path / "meds"))
    assert violations == []
    assert (facts["subjects"], facts["events"]) == (summary["subjects"], summary["events"]) == (3, len(SMALL_MEDS))


def test_what_was_counted(tmp_path):
    facts, _ = imported(write_cdm(tmp_path / "cdm", small_cdm()), tmp_path / "meds")
    assert json.loads((tmp_path / "meds" / "manifest.json").read_text())["facts"] == facts
    tables = facts["tables"]
    assert {name: counts.pop("rows_imported") for name, counts in tables.items()} == {
        name: counts["rows"] - sum(counts.get("left_out", {}).values()) for name, counts in tables.items()
    }
    assert tables == {
        "person": {"rows": 3, "events": 8, "unmapped": 1, "without_race": 1, "without_ethnicity": 3},
        "visit_occurrence": {
            "rows": 4, "events": 6, "unmapped": 1, "without_end": 1, "end_before_start": 1,
        },
        "visit_detail": {"rows": 1, "events": 3},
        "observation": {"rows": 1, "events": 1},
        "condition_occurrence": {
            "rows": 4, "events": 2, "unmapped": 1, "left_out": {"no_person": 1, "no_code": 1},
        },
        "measurement": {"rows": 6, "events": 6, "unmapped": 1, "unknown_concept": 1, "clamped_to_birth": 1},
        "procedure_occurrence": {"rows": 1, "events": 1},
        "drug_exposure": {"rows": 1, "events": 1},
        "device_exposure": {"rows": 1, "events": 1},
        "death": {"rows": 2, "events": 3},
    }  # fmt: skip


def test_codes_and_what_lies_above_them(tmp_path):
    imported(write_cdm(tmp_path / "cdm", small_cdm()), tmp_path / "meds")
    codes = pl.read_parquet(tmp_path / "meds" / "metadata" / "codes.parquet")
    assert codes["code"].to_list() == sorted({row[2] for row in SMALL_MEDS} | {
        # above what is used, or named by it
        "SNOMED/38341003", "SNOMED/49601007", "Visit/OMOP4822460",
    })  # fmt: skip
    told = {code: (description, parents) for code, description, parents in codes.rows()}
    assert told["SNOMED/59621000"] == ("Essential hypertension", ["SNOMED/38341003"])
    assert told["SNOMED/38341003"] == ("Hypertensive disorder", ["SNOMED/49601007"])
    assert told["SNOMED/49601007"] == ("Disorder of cardiovascular system", None)
    assert told["VISIT_DETAIL//Visit/OMOP4822460"] == ("Intensive Care", ["Visit/OMOP4822460"])
    assert told["Visit/IP//END"] == ("Inpatient Visit: end", None)
    assert told["CARE_SITE/77"] == ("Medical ICU", None)
    assert told["UNMAPPED/measurement/GLU"] == (None, None)
    assert told["MEDS_BIRTH"] == ("Birth", None)


def test_tasks_find_what_lies_below_their_concepts(tmp_path):
    from ehrctx.events.meds import read_codes
    from ehrctx.events.ontology import codes_of

    imported(write_cdm(tmp_path / "cdm", small_cdm()), tmp_path / "meds", codes="source")
    used = pl.Series([row[2] for row in SMALL_MEDS if row[7] == "death"] + ["ICD10CM/I10"])
    codes = read_codes(open_dataset(tmp_path / "meds"))
    assert codes_of({"SNOMED": ("49601007",)}, used, codes) == {"SNOMED/59621000", "ICD10CM/I10"}


def test_source_codes_lead_to_their_standard_ones(tmp_path):
    _, rows = imported(write_cdm(tmp_path / "cdm", small_cdm()), tmp_path / "meds", codes="source")
    (diagnosis,) = [row for row in rows if row[7] == "condition_occurrence" and row[0] == 1]
    assert (diagnosis[2], diagnosis[8]) == ("ICD10CM/I10", None)
    changed = [mine for mine, hand in zip(rows, SMALL_MEDS, strict=True) if mine != hand]
    assert changed == [diagnosis]
    codes = pl.read_parquet(tmp_path / "meds" / "metadata" / "codes.parquet")
    told = dict(codes.select("code", "parent_codes").rows())
    assert told["ICD10CM/I10"] == ["SNOMED/59621000"]
    assert told["SNOMED/59621000"] == ["SNOMED/38341003"]
    # nothing leads down or through a relation that is no longer valid
    assert "SNOMED/999" not in told


def test_is_a_serves_where_there_are_no_ancestors(tmp_path):
    tables = small_cdm()
    del tables["concept_ancestor"]
    is_a = {"relationship_id": "Is a", "valid_start_date": None, "valid_end_date": None, "invalid_reason": None}
    tables["concept_relationship"] += [
        {"concept_id_1": 320128, "concept_id_2": 316866, **is_a},
        {"concept_id_1": 316866, "concept_id_2": 134057, **is_a},
        {"concept_id_1": 999, "concept_id_2": 134057, **is_a},
    ]
    imported(write_cdm(tmp_path / "cdm", tables), tmp_path / "meds")
    told = dict(pl.read_parquet(tmp_path / "meds/metadata/codes.parquet").select("code", "parent_codes").rows())
    assert told["SNOMED/59621000"] == ["SNOMED/38341003"]
    assert told["SNOMED/38341003"] == ["SNOMED/49601007"]
    assert "SNOMED/999" not in told


def test_shards_do_not_change_the_result(tmp_path, monkeypatch):
    folder = write_cdm(tmp_path / "cdm", small_cdm())
    _, one = imported(folder, tmp_path / "one")
    monkeypatch.setattr(writer, "EVENTS_PER_SHARD", 3)
    monkeypatch.setattr(writer, "SPILLED", 2)
    _, several = imported(folder, tmp_path / "several")
    assert len(list((tmp_path / "several" / "data").iterdir())) > 1
    assert several == one
    for name in ("codes", "subject_splits"):
        tables = [pl.read_parquet(tmp_path / made / f"metadata/{name}.parquet") for made in ("one", "several")]
        assert tables[0].equals(tables[1])


def test_batches_do_not_change_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "BLOCK", 300)
    monkeypatch.setattr(batches, "ROWS", 1)
    for form in ("csv", "parquet"):
        _, rows = imported(write_cdm(tmp_path / form, small_cdm(), form), tmp_path / f"meds-{form}")
        assert rows == SMALL_MEDS


def test_a_vocabulary_as_athena_ships_it(tmp_path):
    """Tabs, and quotes are characters."""
    tables = small_cdm()
    folder = write_cdm(tmp_path / "cdm", {k: v for k, v in tables.items() if not k.startswith("concept")})
    for name in ("concept", "concept_ancestor", "concept_relationship"):
        cells = [list(tables[name][0]), *(row.values() for row in tables[name])]
        lines = ["\t".join("" if cell is None else str(cell) for cell in row) for row in cells]
        (folder / f"{name.upper()}.csv").write_text("\n".join(lines) + "\n")
    _, rows = imported(folder, tmp_path / "meds")
    assert rows == SMALL_MEDS
    told = dict(pl.read_parquet(tmp_path / "meds/metadata/codes.parquet").select("code", "description").rows())
    assert told["SNOMED/399208008"] == 'Chest "X-ray", frontal'


def test_the_shipped_profile_reads_it(tmp_path, repository):
    """Days are moved to their end, births stay, and stays are told by their visit."""
    from ehrctx.configuration import load
    from ehrctx.events.profile import DatasetProfile
    from ehrctx.tasks.visits import hospital_stays

    imported(write_cdm(tmp_path / "cdm", small_cdm()), tmp_path / "meds")
    profile = load(DatasetProfile, repository / "pipelines" / "datasets" / "omop.yaml")
    dataset = open_dataset(tmp_path / "meds")
    events = pl.concat([read_shard(dataset, shard, profile) for shard in dataset.shards])
    assert hospital_stays(events, profile).drop("died").rows() == [
        (row[0], row[6], row[1], row[9]) for row in SMALL_MEDS if row[2] == "Visit/IP" and row[9]
    ]
    times = dict(events.filter(pl.col("subject_id") == 2).drop_nulls("time").select("code", "time").rows())
    assert {code: f"{time:%F %T}" for code, time in times.items()} == {
        "MEDS_BIRTH": "1990-01-01 00:00:00",
        "LOINC/2823-3": "1990-01-01 23:59:00",
        "UNMAPPED/visit_occurrence": "2021-02-03 23:59:00",
        "UNMAPPED/condition_occurrence/X99": "2021-02-03 23:59:00",
        "MEDS_DEATH": "2022-01-02 23:59:00",
    }
    first = events.filter(pl.col("subject_id") == 2).drop_nulls("time")["code"][0]
    assert first == "MEDS_BIRTH"


def test_who_has_no_event_is_no_subject(tmp_path):
    """Of the third person, PERSON says nothing that is used, and the only row has no code."""
    tables = small_cdm()
    tables["person"][2] |= dict.fromkeys(set(tables["person"][2]) - {"person_id"})
    for name in ("visit_occurrence", "observation"):
        tables[name] = [row for row in tables[name] if row["person_id"] != 3]
    tables["observation"] = [{"person_id": 3, "observation_concept_id": 0, "observation_date": "2020-01-01"}]
    facts, rows = imported(write_cdm(tmp_path / "cdm", tables), tmp_path / "meds")
    assert facts["tables"]["observation"] == {
        "rows": 1, "rows_imported": 0, "events": 0, "left_out": {"no_code": 1},
    }  # fmt: skip
    assert facts["tables"]["person"]["without_birth"] == 1
    assert rows == [row for row in SMALL_MEDS if row[0] != 3]
    assert facts["subjects"] == 2
    splits = pl.read_parquet(tmp_path / "meds/metadata/subject_splits.parquet")
    assert splits["subject_id"].to_list() == [1, 2]


def test_the_split_is_a_hash_of_the_subject(tmp_path, capsys):
    from ehrctx.events.splits import hash_splits

    facts, _ = imported(write_cdm(tmp_path / "cdm", small_cdm()), tmp_path / "meds")
    splits = pl.read_parquet(tmp_path / "meds/metadata/subject_splits.parquet")
    assert splits.equals(hash_splits(splits["subject_id"].to_numpy(), SPLITS))
    empty = [name for name, n in facts["splits"].items() if n == 0]
    assert empty
    assert f"the split {', '.join(empty)} is empty" in capsys.readouterr().err
