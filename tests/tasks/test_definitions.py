"""The 14 shipped definitions: that they are there, what they ask, which codes and units they know."""

import re
from datetime import datetime

import polars as pl
import pytest
from hand_made import NO_CODES, events_of, label_shard

from ehrctx.configuration import load, settings
from ehrctx.errors import InputError
from ehrctx.events.ontology import codes_of
from ehrctx.events.profile import DatasetProfile
from ehrctx.study import Labels
from ehrctx.tasks.definition import DEFINITIONS, FAMILIES, Diagnosis, Laboratory, load_definition

TASKS = {
    "guo_los": "stay",
    "guo_readmission": "readmission",
    "guo_icu": "icu",
    "lab_thrombocytopenia": "laboratory",
    "lab_hyperkalemia": "laboratory",
    "lab_hypoglycemia": "laboratory",
    "lab_hyponatremia": "laboratory",
    "lab_anemia": "laboratory",
    "new_hypertension": "diagnosis",
    "new_hyperlipidemia": "diagnosis",
    "new_pancan": "diagnosis",
    "new_celiac": "diagnosis",
    "new_lupus": "diagnosis",
    "new_acutemi": "diagnosis",
}
LABORATORY = [task for task, family in TASKS.items() if family == "laboratory"]
DIAGNOSES = [task for task, family in TASKS.items() if family == "diagnosis"]


def test_the_fourteen_tasks_are_shipped():
    assert {file.stem for file in DEFINITIONS.glob("*")} == set(TASKS)
    assert set(TASKS.values()) == set(FAMILIES) - {"given", "femr"}  # which have labels from elsewhere


@pytest.mark.parametrize("task", TASKS)
def test_definition_says_what_it_is(task):
    definition = load_definition(task)
    assert (definition.task, definition.family) == (task, TASKS[task])
    assert definition.question.endswith("?")
    assert definition.source.startswith("EHRSHOT")
    assert (DEFINITIONS / f"{task}.yaml").read_text().startswith("# ")  # the rule in words
    # Snakemake hands the definition on as JSON
    assert FAMILIES[definition.family].model_validate_json(definition.model_dump_json()) == definition


RULES = ("Prediction time: ", "Window: ", "Positive: ", "Left out", "Censoring: ")  # stated in words, in this order


@pytest.mark.parametrize("task", TASKS)
def test_every_rule_and_source_is_in_the_file(task):
    text = (DEFINITIONS / f"{task}.yaml").read_text()
    places = [text.index(f"\n# {rule}") for rule in RULES]
    assert places == sorted(places)
    source = load_definition(task).source
    assert "arXiv 2307.02028" in source  # EHRSHOT
    assert "arXiv 2412.16178" in source  # Context Clues
    assert ("Guo et al. 2023" in source) is task.startswith("guo_")


@pytest.mark.parametrize("task", [*LABORATORY, *DIAGNOSES])
def test_every_code_has_its_name_beside_it(task):
    text = (DEFINITIONS / f"{task}.yaml").read_text()
    named = re.findall(r'^    - "(\S+)" +# +\S.*\w', text, flags=re.MULTILINE)
    assert named == [code for codes in load_definition(task).concepts.values() for code in codes]


PUBLISHED_GRADES = {  # mild, moderate, severe: context-clues, section 4
    "lab_thrombocytopenia": ("mild < 150, moderate < 100, severe < 50 x 10^9/L", "below", (150, 100, 50)),
    "lab_hyperkalemia": ("mild > 5.5, moderate > 6, severe > 7 mmol/L", "above", (5.5, 6, 7)),
    "lab_hypoglycemia": ("mild <= 3.9, moderate < 3.5, severe < 3 mmol/L", "at_most", (3.9, 3.5, 3)),
    "lab_hyponatremia": ("mild <= 135, moderate < 130, severe < 125 mmol/L", "at_most", (135, 130, 125)),
    "lab_anemia": ("mild < 120, moderate < 110, severe < 70 g/L", "below", (120, 110, 70)),
}


@pytest.mark.parametrize("task", LABORATORY)
def test_the_published_grades_in_words_and_numbers(task):
    words, abnormal, thresholds = PUBLISHED_GRADES[task]
    definition = load_definition(task)
    assert (definition.abnormal, definition.thresholds) == (abnormal, thresholds)
    assert f"Grades: {words}" in (DEFINITIONS / f"{task}.yaml").read_text()


@pytest.mark.parametrize(("task", "rule"), [("guo_readmission", "left_out"), *((t, "negative") for t in DIAGNOSES)])
def test_the_published_rule_for_censored_horizons(task, rule):
    assert load_definition(task).censored == rule


@pytest.mark.parametrize("profile", ["mimic_iv", "simulated"])
def test_shipped_profiles_serve_every_task(repository, profile):
    filled = load(DatasetProfile, repository / "pipelines" / "datasets" / f"{profile}.yaml")
    assert all(getattr(filled, key) for task in TASKS for key in load_definition(task).needs)


def test_readmission_window():
    definition = load_definition("guo_readmission")
    assert (definition.at_least_minutes, definition.at_most_days) == (1, 30)


