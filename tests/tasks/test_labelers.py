"""Every family of tasks against a slow labeler in plain Python, on the simulated cohort and on the real demo."""

import math
from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache

import polars as pl
import pytest
import yaml

from ehrctx.events.meds import open_dataset, read_codes, read_shard
from ehrctx.events.profile import DatasetProfile, find_profile
from ehrctx.study import load
from ehrctx.tasks.definition import Diagnosis, Laboratory, Stay, load_definition
from ehrctx.tasks.labelers import LABEL_SCHEMA, label_shard

TASKS = ("guo_los", "lab_hyponatremia", "new_acutemi", "new_hypertension")


# --- the slow labelers: definitions of context-clues, one row at a time -------------------------------------------


def matching(code, patterns):
    return any(code.startswith(p[:-1]) if p.endswith("*") else code == p for p in patterns)


@cache
def slow_events(folder, profile_file):
    """subject -> its timed events as dicts (time, code, value, text, unit, visit), in the file's order."""
    profile = yaml.safe_load(profile_file.read_text())
    subjects = {}
    for file in sorted((folder / "data").rglob("*.parquet")):
        for row in pl.read_parquet(file).iter_rows(named=True):
            time, code = row["time"], row["code"]
            if time is None:
                continue
            if matching(code, profile.get("date_only", ())) and time == datetime(time.year, time.month, time.day):
                time += timedelta(hours=23, minutes=59)
            unit = row[profile["unit_column"]] if "unit_column" in profile else None
            if unit is None and matching(code, profile.get("unit_in_code", ())):
                parts = code.split("//")
                unit = parts[-1] if len(parts) > 2 and parts[-1] != "UNK" else None
            subjects.setdefault(row["subject_id"], []).append(
                {
                    "time": time,
                    "code": code,
                    "value": row["numeric_value"],
                    "text": row["text_value"],
                    "unit": unit,
                    "visit": row[profile["visit_column"]],
                }
            )
    return subjects


def slow_members(folder, concepts):
    """Whether a code belongs to the concepts, by name or by any ancestor."""
    parents = {
        row["code"]: [p for p in row["parent_codes"] or [] if p]
        for row in pl.read_parquet(folder / "metadata" / "codes.parquet").iter_rows(named=True)
    }

    def itself(code):
        for system, members in concepts.items():
            for member in members:
                if system in ("ICD10CM", "ICD9CM"):
                    if code.replace(".", "").startswith(f"{system}/{member}".replace(".", "")):
                        return True
                elif code == f"{system}/{member}":
                    return True
        return False

    known = {}

    def belongs(code, above=()):
        if code not in known:
            known[code] = itself(code) or any(
                belongs(p, (*above, code)) for p in parents.get(code, ()) if p not in (*above, code)
            )
        return known[code]

    return belongs


def days_end(time):
    return datetime(time.year, time.month, time.day, 23, 59)


def slow_stays(events, profile):
    """(admitted, discharged) of each visit that has both."""
    opened, closed = {}, {}
    for event in events:
        if event["visit"] is None:
            continue
        if matching(event["code"], profile["admission"]):
            opened[event["visit"]] = min(opened.get(event["visit"], event["time"]), event["time"])
        if matching(event["code"], profile["discharge"]):
            closed[event["visit"]] = max(closed.get(event["visit"], event["time"]), event["time"])
    return [(opened[v], closed[v]) for v in opened if v in closed and closed[v] >= opened[v]]


