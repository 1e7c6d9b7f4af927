"""Concepts, units and keys of a profile that match nothing in the data are named, and kept in the facts."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import polars as pl
import pytest
import yaml

from ehrctx.artifacts import MANIFEST
from ehrctx.study import Labels
from ehrctx.tasks.label_sets import write_labels
from ehrctx.tasks.missing_codes import with_ancestors

START = datetime(2020, 1, 1, 8)
PROFILE = {
    "name": "site",
    "admission": ["IN"],
    "discharge": ["OUT"],
    "icu_admission": ["ICU//*"],
    "death": ["MEDS_DEATH"],
    "follow_up_end": "record_end",
    "unit_column": "unit",
}
LABORATORY = {
    "task": "low_sodium",
    "family": "laboratory",
    "question": "?",
    "result": {"LOINC": ["2951-2", "LP1", "LP2", "LP3", "LP4", "LP5", "LP6"]},
    "unit": "mmol/L",
    "conversions": {"mmol/L": 1, "mEq/L": 1},
    "abnormal": "at_most",
    "thresholds": [135, 130, 125],
}
DIAGNOSIS = {
    "task": "lupus",
    "family": "diagnosis",
    "question": "?",
    "diagnosis": {"SNOMED": ["55464009"], "ICD10CM": ["M32"]},
    "within_days": [1, 365],
}
ICU = {"task": "to_icu", "family": "icu", "question": "?"}
READMISSION = {"task": "back", "family": "readmission", "question": "?", "at_least_minutes": 1, "at_most_days": 30}
ALL_CODES = ("NA//SITE", "ICD10CM/M32.1", "ICU//1", "MEDS_DEATH")
IN_LOINC = pl.DataFrame(
    {"code": ["NA//SITE"], "description": ["sodium"], "parent_codes": [["LOINC/2951-2"]]},
)


def events_of(codes, unit):
    """Two stays of one subject, with an event of each of `codes` in the first."""
    rows = [(0, "IN"), (30, "OUT"), (60, "IN"), (90, "OUT"), *((10, code) for code in codes)]
    rows = sorted(rows, key=lambda row: row[0])
    return pl.DataFrame(
        {
            "subject_id": [1] * len(rows),
            "time": [START + timedelta(hours=hour) for hour, _ in rows],
            "code": [code for _, code in rows],
            "numeric_value": [120.0 if code == "NA//SITE" else None for _, code in rows],
            "unit": [unit if code == "NA//SITE" else None for _, code in rows],
        },
        schema_overrides={"time": pl.Datetime("us"), "numeric_value": pl.Float32, "unit": pl.String},
    )


@pytest.fixture
def label(tmp_path, write_meds, capsys):
    """Labels a data set with these codes; gives the facts and what was said on standard error."""

    def write(*definitions, codes=ALL_CODES, unit="mmol/L", metadata=IN_LOINC, shards=1):
        events = events_of(codes, unit)
        parts = {str(i): events.with_columns(pl.col("subject_id") + i) for i in range(shards)}
        data = write_meds(tmp_path / "data", parts, codes=metadata)
        (tmp_path / "site.yaml").write_text(yaml.safe_dump(PROFILE))
        files = []
        for definition in definitions:
            files.append(str(tmp_path / f"{definition['task']}.yaml"))
            (tmp_path / f"{definition['task']}.yaml").write_text(yaml.safe_dump(definition, sort_keys=False))
        facts = write_labels(data, str(tmp_path / "site.yaml"), files, Labels(), tmp_path / "labels")
        assert json.loads((tmp_path / "labels" / MANIFEST).read_text())["facts"] == facts
        return facts, capsys.readouterr().err

    return write


def test_nothing_is_said_where_each_task_has_codes(label):
    facts, said = label(LABORATORY, DIAGNOSIS, ICU, READMISSION, shards=2)
    assert said == ""
    assert (facts["low_sodium"]["labels"], facts["low_sodium"]["positive"]) == (2, 2)
    # some of several concepts match nothing: kept, not said
    assert facts["low_sodium"]["concepts_without_codes"] == [f"LOINC/LP{i}" for i in range(1, 7)]
    assert facts["lupus"]["concepts_without_codes"] == ["SNOMED/55464009"]
    assert not {"concepts_without_codes"} & (facts["to_icu"].keys() | facts["back"].keys())


@pytest.mark.parametrize("metadata", [None, IN_LOINC.with_columns(parent_codes=pl.lit([["LOINC/1-1"]]).list.first())])
def test_a_laboratory_task_without_codes_is_named(label, metadata):
    facts, said = label(LABORATORY, metadata=metadata)
    assert facts["low_sodium"]["labels"] == 0
    assert len(facts["low_sodium"]["concepts_without_codes"]) == 7
    assert said.count("warning:") == 1
    assert "the task 'low_sodium' has no label: no event has a code of or below LOINC/2951-2" in said
    assert "LOINC/LP4 and 2 more" in said
    assert "`--ontology`" in said


def test_a_diagnosis_without_codes_is_named(label):
    facts, said = label(DIAGNOSIS, codes=("ICD10CM/I10",))
    assert (facts["lupus"]["labels"], facts["lupus"]["positive"]) == (2, 0)
    assert facts["lupus"]["concepts_without_codes"] == ["SNOMED/55464009", "ICD10CM/M32"]
    assert "the task 'lupus' is negative for everybody: no event has a code of or below SNOMED/55464009" in said


def test_a_parent_that_no_event_has_is_no_code(label):
    """Metadata list codes that the data never use."""
    unused = pl.DataFrame({"code": ["X"], "description": ["x"], "parent_codes": [["SNOMED/55464009"]]})
    facts, said = label(DIAGNOSIS, codes=("ICD10CM/I10",), metadata=unused)
    assert "'lupus' is negative for everybody" in said
    assert "SNOMED/55464009" in facts["lupus"]["concepts_without_codes"]


@pytest.mark.parametrize("unit", ["mg/dL", None])
def test_a_laboratory_task_without_a_unit_it_knows_is_named(label, unit):
    facts, said = label(LABORATORY, unit=unit, shards=2)
    assert facts["low_sodium"]["left_out"]["in an unknown unit"] == 2
    assert said.count("warning:") == 1
    assert "'low_sodium' has no label from a number: no result is in a unit of its `conversions` (mmol/L" in said
    assert "`unit_column`" in said
    assert "mg/dL" not in said  # a wrong column may hold anything


@pytest.mark.parametrize(
    ("definition", "code", "words"),
    [
        (ICU, "ICU//1", "no patient comes to intensive care, for to_icu: no event matches `icu_admission` (ICU//*)"),
        (READMISSION, "MEDS_DEATH", "nobody dies, for back: no event matches `death` (MEDS_DEATH)"),
    ],
)
def test_a_key_of_the_profile_that_a_task_needs_and_nothing_matches_is_named(label, definition, code, words):
    _, said = label(definition, codes=[other for other in ALL_CODES if other != code])
    assert said.count("warning:") == 1
    assert f"{words} of the profile 'site'" in said


def test_names_above_the_codes_are_reached_level_by_level():
    codes = pl.DataFrame(
        {"code": ["a", "b", "c", "x"], "description": [""] * 4, "parent_codes": [["b"], ["c", "d"], ["a"], ["y"]]}
    )
    assert sorted(with_ancestors(pl.Series(["a"]), codes)) == ["a", "b", "c", "d"]