@pytest.mark.parametrize("text", ["2024-13-01", "2024-02-30"])
def test_date_that_no_calendar_has_is_one_sentence(tmp_path, text):
    """YAML itself fails on it, before the profile could say what a follow-up may be."""
    file = tmp_path / "own.yaml"
    file.write_text(f"name: own\nfollow_up_end: {text}\n")
    with pytest.raises(InputError) as caught:
        load(DatasetProfile, file)
    message = str(caught.value)
    assert message.startswith(f"{file}: not valid YAML (")
    assert message.endswith(").")
    assert "\n" not in message


@pytest.mark.parametrize("by", ["definition", "settings"])
def test_date_that_no_calendar_has_elsewhere(tmp_path, by):
    """In a user's own definition, and in a section on the command line."""
    file = tmp_path / "own.yaml"
    file.write_text("task: t\nfamily: stay\nquestion: 2024-13-01\nat_least_days: 7\n")
    with pytest.raises(InputError, match="not valid YAML"):
        load_definition(str(file)) if by == "definition" else settings(Labels, "{given: 2024-13-01}")


# --- laboratory ---------------------------------------------------------------------------------------------------

CODES = {  # context-clues, section 4
    "lab_thrombocytopenia": {"LOINC/777-3"},
    "lab_hyperkalemia": {"LOINC/2823-3", "LOINC/6298-4"},
    "lab_hypoglycemia": {"LOINC/14749-6", "LOINC/2345-7", "LOINC/2339-0", "LOINC/2340-8", "SNOMED/33747003"},
    "lab_hyponatremia": {"LOINC/2951-2", "LOINC/2947-0"},
    "lab_anemia": {"LOINC/718-7"},
}
# The same analytes elsewhere (urine, cerebrospinal, pleural, peritoneal and other fluids), and look-alikes.
STRANGERS = {
    "LOINC/2828-2",  # potassium in urine
    "LOINC/2955-3",  # sodium in urine
    "LOINC/5792-7",  # glucose in urine
    "LOINC/2342-4",  # glucose in cerebrospinal fluid
    "LOINC/27353-2",  # glucose estimated from HbA1c
    "LOINC/4548-4",  # HbA1c
    "LOINC/2614-6",  # methemoglobin
    "LOINC/9317-9",  # platelet adequacy
    "LOINC/32623-1",  # mean platelet volume
}


@pytest.mark.parametrize("task", LABORATORY)
def test_tests_of_each_laboratory_task(task):
    definition = load_definition(task)
    ours = {f"{system}/{code}" for system, codes in definition.result.items() for code in codes}
    assert ours >= CODES[task]
    others = [load_definition(other) for other in LABORATORY if other != task]
    theirs = {f"{system}/{code}" for other in others for system, codes in other.result.items() for code in codes}
    assert not ours & (theirs | STRANGERS)


GRADES = {
    "lab_thrombocytopenia": {
        ("K/uL", "10*3/uL", "10^3/uL", "10*9/L", "10^9/L", "x10E3/uL", "G/L", "K/mm3", "10^3/µL", "10^3/μL"): {
            150: 0, 149.9: 1, 100: 1, 99.9: 2, 50: 2, 49.9: 3, 0: 3,
        },
        ("/uL", "cells/uL", "/mm3"): {150_000: 0, 149_900: 1, 100_000: 1, 99_900: 2, 50_000: 2, 49_900: 3},
    },
    "lab_hyperkalemia": {
        ("mmol/L", "mEq/L", "mmol/l", "meq/L", "MEQ/L"): {5.5: 0, 5.6: 1, 6: 1, 6.1: 2, 7: 2, 7.1: 3},
        ("mg/dL", "mg/dl"): {5.5: None, 60: None},  # no factor of glucose here
    },
    "lab_hypoglycemia": {
        ("mmol/L", "mmol/l"): {4: 0, 3.9: 1, 3.5: 1, 3.4: 2, 3: 2, 2.9: 3},
        ("mg/dL", "mg/dl", "MG/DL"): {71: 0, 70.2: 1, 70: 1, 63: 1, 62.9: 2, 54: 2, 53.9: 3},
    },
    "lab_hyponatremia": {("mmol/L", "mEq/L", "mmol/l", "meq/L"): {136: 0, 135: 1, 130: 1, 129: 2, 125: 2, 124: 3}},
    "lab_anemia": {
        ("g/L", "g/l"): {120: 0, 119: 1, 110: 1, 109: 2, 70: 2, 69: 3},
        ("mg/dL",): {12_000: 0, 11_900: 1, 6_900: 3},
        ("g/dL", "g/dl", "gm/dL"): {12: 0, 11.9: 1, 11: 1, 10.9: 2, 7: 2, 6.9: 3},
    },
}  # fmt: skip


