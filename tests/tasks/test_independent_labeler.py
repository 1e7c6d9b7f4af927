"""All fourteen tasks against the independent labeler: the real demo, the simulated cohort, a cohort of edges."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import yaml
from independent_labeler import (
    DIAGNOSIS,
    LABORATORY,
    TASKS,
    Subject,
    by_time,
    definition_of,
    grade_of,
    label,
    read_subjects,
    stays,
)

from ehrctx.study import Labels
from ehrctx.tasks.label_sets import write_labels


def test_the_fourteen_tasks_are_shipped(repository):
    files = (repository / "ehrctx" / "tasks" / "definitions").glob("*.yaml")
    assert sorted(file.stem for file in files) == sorted(TASKS)


@pytest.mark.parametrize("task", LABORATORY)
def test_essentials_of_the_laboratory_tasks(repository, task):
    codes, abnormal, thresholds, factors = LABORATORY[task]
    shipped = definition_of(repository, task)
    assert codes <= {f"{system}/{member}" for system, members in shipped["result"].items() for member in members}
    assert (shipped["abnormal"], tuple(shipped["thresholds"])) == (abnormal, thresholds)
    for unit, factor in factors.items():
        assert shipped["conversions"][unit] == pytest.approx(float(factor), rel=1e-8)
    if task == "lab_hyperkalemia":  # EHRSHOT divides potassium in mg/dL by 18, the factor of glucose
        assert "mg/dl" not in {unit.lower() for unit in shipped["conversions"]}


@pytest.mark.parametrize("task", DIAGNOSIS)
def test_essentials_of_the_diagnosis_tasks(repository, task):
    shipped = definition_of(repository, task)
    found = {system: {str(m).replace(".", "") for m in members} for system, members in shipped["diagnosis"].items()}
    assert found == DIAGNOSIS[task]
    assert shipped["within_days"] == [1, 365]


def test_essentials_of_the_hospital_tasks(repository):
    assert definition_of(repository, "guo_los")["at_least_days"] == 7
    readmission = definition_of(repository, "guo_readmission")
    assert (readmission["at_least_minutes"], readmission["at_most_days"]) == (1, 30)


# --- comparing ----------------------------------------------------------------------------------------------------

MEDS_LABELS = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "boolean_value": pl.Boolean,
    "integer_value": pl.Int64,
}


@dataclass(frozen=True)
class Case:
    """One data set: its subjects as read here, and what write_labels wrote of it."""

    subjects: dict[int, Subject]
    follow_up_end: object
    censored: str
    written: Path
    facts: dict

    def ours(self, task, repository):
        return label(self.subjects, task, self.follow_up_end, self.censored, repository)

    def theirs(self, task):
        frame = pl.read_parquet(self.written / f"{task}.parquet")
        assert dict(frame.schema) == MEDS_LABELS
        rows = frame.rows()
        assert [row[:2] for row in rows] == sorted(row[:2] for row in rows)
        return sorted(rows, key=by_time), +Counter(self.facts[task]["left_out"])


def make_case(folder, profile_file, out, repository, tasks=TASKS, subjects=None, censored="published"):
    profile = yaml.safe_load(profile_file.read_text())
    write_labels(folder, str(profile_file), tasks, Labels(censored=censored), out)
    facts = json.loads((out / "manifest.json").read_text())["facts"]
    subjects = read_subjects(folder, profile, repository) if subjects is None else subjects
    return Case(subjects, profile.get("follow_up_end"), censored, out, facts)


def same_labels(case, task, repository):
    (ours, our_reasons), (theirs, their_reasons) = case.ours(task, repository), case.theirs(task)
    different = [("ours", *row) for row in (Counter(ours) - Counter(theirs)).elements()]
    different += [("theirs", *row) for row in (Counter(theirs) - Counter(ours)).elements()]
    assert sorted(different, key=lambda row: by_time(row[1:]))[:10] == []
    assert their_reasons == our_reasons
    facts = case.facts[task]
    assert (facts["labels"], facts["positive"]) == (len(ours), sum(row[2] for row in ours))
    return ours, our_reasons


@pytest.fixture(scope="module")
def demo(mimic_demo, repository, tmp_path_factory):
    profile_file = repository / "pipelines" / "datasets" / "mimic_iv.yaml"
    return make_case(mimic_demo, profile_file, tmp_path_factory.mktemp("demo") / "labels", repository)


@pytest.fixture(scope="module")
def simulated(cohort, repository, tmp_path_factory):
    profile_file = repository / "pipelines" / "datasets" / "simulated.yaml"
    return make_case(cohort.events, profile_file, tmp_path_factory.mktemp("simulated") / "labels", repository)


# The counts of the data set's README, and what follows from them: 128 visits with an ICU stay, of which 86 on the
# admission day, leave 42. The README's 261 stays over midnight are 262. Labels, positive ones, and what is left out.
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
def test_every_label_of_the_real_demo(demo, repository, task):
    labels, left_out = same_labels(demo, task, repository)
    assert (len(labels), sum(row[2] for row in labels), left_out) == DEMO[task]


@pytest.mark.parametrize("task", TASKS)
def test_every_label_of_the_simulated_cohort(simulated, repository, task):
    labels, _ = same_labels(simulated, task, repository)
    assert 0 < sum(row[2] for row in labels) < len(labels)


def test_counts_of_the_demos_readme(demo):
    """Those that are no task's: visits and transfers, whatever the tasks leave out."""
    people = demo.subjects.values()
    assert len(demo.subjects) == 100
    assert sum(len(p.admitted) for p in people) == 275
    assert sum(len(p.intensive) for p in people) == 140
    assert sum(a.date() != d.date() for p in people for _, a, d in stays(p)) == 262  # the README has 261
    assert sum(d - a >= timedelta(days=7) for p in people for _, a, d in stays(p)) == 92
    visits = [(p.admitted[v], time) for p in people for v in p.admitted for time, w in p.intensive if v == w]
    assert sum(len({v for _, v in p.intensive}) for p in people) == 128
    on_admission_day = {admitted for admitted, time in visits if time.date() <= admitted.date()}
    assert len(on_admission_day) == 86