def slow_labels(folder, profile_file, task):
    """(subject, prediction time, label, grade) of every label, sorted, and how many were left out for which reason."""
    labels, left_out = [], Counter()
    profile = yaml.safe_load(profile_file.read_text())
    belongs = slow_members(folder, task.get("result") or task.get("diagnosis") or {})
    for subject, events in slow_events(folder, profile_file).items():
        if task["family"] == "stay":
            for admitted, discharged in slow_stays(events, profile):
                if admitted.date() == discharged.date():
                    left_out["discharged on the admission day"] += 1
                    continue
                is_long = (discharged - admitted).total_seconds() >= task["at_least_days"] * 86_400
                labels.append((subject, days_end(admitted), is_long, None))
        if task["family"] == "diagnosis":
            diagnosed = min((e["time"] for e in events if belongs(e["code"])), default=None)
            for _, discharged in slow_stays(events, profile):
                now = days_end(discharged)
                if diagnosed is not None and diagnosed < now:
                    left_out["after the first diagnosis"] += 1
                    continue
                more_than, at_most = task["within_days"]
                days = math.inf if diagnosed is None else (diagnosed - now) / timedelta(days=1)
                labels.append((subject, now, more_than < days <= at_most, None))
        if task["family"] == "laboratory":
            first = min(e["time"] for e in events)
            for event in events:
                if not belongs(event["code"]):
                    continue
                is_number = event["value"] is not None and math.isfinite(event["value"])
                if event["time"] == first:
                    left_out["at the subject's first event time"] += 1
                elif not is_number and not event["text"]:
                    left_out["without a value"] += 1
                elif is_number and event["unit"] not in task["conversions"]:
                    left_out["in an unknown unit"] += 1
                else:
                    grade = 0
                    if is_number:
                        value = Decimal(f"{event['value']:.6g}") * Decimal(str(task["conversions"][event["unit"]]))
                        for threshold in map(Decimal, map(str, task["thresholds"])):
                            grade += {
                                "at_most": value <= threshold,
                                "below": value < threshold,
                                "above": value > threshold,
                            }[task["abnormal"]]
                    labels.append((subject, event["time"] - timedelta(minutes=1), grade > 0, grade))
    return sorted(labels, key=lambda row: (*row[:2], row[2], row[3] or 0)), left_out


# --- comparisons --------------------------------------------------------------------------------------------------


def fast_labels(folder, profile_file, definition):
    dataset = open_dataset(folder)
    profile = load(DatasetProfile, profile_file)
    codes = read_codes(dataset)
    rows, left_out = [], Counter()
    for shard in dataset.shards:
        labels, reasons = label_shard(read_shard(dataset, shard, profile), profile, codes, definition)
        assert dict(labels.schema) == LABEL_SCHEMA
        assert labels.equals(labels.sort("subject_id", "prediction_time", maintain_order=True))
        rows += labels.rows()
        left_out.update(reasons)
    return sorted(rows, key=lambda row: (*row[:2], row[2], row[3] or 0)), +left_out


def compare(folder, repository, profile_name, task):
    profile_file = repository / "pipelines" / "datasets" / f"{profile_name}.yaml"
    definition_file = repository / "ehrctx" / "tasks" / "definitions" / f"{task}.yaml"
    ours = fast_labels(folder, profile_file, load_definition(task))
    expected, left_out = slow_labels(folder, profile_file, yaml.safe_load(definition_file.read_text()))
    assert ours[0] == expected
    assert ours[1] == left_out
    return expected


@pytest.mark.parametrize("task", TASKS)
def test_simulated_cohort_row_by_row(cohort, repository, task):
    labels = compare(cohort.events, repository, "simulated", task)
    positive = sum(label for _, _, label, _ in labels)
    assert positive < len(labels)
    assert positive > 0 or task == "new_hypertension"  # nobody there comes to hospital without knowing it


@pytest.mark.parametrize("task", TASKS)
def test_real_demo_row_by_row(mimic_demo, repository, task):
    labels = compare(mimic_demo, repository, "mimic_iv", task)
    known = {"lab_hyponatremia": (3147, 1047), "guo_los": (262, 92)}
    positive = sum(label for _, _, label, _ in labels)
    if task in known:
        assert (len(labels), positive) == known[task]
    else:
        assert 0 < positive < len(labels)


def test_simulated_profile_is_found_by_name(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert load(DatasetProfile, find_profile("simulated")).name == "simulated"


# --- edges, spelled out -------------------------------------------------------------------------------------------

PROFILE = DatasetProfile(name="p", admission=("IN",), discharge=("OUT",), visit_column="visit")
NO_CODES = pl.DataFrame(schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)})
EVENTS = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
    "unit": pl.String,
    "visit": pl.Int64,
}


