"""A labeler for all fourteen tasks: one row at a time, in plain Python, written from the documents alone.

The documents are EHRSHOT's definitions as the study states them, docs/studies.md, and the comments of the shipped
definitions. Nothing of ehrctx.tasks is used.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from fractions import Fraction
from functools import cache

import polars as pl
import yaml

# --- the fourteen tasks, by hand ----------------------------------------------------------------------------------

# Codes that the study names, how a mild value lies to its threshold, the thresholds, and factors to the task's unit.
LABORATORY = {
    "lab_thrombocytopenia": ({"LOINC/777-3"}, "below", (150, 100, 50), {"10^9/L": 1, "K/uL": 1, "10*3/uL": 1}),
    "lab_hyperkalemia": ({"LOINC/2823-3", "LOINC/6298-4"}, "above", (5.5, 6, 7), {"mmol/L": 1, "mEq/L": 1}),
    "lab_hypoglycemia": (
        {"LOINC/14749-6", "LOINC/2345-7", "LOINC/2339-0", "LOINC/2340-8", "SNOMED/33747003"},
        "at_most",
        (3.9, 3.5, 3),
        {"mmol/L": 1, "mg/dL": Fraction(1, 18)},
    ),
    "lab_hyponatremia": ({"LOINC/2951-2", "LOINC/2947-0"}, "at_most", (135, 130, 125), {"mmol/L": 1, "mEq/L": 1}),
    "lab_anemia": ({"LOINC/718-7"}, "below", (120, 110, 70), {"g/L": 1, "g/dL": 10}),
}
DIAGNOSIS = {
    "new_hypertension": {"SNOMED": {"59621000"}, "ICD10CM": {"I10"}, "ICD9CM": {"401"}},
    "new_hyperlipidemia": {
        "SNOMED": {"55822004"},
        "ICD10CM": {"E780", "E781", "E782", "E783", "E784", "E785"},
        "ICD9CM": {"2720", "2721", "2722", "2723", "2724"},
    },
    "new_pancan": {"SNOMED": {"372003004"}, "ICD10CM": {"C25"}, "ICD9CM": {"157"}},
    "new_celiac": {"SNOMED": {"396331005"}, "ICD10CM": {"K900"}, "ICD9CM": {"5790"}},
    "new_lupus": {"SNOMED": {"55464009"}, "ICD10CM": {"M32"}, "ICD9CM": {"7100"}},
    "new_acutemi": {"SNOMED": {"57054005"}, "ICD10CM": {"I21", "I22"}, "ICD9CM": {"410"}},
}
TASKS = ("guo_los", "guo_readmission", "guo_icu", *LABORATORY, *DIAGNOSIS)


@cache
def definition_of(repository, task):
    """The shipped YAML file of a task: its concept set, units and thresholds."""
    return yaml.safe_load((repository / "ehrctx" / "tasks" / "definitions" / f"{task}.yaml").read_text())


# --- reading: rows of a MEDS data set, told apart by the profile --------------------------------------------------


@dataclass
class Subject:
    """What the tasks need of one subject."""

    first: datetime = datetime.max
    last: datetime = datetime.min
    dead: datetime = datetime.max
    admitted: dict[int, datetime] = field(default_factory=dict)  # by visit
    discharged: dict[int, datetime] = field(default_factory=dict)
    left_dead: set[int] = field(default_factory=set)
    intensive: list[tuple[datetime, int | None]] = field(default_factory=list)
    results: dict[str, list[tuple[datetime, float | None, str | None, str | None]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    diagnosed: dict[str, datetime] = field(default_factory=dict)


def one_of(code, patterns):
    for pattern in patterns:
        if pattern == code or (pattern[-1:] == "*" and code[: len(pattern) - 1] == pattern[:-1]):
            return True
    return False


def concept_names(code, parents):
    """The code and everything above it."""
    names, todo = set(), [code]
    while todo:
        name = todo.pop()
        if name not in names:
            names.add(name)
            todo += parents.get(name, ())
    return names


def tasks_of(names, repository):
    """The tasks whose concept one of the names is."""
    found = set()
    for task in LABORATORY:
        wanted = definition_of(repository, task)["result"]
        if any(f"{system}/{member}" in names for system, members in wanted.items() for member in members):
            found.add(task)
    for task in DIAGNOSIS:
        for system, members in definition_of(repository, task)["diagnosis"].items():
            for member in members:
                for name in names:
                    begun, _, rest = name.partition("/")
                    is_icd = system in ("ICD10CM", "ICD9CM") and begun == system
                    if name == f"{system}/{member}" or (
                        is_icd and rest.replace(".", "").startswith(str(member).replace(".", ""))
                    ):
                        found.add(task)
    return found


def read_subjects(folder, profile, repository):
    """subject id -> Subject."""
    columns = ["subject_id", "time", "code", "numeric_value", "text_value"]
    columns += [profile["unit_column"], profile["visit_column"]]
    parents = {}
    for code, above in pl.read_parquet(folder / "metadata" / "codes.parquet", columns=["code", "parent_codes"]).rows():
        parents[code] = [parent for parent in above or [] if parent]
    kinds, roles = {}, ("admission", "discharge", "discharged_dead", "icu_admission", "death", "date_only")
    subjects = defaultdict(Subject)
    for file in sorted((folder / "data").rglob("*.parquet")):
        for subject_id, time, code, value, text, unit, visit in pl.read_parquet(file, columns=columns).iter_rows():
            if code not in kinds:
                kinds[code] = {role for role in roles if one_of(code, profile.get(role, ()))}
                kinds[code] |= tasks_of(concept_names(code, parents), repository)
            kind, subject = kinds[code], subjects[subject_id]
            if time is None:
                continue
            if "date_only" in kind and (time.hour, time.minute, time.second, time.microsecond) == (0, 0, 0, 0):
                time = time.replace(hour=23, minute=59)
            subject.first, subject.last = min(subject.first, time), max(subject.last, time)
            for task in kind & LABORATORY.keys():
                if unit is None and one_of(code, profile.get("unit_in_code", ())):
                    written = code.split("//")[-1]
                    unit = None if written == "UNK" else written
                subject.results[task].append((time, value, unit, text))
            for task in kind & DIAGNOSIS.keys():
                subject.diagnosed[task] = min(time, subject.diagnosed.get(task, time))
            if kind & {"death", "discharged_dead"}:
                subject.dead = min(subject.dead, time)
            if "icu_admission" in kind:
                subject.intensive.append((time, visit))
            if "admission" in kind:
                assert visit not in subject.admitted, "one admission for each visit, or the documents do not say"
                subject.admitted[visit] = time
            if "discharge" in kind:
                assert visit not in subject.discharged, "one discharge for each visit, or the documents do not say"
                subject.discharged[visit] = time
                if "discharged_dead" in kind:
                    subject.left_dead.add(visit)
    return subjects


# --- labeling: (prediction time, boolean, grade), or the reason why there is no label -----------------------------


def last_minute(time):
    return time.replace(hour=23, minute=59, second=0, microsecond=0)


def stays(subject):
    return [(v, subject.admitted[v], subject.discharged[v]) for v in subject.admitted if v in subject.discharged]


def label_stays(subject):
    for _, admitted, discharged in stays(subject):
        if discharged.date() == admitted.date():
            yield "discharged on the admission day"
        else:
            yield last_minute(admitted), discharged >= admitted + timedelta(days=7), None


def label_intensive_care(subject):
    for visit, admitted, discharged in stays(subject):
        transfers = []
        for time, of_visit in subject.intensive:
            if of_visit == visit or (of_visit is None and admitted <= time <= discharged):
                transfers.append(time)
        if discharged.date() == admitted.date():
            yield "discharged on the admission day"
        elif any(time.date() <= admitted.date() for time in transfers):
            yield "in intensive care by the admission day"
        else:
            yield last_minute(admitted), any(time <= discharged for time in transfers), None


def was_followed(subject, horizon, follow_up_end):
    if subject.dead <= horizon or follow_up_end == "death":
        return True
    if follow_up_end == "record_end":
        return horizon <= subject.last
    return horizon.date() <= date.fromisoformat(str(follow_up_end))


def label_readmissions(subject, follow_up_end, censored):
    for visit, admitted, discharged in stays(subject):
        now = last_minute(discharged)
        horizon = now + timedelta(days=30)
        others = [v for v in subject.admitted if v != visit]
        # Of two stays that open together neither follows the other, even if one is over at once.
        following = [t for t in map(subject.admitted.get, others) if t >= discharged and t != admitted]
        still_open = [
            v
            for v in others
            if subject.admitted[v] <= discharged and subject.discharged.get(v, discharged) > discharged
        ]
        if visit in subject.left_dead or subject.dead.date() <= discharged.date():
            yield "discharged by death"
        elif any(time.date() == discharged.date() for time in following):
            yield "readmitted on the discharge day"
        elif still_open:
            yield "discharged while another stay was open"
        elif censored != "negative" and not was_followed(subject, horizon, follow_up_end):
            yield "followed for less than 30 days"
        else:
            back = min(following, default=datetime.max)
            yield now, now + timedelta(minutes=1) <= back <= min(horizon, subject.dead), None


def grade_of(value, unit, abnormal, thresholds, factors):
    """0 to 3, or None in a unknown unit. Exact: a value is what it was written as, before it became a float32."""
    same = {spelled(known): factor for known, factor in factors.items()}
    if unit is None or spelled(unit) not in same:
        return None
    amount = Fraction(f"{value:.7g}") * same[spelled(unit)]
    mild, moderate, severe = (Fraction(str(threshold)) for threshold in thresholds)
    if abnormal == "above":
        return (amount > mild) + (amount > moderate) + (amount > severe)
    is_mild = amount <= mild if abnormal == "at_most" else amount < mild
    return is_mild + (amount < moderate) + (amount < severe)


def spelled(unit):
    unit = "".join(unit.split()).lower()
    for micro in ("\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}", "mc"):
        unit = unit.replace(micro, "u")
    return unit


def label_results(subject, task, factors):
    _, abnormal, thresholds, _ = LABORATORY[task]
    for time, value, unit, text in subject.results[task]:
        word = (text or "").strip().lower()
        if (value is None or value - value != 0) and word.replace(".", "").isdigit():
            value = float(word)
        is_number = value is not None and value - value == 0  # neither NaN nor infinite
        grade = grade_of(value, unit, abnormal, thresholds, factors) if is_number else 0
        if time == subject.first:
            yield "at the subject's first event time"
        elif not is_number and not word:
            yield "without a value"
        elif not is_number and word not in ("normal", "adequate"):
            yield "in words that say no grade"
        elif grade is None:
            yield "in an unknown unit"
        else:
            yield time - timedelta(minutes=1), grade > 0, grade


def label_diagnoses(subject, task, follow_up_end, censored):
    diagnosed = subject.diagnosed.get(task, datetime.max)
    for _, _, discharged in stays(subject):
        now = last_minute(discharged)
        horizon = now + timedelta(days=365)
        if diagnosed < now:
            yield "after the first diagnosis"
        elif censored == "left_out" and not was_followed(subject, horizon, follow_up_end):
            yield "followed for less than 365 days"
        else:
            yield now, now + timedelta(days=1) < diagnosed <= horizon, None


def label(subjects, task, follow_up_end, censored, repository):
    """(subject, prediction time, boolean, grade) of every label, sorted, and a count of each reason for none."""
    labels, left_out, factors = [], Counter(), {}
    if task in LABORATORY:
        for unit, number in definition_of(repository, task)["conversions"].items():
            is_eighteenth = abs(18 * number - 1) < 1e-8  # glucose; 0.0555555556 is 1 / 18
            factors[unit] = Fraction(1, 18) if is_eighteenth else Fraction(str(number))
    for subject_id, subject in subjects.items():
        if task == "guo_los":
            found = label_stays(subject)
        elif task == "guo_icu":
            found = label_intensive_care(subject)
        elif task == "guo_readmission":
            found = label_readmissions(subject, follow_up_end, censored)
        elif task in LABORATORY:
            found = label_results(subject, task, factors)
        else:
            found = label_diagnoses(subject, task, follow_up_end, censored)
        for one in found:
            if isinstance(one, str):
                left_out[one] += 1
            else:
                labels.append((subject_id, *one))
    return sorted(labels, key=by_time), left_out


def by_time(row):
    return row[0], row[1], row[2], row[3] or 0