@pytest.mark.parametrize(
    ("task", "results", "abnormal"),
    [("lab_hyperkalemia", 3321, 111), ("lab_hyponatremia", 3147, 1047), ("lab_anemia", 2928, 2340)],
)
def test_counts_of_the_demos_readme_for_results(demo, task, results, abnormal):
    """All numbers, those at a subject's first event time included, by the thresholds as this file writes them."""
    _, direction, thresholds, factors = LABORATORY[task]
    found = [row for p in demo.subjects.values() for row in p.results[task] if row[1] is not None]
    grades = [grade_of(value, unit, direction, thresholds, factors) for _, value, unit, _ in found]
    assert (len(grades), sum(grade > 0 for grade in grades)) == (results, abnormal)


def other_follow_up(repository, folder, follow_up_end):
    """The profile of MIMIC-IV with another end of the follow-up, or (None) with none at all."""
    text = (repository / "pipelines" / "datasets" / "mimic_iv.yaml").read_text()
    assert "follow_up_end: death\n" in text
    profile_file = folder / "profile.yaml"
    line = f"follow_up_end: {follow_up_end}\n" if follow_up_end else ""
    profile_file.write_text(text.replace("follow_up_end: death\n", line))
    return profile_file


@pytest.mark.parametrize(("follow_up_end", "censored"), [("record_end", 33), ("2150-06-30", 109)])
def test_readmissions_of_the_real_demo_with_another_follow_up(
    demo, mimic_demo, repository, tmp_path, follow_up_end, censored
):
    profile_file = other_follow_up(repository, tmp_path, follow_up_end)
    tasks = ["guo_readmission"]
    case = make_case(mimic_demo, profile_file, tmp_path / "labels", repository, tasks, demo.subjects)
    _, left_out = same_labels(case, "guo_readmission", repository)
    assert left_out["followed for less than 30 days"] == censored


@pytest.fixture(scope="module", params=[("left_out", "record_end"), ("left_out", "2150-06-30"), ("negative", None)])
def demo_by_rule(request, demo, mimic_demo, repository, tmp_path_factory):
    """The demo with each rule for censored horizons; counting them as negative needs no `follow_up_end`."""
    censored, follow_up_end = request.param
    folder = tmp_path_factory.mktemp("rule")
    profile_file = other_follow_up(repository, folder, follow_up_end)
    return make_case(mimic_demo, profile_file, folder / "labels", repository, subjects=demo.subjects, censored=censored)


@pytest.mark.parametrize("task", TASKS)
def test_every_label_of_the_real_demo_by_either_rule(demo_by_rule, repository, task):
    labels, left_out = same_labels(demo_by_rule, task, repository)
    counted = {reason: n for reason, n in left_out.items() if not reason.startswith("followed for less than")}
    n_labels, _, published = DEMO[task]
    censored = left_out.total() - sum(counted.values())
    assert (len(labels) + censored, counted) == (n_labels, published)
    has_horizon = demo_by_rule.censored == "left_out" and (task in DIAGNOSIS or task == "guo_readmission")
    assert (censored > 0) is has_horizon


