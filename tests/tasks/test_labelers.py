"""Every family of tasks against a slow labeler in plain Python, on the simulated cohort and on the real demo."""

import math
import operator
from collections import Counter
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache

import polars as pl
import pytest
import yaml
from hand_made import NO_CODES, PROFILE, events_of, stay_of

from ehrctx.events.meds import open_dataset, read_codes, read_shard
from ehrctx.events.profile import DatasetProfile, find_profile
from ehrctx.study import load
from ehrctx.tasks.definition import DEFINITIONS, Diagnosis, Laboratory, Stay, load_definition
from ehrctx.tasks.labelers import LABEL_SCHEMA, label_shard

TASKS = sorted(file.stem for file in DEFINITIONS.glob("*.yaml"))


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
    """visit -> (admitted, discharged, its discharge codes) of each visit that has both."""
    opened, closed, codes = {}, {}, {}
    for event in events:
        if event["visit"] is None:
            continue
        if matching(event["code"], profile["admission"]):
            opened[event["visit"]] = min(opened.get(event["visit"], event["time"]), event["time"])
        if matching(event["code"], profile["discharge"]):
            closed[event["visit"]] = max(closed.get(event["visit"], event["time"]), event["time"])
            codes.setdefault(event["visit"], []).append(event["code"])
    return {v: (opened[v], closed[v], codes[v]) for v in opened if v in closed and closed[v] >= opened[v]}


def slow_icu(events, profile):
    """(prediction time, label or the reason for none) of each visit."""
    icu = [e for e in events if matching(e["code"], profile["icu_admission"])]
    for visit, (admitted, discharged, _) in slow_stays(events, profile).items():
        entered = [
            e["time"]
            for e in icu
            if e["visit"] == visit or (e["visit"] is None and admitted <= e["time"] <= discharged)
        ]
        if admitted.date() == discharged.date():
            yield None, "discharged on the admission day"
        elif any(time.date() <= admitted.date() for time in entered):
            yield None, "in intensive care by the admission day"
        else:
            yield days_end(admitted), any(days_end(admitted) < time <= discharged for time in entered)


def slow_readmission(events, profile, task):
    """(prediction time, label or the reason for none) of each discharge."""
    stays = slow_stays(events, profile)
    opened = {}  # every admission, closed or not
    for event in events:
        if matching(event["code"], profile["admission"]):
            opened[event["visit"]] = min(opened.get(event["visit"], event["time"]), event["time"])
    death = min((e["time"] for e in events if matching(e["code"], profile["death"])), default=datetime.max)
    followed = {"death": datetime.max, "record_end": max(e["time"] for e in events)}.get(profile["follow_up_end"])
    if followed is None:  # a date, from YAML or as text
        followed = days_end(date.fromisoformat(str(profile["follow_up_end"]))) + timedelta(seconds=59)
    for visit, (_, discharged, codes) in stays.items():
        now = days_end(discharged)
        until = now + timedelta(days=task["at_most_days"])
        back = min((t for v, t in opened.items() if v != visit and t >= discharged), default=datetime.max)
        if death.date() <= discharged.date() or any(matching(code, profile["discharged_dead"]) for code in codes):
            yield None, "discharged by death"
        elif back.date() == discharged.date():
            yield None, "readmitted on the discharge day"
        elif any(a <= discharged < d for v, (a, d, _) in stays.items() if v != visit):
            yield None, "discharged while another stay was open"
        elif until > followed and death > until:
            yield None, "followed for less than 30 days"
        else:
            yield now, now + timedelta(minutes=task["at_least_minutes"]) < back <= until


def slow_labels(folder, profile_file, task, **changes):
    """(subject, prediction time, label, grade) of every label, sorted, and how many were left out for which reason."""
    labels, left_out = [], Counter()
    profile = yaml.safe_load(profile_file.read_text()) | changes
    belongs = slow_members(folder, task.get("result") or task.get("diagnosis") or {})
    for subject, events in slow_events(folder, profile_file).items():
        if task["family"] == "stay":
            for admitted, discharged, _ in slow_stays(events, profile).values():
                if admitted.date() == discharged.date():
                    left_out["discharged on the admission day"] += 1
                    continue
                is_long = (discharged - admitted).total_seconds() >= task["at_least_days"] * 86_400
                labels.append((subject, days_end(admitted), is_long, None))
        if task["family"] in ("icu", "readmission"):
            judged = slow_icu(events, profile) if task["family"] == "icu" else slow_readmission(events, profile, task)
            for now, verdict in judged:
                if now is None:
                    left_out[verdict] += 1
                else:
                    labels.append((subject, now, verdict, None))
        if task["family"] == "diagnosis":
            diagnosed = min((e["time"] for e in events if belongs(e["code"])), default=None)
            for _, discharged, _ in slow_stays(events, profile).values():
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
                        # 0.0555555556 is 1/18
                        factor = Fraction(task["conversions"][event["unit"]]).limit_denominator(1000)
                        value = Fraction(f"{event['value']:.6g}") * factor
                        mild, *worse = map(Fraction, map(str, task["thresholds"]))
                        if task["abnormal"] == "above":
                            grade = sum(value > threshold for threshold in (mild, *worse))
                        else:
                            grade = sum(value < threshold for threshold in (mild, *worse))
                            grade += task["abnormal"] == "at_most" and value == mild
                    labels.append((subject, event["time"] - timedelta(minutes=1), grade > 0, grade))
    return sorted(labels, key=lambda row: (*row[:2], row[2], row[3] or 0)), left_out


