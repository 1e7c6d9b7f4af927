"""A small seeded MEDS cohort in which an early episode raises a later risk, so that only a long window can see it.

Every subject first lives through years of outpatient visits, then through hospital stays. Near the start, a share of
them (`EPISODE_SHARE`) receives mantle-field radiotherapy for Hodgkin lymphoma, about 30 events in six weeks; all others
receive physiotherapy of the same length, so that neither length nor timing tells the two apart. After a hospital
discharge an acute myocardial infarction follows within a year with probability `RISK_WITH_EPISODE`, else
`RISK_WITHOUT`; nothing else depends on the episode. At least `WASHOUT_EVENTS` events lie between the episode and the
first stay. Length of stay follows a severity that the admission's laboratory results show; sodium follows the subject's
own level. Codes are LOINC, ICD-10-CM and RxNorm, all free to use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from ehrctx import __version__
from ehrctx.artifacts import new_artifact
from ehrctx.events.splits import hash_splits
from ehrctx.study import HashSplits, Simulation

EPISODE_SHARE = 0.35
EPISODE_SESSIONS = 10
RISK_WITH_EPISODE = 0.45
RISK_WITHOUT = 0.04
WASHOUT_EVENTS = 64
SUBJECTS_PER_SHARD = 1000
SPLITS = HashSplits(hash=(0.5, 0.2, 0.3))
DAY = np.timedelta64(1, "D")

# chronic condition -> (ICD-10-CM, prevalence, drugs as RxNorm ingredients)
CONDITIONS = {
    "hypertension": ("I10", 0.40, ("29046", "17767")),
    "hyperlipidemia": ("E78.5", 0.35, ("83367", "36567")),
    "diabetes": ("E11.9", 0.18, ("6809", "274783")),
    "reflux": ("K21.9", 0.20, ("7646",)),
    "depression": ("F32.9", 0.18, ("36437",)),
    "hypothyroidism": ("E03.9", 0.12, ("10582",)),
    "copd": ("J44.9", 0.10, ("69120", "435")),
    "kidney": ("N18.30", 0.10, ("4603",)),
    "osteoarthritis": ("M19.90", 0.20, ("161",)),
}
ACUTE = ("J06.9", "N39.0", "R10.9", "R51.9", "L03.90", "M54.50", "R05.9", "H10.9", "K52.9", "S93.40")
ADMITTED_FOR = ("J18.9", "N17.9", "K57.32", "A41.9", "S72.00", "I50.9", "K80.00", "R55")
# laboratory test -> (LOINC, unit, mean, standard deviation, effect of severity in deviations)
LABS = {
    "sodium": ("2951-2", "mmol/L", 138.5, 2.2, -0.5),
    "potassium": ("2823-3", "mmol/L", 4.2, 0.4, 0.3),
    "creatinine": ("2160-0", "mg/dL", 1.0, 0.2, 0.8),
    "glucose": ("2345-7", "mg/dL", 105.0, 18.0, 0.5),
    "hemoglobin": ("718-7", "g/dL", 13.4, 1.2, -0.6),
    "platelets": ("777-3", "10*3/uL", 245.0, 50.0, -0.2),
    "c-reactive protein": ("1988-5", "mg/L", 6.0, 3.0, 2.5),
}
URINE_PROTEIN, URINE_RESULTS = "5804-0", ("negative", "trace", "positive")
RADIOTHERAPY = ("ICD10CM/C81.90", "ICD10CM/Z51.0", "RxNorm/3639")
PHYSIOTHERAPY = ("ICD10CM/M54.50", "ICD10CM/Z51.89", "RxNorm/5640")
TROPONIN = "10839-9"
INFARCTION = ("I21.4", "I21.19", "I21.9")
AFTER_INFARCTION = ("1191", "32968", "6918")
DESCRIPTIONS = {
    "LOINC/2951-2": "Sodium [Moles/volume] in Serum or Plasma",
    "LOINC/2823-3": "Potassium [Moles/volume] in Serum or Plasma",
    "LOINC/2160-0": "Creatinine [Mass/volume] in Serum or Plasma",
    "LOINC/2345-7": "Glucose [Mass/volume] in Serum or Plasma",
    "LOINC/718-7": "Hemoglobin [Mass/volume] in Blood",
    "LOINC/777-3": "Platelets [#/volume] in Blood by Automated count",
    "LOINC/1988-5": "C reactive protein [Mass/volume] in Serum or Plasma",
    "LOINC/5804-0": "Protein [Mass/volume] in Urine by Test strip",
    "LOINC/10839-9": "Troponin I.cardiac [Mass/volume] in Serum or Plasma",
    "ICD10CM/C81.90": "Hodgkin lymphoma, unspecified, unspecified site",
    "ICD10CM/Z51.0": "Encounter for antineoplastic radiation therapy",
    "ICD10CM/I21.4": "Non-ST elevation (NSTEMI) myocardial infarction",
    "RxNorm/3639": "doxorubicin",
}


@dataclass
class _History:
    """One subject's events in the making; sorted at the end."""

    rng: np.random.Generator
    rows: list[tuple[np.datetime64 | None, str, float | None, str | None, str | None, int | None]] = field(
        default_factory=list
    )

    def add(
        self,
        time: np.datetime64 | None,
        code: str,
        value: float | None = None,
        unit: str | None = None,
        text: str | None = None,
        visit: int | None = None,
    ) -> None:
        self.rows.append((time, code, value, unit, text, visit))

    def labs(
        self, time: np.datetime64, names: list[str], level: dict[str, float], severity: float, visit: int | None = None
    ) -> None:
        for name in names:
            loinc, unit, mean, deviation, effect = LABS[name]
            value = mean + deviation * (level[name] + effect * severity + 0.5 * self.rng.standard_normal())
            self.add(time, f"LOINC/{loinc}", round(max(value, 0.1), 1), unit, visit=visit)