# --- what neither data set has: a cohort of edges -----------------------------------------------------------------

PARENTS = {
    "SODIUM": ["LAB_TOP", "LOINC/2951-2"],
    "SODIUM//POINT": ["SODIUM"],  # two steps below its concept
    "LAB_TOP": ["LAB_BELOW", None],
    "LAB_BELOW": ["LAB_TOP"],  # a circle, which leads nowhere
    "DX//HYPERTENSION": ["SNOMED/1"],
    "SNOMED/1": ["SNOMED/2", "SNOMED/59621000"],
    "DX//4019": ["ICD9CM/401.9"],
}
EDGE_LABS = {
    "SODIUM": ("mmol/L", "MEQ / l", "mg/dL", None),
    "SODIUM//POINT": ("mmol/L",),
    "LAB_BELOW": ("mmol/L",),
    "LOINC/777-3": ("K/uL", "K/\N{MICRO SIGN}L", "k/mcl", "10*3/\N{GREEK SMALL LETTER MU}L", "10^9 / L", "/uL", "%"),
    "LOINC/777-30": ("K/uL",),  # no platelets
    "LOINC/2823-3": ("mmol/L", "meq/l", "mg/dL"),
    "LOINC/718-7": ("g/dL", "G/L", "gm/dl", "mmol/L"),
    "SNOMED/33747003": ("mmol/L", "mg/dL", "MG/DL"),
    "LAB//GLUCOSE//mg/dL": (None,),  # the profile says where its unit is
    "LAB//GLUCOSE//UNK": (None,),
}
EDGE_VALUES = {
    "SODIUM": (125, 124.9, 130, 129.9, 135, 135.1, 0, 140),
    "LOINC/777-3": (150, 149.9, 100, 99.9, 50, 49.9, 150_000, 149_900),
    "LOINC/2823-3": (5.5, 5.6, 6, 6.1, 7, 7.1),
    "LOINC/718-7": (12, 11.9, 11, 10.9, 7, 6.9, 120, 119),
    "SNOMED/33747003": (3.9, 4, 3.5, 3.4, 3, 2.9, 70, 71, 63, 62, 54, 53),
}
EDGE_DIAGNOSES = ("ICD10CM/I10", "ICD10CM/I1", "ICD10CM/I11.0", "DX//HYPERTENSION", "DX//4019", "SNOMED/2", "SNOMED/1")
EDGE_DIAGNOSES += ("ICD10CM/K900", "ICD10CM/K90.0", "ICD10CM/K90.1", "ICD9CM/710.0", "ICD9CM/7101", "ICD10CM/M320")
EDGE_DIAGNOSES += ("ICD10CM/I214", "ICD9CM/410", "ICD9CM/412", "ICD10CM/E78.00", "ICD10CM/E78.6", "ICD10CM/C25.1")
CLOCK = ("00:00:00", "00:00:01", "00:01:00", "11:30:00", "23:58:59", "23:59:00", "23:59:01", "23:59:59")
GAPS = (0, 0, 1, 1, 2, 6, 7, 8, 29, 30, 31, 364, 365, 366)