@pytest.mark.parametrize("task", LABORATORY)
def test_grades_in_every_unit(task):
    definition = load_definition(task)
    code = min(CODES[task])
    for units, grades in GRADES[task].items():
        for unit in units:
            for value, grade in grades.items():
                rows = [
                    {"time": datetime(2020, 1, 1), "code": "BIRTH"},
                    {"time": datetime(2020, 1, 2), "code": code, "numeric_value": value, "unit": unit},
                ]
                labels, left_out = label_shard(events_of(rows), DatasetProfile(name="p"), NO_CODES, definition)
                found = labels["integer_value"].to_list()
                assert found == ([] if grade is None else [grade]), (unit, value)
                assert left_out["in an unknown unit"] == (grade is None)


@pytest.mark.parametrize("task", LABORATORY)
def test_units_that_differ_in_case_alone_are_the_same_unit(task):
    definition = load_definition(task)
    assert isinstance(definition, Laboratory)
    assert definition.conversions[definition.unit] == 1
    factors = {}
    for unit, factor in definition.conversions.items():
        assert factors.setdefault(unit.casefold(), factor) == factor


# --- diagnoses ----------------------------------------------------------------------------------------------------

DISEASES = {  # codes of the disease, and neighbours that are not
    "new_hypertension": ("I10 401 401.0 401.1 401.9", "I11.0 I15.0 I1A.0 402.90 400 R03.0"),
    "new_hyperlipidemia": (
        "E78.00 E78.01 E78.1 E78.2 E78.3 E78.41 E78.49 E78.5 272.0 272.1 272.2 272.3 272.4",
        "E78.6 E78.79 E78.81 E78.9 E77.1 272.5 272.7 272.9",
    ),
    "new_pancan": ("C25 C25.0 C25.4 C25.9 157.0 157.9", "C24.9 C26.0 D01.7 Z85.07 156.9 158.0"),
    "new_celiac": ("K90.0 579.0", "K90.1 K90.41 K90.9 579.1 579.9"),
    "new_lupus": ("M32 M32.0 M32.10 M32.9 710.0", "M33.0 L93.0 M35.9 710.1 695.4"),
    "new_acutemi": ("I21.01 I21.4 I21.9 I21.A1 I22.0 I22.9 410.00 410.71 410.92", "I20.0 I23.0 I24.9 I25.2 411.1 412"),
}
SNOMED = {
    "new_hypertension": "59621000",
    "new_hyperlipidemia": "55822004",
    "new_pancan": "372003004",
    "new_celiac": "396331005",
    "new_lupus": "55464009",
    "new_acutemi": "57054005",
}


@pytest.mark.parametrize("task", DIAGNOSES)
@pytest.mark.parametrize("dots", [True, False])
def test_codes_of_each_disease(task, dots):
    definition = load_definition(task)
    assert isinstance(definition, Diagnosis)
    assert definition.within_days == (1, 365)

    def named(codes):
        systems = {c: "ICD9CM" if c[0].isdigit() else "ICD10CM" for c in codes.split()}
        return {f"{system}/{c if dots else c.replace('.', '')}" for c, system in systems.items()}

    inside, outside = map(named, DISEASES[task])
    inside.add(f"SNOMED/{SNOMED[task]}")
    outside |= {f"SNOMED/{code}" for other, code in SNOMED.items() if other != task}
    used = events_of([{"time": None, "code": code} for code in inside | outside])["code"]
    assert codes_of(definition.diagnosis, used, NO_CODES) == inside


# The ICD codes that EHRSHOT's ontology has below each concept (MedHELM's EHRSHOT scenario lists them), but
# for those that the definitions say they leave out.
EHRSHOT_ICD = {
    "new_hypertension": "I10 401 401.0 401.1 401.9",
    "new_hyperlipidemia": "E78.0 E78.00 E78.01 E78.1 E78.2 E78.3 E78.4 E78.49 E78.5 272.0 272.1 272.2 272.3 272.4",
    "new_pancan": "C25 C25.0 C25.1 C25.2 C25.3 C25.4 C25.7 C25.9 157 157.0 157.1 157.2 157.3 157.4 157.8 157.9",
    "new_celiac": "K90.0 579.0",
    "new_lupus": "M32 M32.0 M32.1 M32.10 M32.12 M32.13 M32.14 M32.19 M32.8 M32.9 710.0",
    "new_acutemi": "I21 I21.0 I21.01 I21.02 I21.09 I21.1 I21.11 I21.19 I21.2 I21.21 I21.29 I21.3 I21.4 I21.9 410 410.0 "
    "410.00 410.01 410.02 410.12 410.22 410.32 410.42 410.52 410.7 410.71 410.8 410.82 410.9 410.92",
}


@pytest.mark.parametrize("task", DIAGNOSES)
def test_icd_codes_of_ehrshots_ontology_are_in_the_set(task):
    used = pl.Series([f"{'ICD9CM' if c[0].isdigit() else 'ICD10CM'}/{c}" for c in EHRSHOT_ICD[task].split()])
    assert codes_of(load_definition(task).diagnosis, used, NO_CODES) == set(used)


def test_cancer_of_the_ampulla_is_not_of_the_pancreas():
    used = pl.Series(["ICD10CM/C24.1", "ICD9CM/156.2"])
    assert codes_of(load_definition("new_pancan").diagnosis, used, NO_CODES) == set()