def _clock(day: np.datetime64, hour: float) -> np.datetime64:
    return day.astype("datetime64[s]") + np.timedelta64(int(hour * 3600), "s")


def _outpatient_visit(history: _History, day: np.datetime64, chronic: list[str], level: dict[str, float]) -> None:
    rng = history.rng
    time = _clock(day, rng.uniform(8, 17))
    history.add(time, "OUTPATIENT_VISIT")
    for name in chronic:
        if rng.random() < 0.5:  # carried forward from visit to visit; billing knows only the day
            history.add(_clock(day, 0), f"ICD10CM/{CONDITIONS[name][0]}")
        if rng.random() < 0.35:
            history.add(time, f"RxNorm/{rng.choice(CONDITIONS[name][2])}")
    if rng.random() < 0.5 or not chronic:
        history.add(_clock(day, 0), f"ICD10CM/{rng.choice(ACUTE)}")
    if rng.random() < 0.35:
        names = [n for n in LABS if n != "c-reactive protein" and rng.random() < 0.5]
        history.labs(time + np.timedelta64(90, "m"), names, level, severity=0.0)
    if rng.random() < 0.08:
        history.add(time, f"LOINC/{URINE_PROTEIN}", text=str(rng.choice(URINE_RESULTS, p=(0.7, 0.2, 0.1))))


def _episode(history: _History, day: np.datetime64, codes: tuple[str, ...]) -> np.datetime64:
    """Three events a session, sessions three to five days apart; returns the day after the last."""
    for _ in range(EPISODE_SESSIONS):
        time = _clock(day, history.rng.uniform(8, 16))
        for code in codes:
            history.add(time, code)
        day = day + int(history.rng.integers(3, 6)) * DAY
    return day


def _stay(
    history: _History,
    admitted: np.datetime64,
    visit: int,
    level: dict[str, float],
    chronic: list[str],
    infarction: bool,
) -> np.datetime64:
    """One hospital stay; returns the time of discharge."""
    rng = history.rng
    severity = rng.standard_normal()
    days = float(np.clip(np.exp(1.25 + 0.75 * severity + 0.25 * rng.standard_normal()), 0.4, 60))
    discharged = admitted + np.timedelta64(int(days * 86_400), "s")
    history.add(admitted, f"HOSPITAL_ADMISSION//{rng.choice(('EMERGENCY', 'ELECTIVE'))}", visit=visit)
    for day in range(min(int(days) + 1, 12)):
        time = admitted + np.timedelta64(int(rng.uniform(0.02, 0.08) * 86_400) + day * 86_400, "s")
        if time >= discharged:
            break
        names = list(LABS) if day == 0 else [n for n in LABS if rng.random() < 0.4]
        history.labs(time, names, level, severity * 0.8**day, visit)
        if infarction and day < 2:
            history.add(time, f"LOINC/{TROPONIN}", round(float(rng.lognormal(1.5, 0.8)), 2), "ng/mL", visit=visit)
    reason = rng.choice(INFARCTION) if infarction else rng.choice(ADMITTED_FOR)
    history.add(discharged, f"ICD10CM/{reason}", visit=visit)
    for name in chronic:
        history.add(discharged, f"ICD10CM/{CONDITIONS[name][0]}", visit=visit)
    for drug in AFTER_INFARCTION if infarction else ():
        history.add(discharged, f"RxNorm/{drug}", visit=visit)
    history.add(discharged, f"HOSPITAL_DISCHARGE//{rng.choice(('HOME', 'REHAB'), p=(0.8, 0.2))}", visit=visit)
    return discharged