def edge_subject(draw, subject_id):
    """Rows of one subject: stays that touch, lie in each other and follow at every limit; and what belongs to them."""

    def clock(day):
        return datetime.combine(day, datetime.strptime(draw.choice(CLOCK), "%H:%M:%S").time())

    def row(time, code, visit=None, value=None, unit=None, text=None):
        rows.append((subject_id, time, code, value, unit, text, visit))

    rows, day, times = [], date(2020, 1, 1), []
    row(None, "SODIUM", value=120.0, unit="mmol/L")  # of no time: neither a result nor a first event
    for k in range(draw.randint(1, 5)):
        visit = 10 * subject_id + k
        admitted, discharged = sorted((clock(day), clock(day + timedelta(days=draw.choice(GAPS[:10])))))
        if k and draw.random() < 0.15:
            admitted = times[-1]  # on the second of the last discharge
            discharged = max(admitted, discharged)
        row(admitted, "ADMISSION//HOME", visit)
        day = discharged.date()
        for _ in range(draw.choice((0, 0, 1, 2))):
            moment = draw.choice((admitted, discharged, clock(admitted.date()), clock(day), clock(day)))
            row(moment, draw.choice(("ICU//A", "ICU//B", "WARD//A")), draw.choice((visit, None)))
        times += [admitted, discharged]
        if draw.random() < 0.95 or k == 0:
            row(discharged, draw.choice(("DISCHARGE//HOME", "DISCHARGE//HOME", "DISCHARGE//DIED")), visit)
            day += timedelta(days=draw.choice((*GAPS, -1, -3)))
        else:
            break  # still in hospital
    for _ in range(draw.choice((0, 1, 2))):
        row(clock(draw.choice(times).date() + timedelta(days=draw.choice(GAPS))), draw.choice(EDGE_DIAGNOSES))
    for _ in range(draw.randint(0, 6)):
        code = draw.choice(list(EDGE_LABS))
        values = EDGE_VALUES.get(code, EDGE_VALUES["SNOMED/33747003" if "GLUCOSE" in code else "SODIUM"])
        value = draw.choice((*values, *values, *values, None, float("nan"), float("inf")))
        text = draw.choice((None, "", "normal", "low", "Adequate", "135", " 5.6", "<3"))
        moment = draw.choice((min(times), clock(draw.choice(times).date() + timedelta(days=1))))
        row(moment, code, value=value, unit=draw.choice(EDGE_LABS[code]), text=text)
    died = clock(draw.choice(times[-2:]).date() + timedelta(days=draw.choice(GAPS)))
    if draw.random() < 0.5 and died >= max(r[1] for r in rows if r[1] and r[2] == "ADMISSION//HOME"):
        row(died, "DEATH")
    if draw.random() < 0.3:
        row(clock(max(times).date() + timedelta(days=draw.choice((29, 30, 31)))), "CONTACT")
    return sorted(rows, key=lambda r: r[1] or datetime.min)


EDGE_PROFILE = """
name: edges
admission: ["ADMISSION//*"]
discharge: ["DISCHARGE//*"]
discharged_dead: ["DISCHARGE//DIED"]
icu_admission: ["ICU//*"]
death: ["DEATH"]
follow_up_end: FOLLOW_UP_END
visit_column: visit
unit_column: unit
unit_in_code: ["LAB//*"]
date_only: ["ICD10CM/*", "DEATH"]
"""


@pytest.fixture(scope="module")
def edges(tmp_path_factory, write_meds, repository):
    """A data set in two shards that meets every limit of the documents; and its subjects."""
    draw = random.Random(0)
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    schema |= {"unit": pl.String, "text_value": pl.String, "visit": pl.Int64}
    shards = {
        name: pl.DataFrame([r for s in subjects for r in edge_subject(draw, s)], schema, orient="row")
        for name, subjects in (("0", range(1, 400)), ("1", range(400, 1200)))
    }
    glucose = {code: ["LOINC/2345-7"] for code in EDGE_LABS if "GLUCOSE" in code}
    above = PARENTS | glucose
    codes = pl.DataFrame(
        {"code": list(above), "description": [None] * len(above), "parent_codes": list(above.values())},
        {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)},
    )
    folder = write_meds(tmp_path_factory.mktemp("edges") / "events", shards, codes=codes)
    return folder, read_subjects(folder, yaml.safe_load(EDGE_PROFILE), repository)


EDGE_CASES = [("death", "published", task) for task in TASKS]
EDGE_CASES += [(end, "published", "guo_readmission") for end in ("record_end", "2020-03-31")]
EDGE_CASES += [("record_end", "negative", "guo_readmission")]
EDGE_CASES += [(end, "left_out", "new_hypertension") for end in ("record_end", "2020-12-31")]


@pytest.mark.parametrize(("follow_up_end", "censored", "task"), EDGE_CASES)
def test_every_label_of_the_edges(edges, repository, tmp_path, follow_up_end, censored, task):
    folder, subjects = edges
    profile_file = tmp_path / "profile.yaml"
    profile_file.write_text(EDGE_PROFILE.replace("FOLLOW_UP_END", follow_up_end))
    case = make_case(folder, profile_file, tmp_path / "labels", repository, [task], subjects, censored)
    labels, left_out = same_labels(case, task, repository)
    assert 20 < sum(row[2] for row in labels) < len(labels) - 20
    missed = {reason for reason in case.facts[task]["left_out"] if not left_out[reason]}
    assert missed == (
        {"followed for less than 30 days"} if (follow_up_end, task) == ("death", "guo_readmission") else set()
    )