def events_of(rows):
    """Rows of dicts as `read_shard` gives them, of subject 1 unless they say otherwise."""
    return pl.DataFrame([{"subject_id": 1} | row for row in rows], schema=EVENTS)


def stay_of(admitted, discharged, visit=1):
    return [{"time": admitted, "code": "IN", "visit": visit}, {"time": discharged, "code": "OUT", "visit": visit}]


def long_stay(days):
    return Stay(task="t", family="stay", question="?", at_least_days=days)


@pytest.mark.parametrize(
    ("days", "stay", "expected"),
    [
        (7, timedelta(days=7), True),
        (7, timedelta(days=7) - timedelta(seconds=1), False),
        (2.5, timedelta(days=2, hours=12), True),
        (2.5, timedelta(days=2, hours=11), False),
    ],
)
def test_length_of_stay_counts_to_the_second(days, stay, expected):
    admitted = datetime(2020, 1, 3, 15, 30)
    labels, left_out = label_shard(events_of(stay_of(admitted, admitted + stay)), PROFILE, NO_CODES, long_stay(days))
    assert labels.rows() == [(1, datetime(2020, 1, 3, 23, 59), expected, None)]
    assert not +left_out


def test_stay_that_ends_on_the_admission_day_is_left_out_and_counted():
    same_day = stay_of(datetime(2020, 1, 3, 0, 0), datetime(2020, 1, 3, 23, 59, 59))
    over_midnight = stay_of(datetime(2020, 1, 5, 23, 59), datetime(2020, 1, 6, 0, 0), visit=2)
    labels, left_out = label_shard(events_of(same_day + over_midnight), PROFILE, NO_CODES, long_stay(7))
    assert labels.rows() == [(1, datetime(2020, 1, 5, 23, 59), False, None)]
    assert left_out == {"discharged on the admission day": 1}


def laboratory(**changes):
    values = {
        "task": "t",
        "family": "laboratory",
        "question": "?",
        "result": {"LOINC": ("1",)},
        "unit": "mmol/L",
        "conversions": {"mmol/L": 1, "mg/dL": 0.1},
        "abnormal": "at_most",
        "thresholds": (135, 130, 125),
    }
    return Laboratory(**(values | changes))


def results_of(*results, code="LOINC/1"):
    """An early event, then one result an hour: dicts with value, unit, text."""
    rows = [{"time": datetime(2020, 1, 1), "code": "BIRTH"}]
    for i, result in enumerate(results):
        rows.append({"time": datetime(2020, 1, 2) + timedelta(hours=i), "code": code} | result)
    return events_of(rows)


def number(value, unit="mmol/L"):
    return {"numeric_value": value, "unit": unit}


@pytest.mark.parametrize(
    ("abnormal", "thresholds", "values", "grades"),
    [
        ("at_most", (135, 130, 125), (135.1, 135.0, 130.1, 130.0, 125.1, 125.0, 0.0), (0, 1, 1, 2, 2, 3, 3)),
        ("below", (120, 110, 70), (120.0, 119.9, 110.0, 109.9, 70.0, 69.9), (0, 1, 1, 2, 2, 3)),
        ("above", (5.5, 6, 7), (5.5, 5.6, 6.0, 6.1, 7.0, 7.1), (0, 1, 1, 2, 2, 3)),
        ("at_most", (3.9, 3.5, 3.0), (4.0, 3.9, 3.5, 3.0), (0, 1, 2, 3)),
    ],
)
def test_grades_at_their_thresholds(abnormal, thresholds, values, grades):
    task = laboratory(abnormal=abnormal, thresholds=thresholds)
    labels, _ = label_shard(results_of(*map(number, values)), PROFILE, NO_CODES, task)
    assert labels["integer_value"].to_list() == list(grades)
    assert labels["boolean_value"].to_list() == [g > 0 for g in grades]
    assert labels["prediction_time"].to_list() == [
        datetime(2020, 1, 2) + timedelta(hours=i) - timedelta(minutes=1) for i in range(len(values))
    ]