def _subject(rng: np.random.Generator) -> tuple[_History, bool]:
    """One subject's events and whether the radiotherapy episode is among them."""
    history = _History(rng)
    birth = np.datetime64("1915-01-01") + int(rng.integers(0, 30 * 365)) * DAY
    history.add(None, f"GENDER//{rng.choice(('F', 'M'))}")
    history.add(_clock(birth, 0), "MEDS_BIRTH")
    chronic = [name for name, (_, prevalence, _) in CONDITIONS.items() if rng.random() < prevalence]
    level = {name: float(rng.standard_normal()) for name in LABS}
    day = birth + int(rng.uniform(20, 30) * 365) * DAY

    def visits(n: int, mean_gap: float) -> None:
        nonlocal day
        for _ in range(n):
            _outpatient_visit(history, day, chronic, level)
            day = day + int(1 + rng.exponential(mean_gap)) * DAY

    visits(int(rng.integers(1, 4)), 60)
    episode = bool(rng.random() < EPISODE_SHARE)
    day = _episode(history, day, RADIOTHERAPY if episode else PHYSIOTHERAPY)
    before = len(history.rows)
    visits(int(rng.lognormal(np.log(25), 0.5)), 150)
    while len(history.rows) - before < WASHOUT_EVENTS:
        visits(1, 150)

    infarcted = False
    visit = 0
    for _ in range(int(rng.integers(0, 6))):
        discharged = _stay(history, _clock(day, rng.uniform(0, 23.9)), visit, level, chronic, infarction=False)
        visit += 1
        day = discharged.astype("datetime64[D]") + int(rng.integers(3, 15)) * DAY
        if not infarcted and rng.random() < (RISK_WITH_EPISODE if episode else RISK_WITHOUT):
            infarcted = True
            day = day + int(rng.integers(0, 250)) * DAY
            discharged = _stay(history, _clock(day, rng.uniform(0, 23.9)), visit, level, chronic, infarction=True)
            visit += 1
            day = discharged.astype("datetime64[D]") + 7 * DAY
        visits(int(rng.integers(1, 4)), 150)
        if not infarcted:
            day = day + 400 * DAY  # so that no stay's year overlaps the next stay's
    return history, episode


def _shard(subjects: range, seed: int) -> tuple[pl.DataFrame, list[bool]]:
    columns: dict[str, list] = {
        k: [] for k in ("subject_id", "time", "code", "numeric_value", "unit", "text_value", "visit_id")
    }
    episodes = []
    for subject in subjects:
        history, episode = _subject(np.random.default_rng([seed, subject]))
        episodes.append(episode)
        for time, code, value, unit, text, visit in history.rows:
            for name, item in zip(columns, (subject + 1, time, code, value, unit, text, visit), strict=True):
                columns[name].append(item)
    times = np.array([np.datetime64("NaT") if t is None else t for t in columns.pop("time")], dtype="datetime64[us]")
    frame = pl.DataFrame(
        columns,
        schema={
            "subject_id": pl.Int64,
            "code": pl.String,
            "numeric_value": pl.Float32,
            "unit": pl.String,
            "text_value": pl.String,
            "visit_id": pl.Int64,
        },
    ).with_columns(time=pl.Series(times))
    ordered = frame.sort("subject_id", "time", nulls_last=False, maintain_order=True)
    return ordered.select("subject_id", "time", pl.exclude("subject_id", "time")), episodes


def _shards(simulation: Simulation) -> Iterator[tuple[pl.DataFrame, list[bool]]]:
    for first in range(0, simulation.subjects, SUBJECTS_PER_SHARD):
        yield _shard(range(first, min(first + SUBJECTS_PER_SHARD, simulation.subjects)), simulation.seed)


def simulate(simulation: Simulation, out: Path) -> dict[str, int]:
    """Writes the cohort to the folder `out` as MEDS 0.4, with `truth/subjects.parquet` (subject_id, episode) beside it.

    Returns the number of subjects and events.
    """
    facts = {"subjects": simulation.subjects, "events": 0}
    used: set[str] = set()
    truth: list[bool] = []
    with new_artifact(out, "events", simulation.model_dump(), {}, facts) as folder:
        for name in ("data", "metadata", "truth"):
            (folder / name).mkdir()
        for index, (events, episodes) in enumerate(_shards(simulation)):
            events.write_parquet(folder / "data" / f"{index:04d}.parquet")
            used.update(events["code"].unique())
            truth += episodes
            facts["events"] += events.height
        ids = np.arange(1, simulation.subjects + 1)
        codes = pl.DataFrame({"code": sorted(used)}).with_columns(
            description=pl.col("code").replace_strict(DESCRIPTIONS, default=None, return_dtype=pl.String),
            parent_codes=pl.lit(None, pl.List(pl.String)),
        )
        codes.write_parquet(folder / "metadata" / "codes.parquet")
        hash_splits(ids, SPLITS).write_parquet(folder / "metadata" / "subject_splits.parquet")
        pl.DataFrame({"subject_id": ids, "episode": truth}).write_parquet(folder / "truth" / "subjects.parquet")
        about = {"dataset_name": "ehrctx simulated cohort", "dataset_version": __version__, "meds_version": "0.4.1"}
        (folder / "metadata" / "dataset.json").write_text(json.dumps(about, indent=1) + "\n")
    return facts