# --- comparisons --------------------------------------------------------------------------------------------------


@cache
def fast_events(folder, profile_file):
    dataset, profile = open_dataset(folder), load(DatasetProfile, profile_file)
    return [read_shard(dataset, shard, profile) for shard in dataset.shards], profile, read_codes(dataset)


def fast_labels(folder, profile_file, definition, **changes):
    shards, profile, codes = fast_events(folder, profile_file)
    profile = profile.model_copy(update=changes)
    rows, left_out = [], Counter()
    for events in shards:
        labels, reasons = label_shard(events, profile, codes, definition)
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
    return expected, left_out


# What no simulated subject has: a first diagnosis of hypertension after a stay, the other diseases, intensive care.
NONE_SIMULATED = {"new_hypertension", "new_hyperlipidemia", "new_pancan", "new_celiac", "new_lupus", "guo_icu"}


@pytest.mark.parametrize("task", TASKS)
def test_simulated_cohort_row_by_row(cohort, repository, task):
    labels, _ = compare(cohort.events, repository, "simulated", task)
    positive = sum(label for _, _, label, _ in labels)
    assert positive < len(labels)
    assert positive > 0 or task in NONE_SIMULATED


# The counts of the data set's README, and what follows from them: 128 visits with an ICU stay, of which 86 on the
# admission day, leave 42. Labels, positive ones, and what is left out.
DEMO = {
    "guo_los": (262, 92, {"discharged on the admission day": 13}),
    "guo_icu": (176, 42, {"discharged on the admission day": 13, "in intensive care by the admission day": 86}),
    "guo_readmission": (257, 50, {"discharged by death": 15, "readmitted on the discharge day": 3}),
    "lab_hyperkalemia": (3321, 111, {"without a value": 3}),
    "lab_hyponatremia": (3147, 1047, {}),
    "lab_anemia": (2928, 2340, {"without a value": 2}),
    "lab_hypoglycemia": (2971, 71, {"without a value": 2}),
    "lab_thrombocytopenia": (2820, 1051, {"without a value": 7}),
    "new_pancan": (274, 0, {"after the first diagnosis": 1}),
    "new_celiac": (275, 0, {}),
    "new_lupus": (275, 0, {}),
    "new_acutemi": (236, 5, {"after the first diagnosis": 39}),
    "new_hypertension": (115, 9, {"after the first diagnosis": 160}),
    "new_hyperlipidemia": (121, 2, {"after the first diagnosis": 154}),
}


@pytest.mark.parametrize("task", TASKS)
def test_real_demo_row_by_row(mimic_demo, repository, task):
    labels, left_out = compare(mimic_demo, repository, "mimic_iv", task)
    assert (len(labels), sum(label for _, _, label, _ in labels), left_out) == DEMO[task]


@pytest.mark.parametrize(("follow_up_end", "censored"), [("record_end", 33), ("2150-06-30", 109)])
def test_real_demo_with_another_follow_up(mimic_demo, repository, follow_up_end, censored):
    profile_file = repository / "pipelines" / "datasets" / "mimic_iv.yaml"
    task = yaml.safe_load((DEFINITIONS / "guo_readmission.yaml").read_text())
    expected, left_out = slow_labels(mimic_demo, profile_file, task, follow_up_end=follow_up_end)
    ours = fast_labels(mimic_demo, profile_file, load_definition("guo_readmission"), follow_up_end=follow_up_end)
    assert ours == (expected, left_out)
    assert left_out["followed for less than 30 days"] == censored


@pytest.mark.parametrize(
    ("task", "results", "abnormal"),
    [("lab_hyperkalemia", 3321, 111), ("lab_hyponatremia", 3147, 1047), ("lab_anemia", 2928, 2340)],
)
def test_concepts_units_and_thresholds_meet_the_readmes_counts(mimic_demo, repository, task, results, abnormal):
    """The raw definition, on all valued results."""
    definition = yaml.safe_load((DEFINITIONS / f"{task}.yaml").read_text())
    belongs = slow_members(mimic_demo, definition["result"])
    rows = slow_events(mimic_demo, repository / "pipelines" / "datasets" / "mimic_iv.yaml").values()
    found = [e for events in rows for e in events if e["value"] is not None and belongs(e["code"])]
    values = [round(e["value"] * definition["conversions"][e["unit"]], 4) for e in found]
    mild = definition["thresholds"][0]
    beyond = {"above": operator.gt, "below": operator.lt, "at_most": operator.le}[definition["abnormal"]]
    assert (len(values), sum(beyond(value, mild) for value in values)) == (results, abnormal)


def test_simulated_profile_is_found_by_name(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert load(DatasetProfile, find_profile("simulated")).name == "simulated"


# --- edges, spelled out -------------------------------------------------------------------------------------------


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
        ("at_most", (135, 130, 125), (135.1, 135.0, 130.0, 129.9, 125.0, 124.9, 0.0), (0, 1, 1, 2, 2, 3, 3)),
        ("below", (120, 110, 70), (120.0, 119.9, 110.0, 109.9, 70.0, 69.9), (0, 1, 1, 2, 2, 3)),
        ("above", (5.5, 6, 7), (5.5, 5.6, 6.0, 6.1, 7.0, 7.1), (0, 1, 1, 2, 2, 3)),
        ("at_most", (3.9, 3.5, 3.0), (4.0, 3.9, 3.5, 3.4, 3.0, 2.9), (0, 1, 1, 2, 2, 3)),
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