@pytest.mark.parametrize("factor", ["0.1", "10", "0.01", "1000"])
def test_conversion_does_not_cross_a_threshold_by_rounding(factor):
    """A converted value that equals the threshold on paper is at most the threshold."""
    written = [Decimal(n) / 10 for n in range(1, 200, 7)]
    for value in written:
        threshold = value * Decimal(factor)
        task = laboratory(conversions={"u": float(factor)}, thresholds=(float(threshold), -1, -2))
        labels, _ = label_shard(results_of(number(float(value), "u")), PROFILE, NO_CODES, task)
        assert labels["integer_value"].to_list() == [1], (value, factor)


def test_text_counts_as_normal_and_the_rest_is_left_out_with_its_reason():
    events = results_of(
        {"text_value": "adequate"},
        {"text_value": ""},
        {},
        number(100.0, "furlong"),
        number(100.0, None),
        number(math.nan),
        {"numeric_value": -math.inf, "unit": "mmol/L", "text_value": "see comment"},
        {"numeric_value": 100.0, "unit": "mmol/L", "text_value": "low"},
    )
    first = events_of([{"subject_id": 2, "time": datetime(2020, 1, 1), "code": "LOINC/1"} | number(100.0)])
    labels, left_out = label_shard(pl.concat([events, first]), PROFILE, NO_CODES, laboratory())
    assert labels["integer_value"].to_list() == [0, 0, 3]
    assert left_out == {"without a value": 3, "in an unknown unit": 2, "at the subject's first event time": 1}


def test_other_codes_and_static_results_give_no_label():
    static = events_of([{"time": None, "code": "LOINC/1"} | number(100.0)])
    other = results_of(number(100.0), code="LOINC/10")
    labels, left_out = label_shard(pl.concat([static, other]), PROFILE, NO_CODES, laboratory())
    assert labels.is_empty()
    assert dict(labels.schema) == LABEL_SCHEMA
    assert not +left_out


DISEASE = Diagnosis(task="t", family="diagnosis", question="?", diagnosis={"ICD10CM": ("I21",)}, within_days=(1, 365))
NOW = datetime(2020, 1, 5, 23, 59)


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (timedelta(0), False),
        (timedelta(days=1), False),
        (timedelta(days=1, microseconds=1), True),
        (timedelta(days=365), True),
        (timedelta(days=365, microseconds=1), False),
        (None, False),
        (-timedelta(microseconds=1), None),
    ],
)
def test_first_diagnosis_in_its_window(wait, expected):
    rows = stay_of(datetime(2020, 1, 3), datetime(2020, 1, 5, 11))
    if wait is not None:
        rows += [{"time": NOW + wait + timedelta(days=d), "code": "ICD10CM/I21.4"} for d in (0, 30)]
    labels, left_out = label_shard(events_of(rows).sort("time"), PROFILE, NO_CODES, DISEASE)
    assert labels.rows() == ([] if expected is None else [(1, NOW, expected, None)])
    assert left_out["after the first diagnosis"] == (expected is None)


def test_only_the_first_diagnosis_counts():
    """Later codes of a known disease are no new diagnosis."""
    rows = stay_of(datetime(2020, 1, 3), datetime(2020, 1, 5, 11))
    rows += [
        {"time": datetime(2019, 1, 1), "code": "ICD10CM/I214"},
        {"time": NOW + timedelta(days=9), "code": "ICD10CM/I21"},
    ]
    labels, left_out = label_shard(events_of(rows).sort("time"), PROFILE, NO_CODES, DISEASE)
    assert labels.is_empty()
    assert left_out == {"after the first diagnosis": 1}


def test_the_label_knows_nothing_of_other_subjects():
    rows = stay_of(datetime(2020, 1, 3), datetime(2020, 1, 5, 11))
    rows += [{"subject_id": 2, "time": NOW + timedelta(days=9), "code": "ICD10CM/I21"}]
    labels, _ = label_shard(events_of(rows), PROFILE, NO_CODES, DISEASE)
    assert labels.rows() == [(1, NOW, False, None)]
