"""Random records in which everything occurs that the rules of tokenizers/README.md tell apart."""

from __future__ import annotations

import math
import random
from datetime import datetime, timedelta

import numpy as np
import polars as pl

SCHEMA = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
    "unit": pl.String,
}
PROFILE = {
    "unit_column": "unit",
    "unit_in_code": ["LAB//*"],
    "date_only": ["PROC//*", "DAY"],
    "admission": ["ADM//*", "IN AND OUT"],
    "discharge": ["DIS//*", "IN AND OUT"],
}
CODES = [
    *["C0"] * 5,
    *["C1"] * 4,
    *["C2"] * 3,
    *["ADM//ER", "ADM//OTHER", "DIS//HOME", "IN AND OUT", "PROC//1", "PROC//2", "DAY"],
    *["LAB//1//mg", "LAB//2//UNK", "LAB//3//", "LAB//4"] * 2,
    *["DX//a", "DX//b", "DX//c", "DX//loop", "DX//alone", "DX//two"],
    *["ICD10CM/I21.41", "ICD10CM/I2142", "ICD10CM/I21.4", "ICD9CM/4101", "ICD9CM/410.2", "ICD9CM/V27"],
    *["Größe 東京", "ALBUMIN (é), 24h"],
]
SPLITS = {subject: ("train", "train", "train", "tuning", "held_out")[(subject - 1) % 5] for subject in range(1, 101)}
HIERARCHY = {
    "DX//a": ("Déjà vu of the heart", ["G//heart", "G//vessel"]),
    "DX//b": ("Vessel, narrow", ["G//vessel", None, "G//heart"]),
    "DX//c": ("Narrow heart", ["G//upper"]),
    "DX//two": (None, ["DX//b", "ICD10CM/I21.41"]),
    "DX//loop": ("Goes round", ["G//loop"]),
    "G//loop": (None, ["G//loop 2", "G//loop"]),
    "G//loop 2": ("", ["DX//loop", "G//body"]),
    "G//heart": ("Heart", ["G//upper"]),
    "G//vessel": ("Vessel", ["G//upper"]),
    "G//upper": (None, ["G//body"]),
    "ICD10CM/I21": ("Acute myocardial infarction", ["G//heart"]),
    "ICD10CM/I21.41": ("Infarction, other", None),
    "ICD9CM/410": (None, []),
    "C0": ("Sodium\tlevel", None),
    "C1": ("Potassium-level!", None),
    "DX//alone": ("", None),
    "RARE//3": ("The third", ["DX//two"]),
}
NOTE = "n" * 201
TEXTS = ["", "low", "high", "東京 positive", "l" * 200, NOTE, "é" * 101, "seen later"]
GAPS = [0, 0, 0, 1, 59, 3_600, 40_000, 86_399, 86_400, 86_401, 3 * 86_400, 7 * 86_400, 29 * 86_400, 90 * 86_400]
LONG_GAPS = [364 * 86_400, 365 * 86_400, 2_000 * 86_400]


def codes_frame() -> pl.DataFrame:
    rows = [(code, said, above) for code, (said, above) in HIERARCHY.items()]
    schema = {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _value(draw: random.Random) -> float | None:
    if draw.random() < 0.5:
        return None
    kind = draw.random()
    if kind < 0.1:
        return draw.choice([math.nan, math.inf, -math.inf])
    if kind < 0.4:
        return draw.choice([0.0, -0.0, 1.0, 3.4e38])
    return float(np.float32(draw.gauss(0, 10)) if kind < 0.7 else draw.randint(-3, 3))


def random_records(seed: int, subjects: int = 15, longest: int = 40, microseconds: bool = True) -> pl.DataFrame:
    """Sorted raw events of subjects 1..n. Codes, units and texts of the last fifth are partly new."""
    draw = random.Random(seed)
    rows = []
    for subject in range(1, subjects + 1):
        late = subject > subjects * 4 // 5
        for _ in range(draw.choice([0, 0, 1, 2, 3])):
            rows.append((subject, None, draw.choice(["SEX//F", "SEX//M", "RACE", "C1"]), None, None, None))
        if draw.random() < 0.1:
            continue  # static events alone, or none at all
        time = datetime(draw.randint(1930, 2010), draw.randint(1, 12), draw.randint(1, 28), draw.choice([0, 5]))
        own: list[tuple[datetime, str, float | None, str | None, str | None]] = []
        for _ in range(draw.randint(1, longest)):
            time += timedelta(seconds=draw.choice(GAPS if draw.random() < 0.95 else LONG_GAPS))
            if microseconds and draw.random() < 0.3:
                time += timedelta(microseconds=draw.choice([1, 500_000, 999_999]))
            code = draw.choice(CODES)
            if draw.random() < 0.08:
                code = f"RARE//{draw.randint(1, 2 * subjects)}"
            if late and draw.random() < 0.1:
                code = draw.choice(["NEW", "ICD10CM/I21.49", "ICD9CM/9999", "DX//new"])
            stamp = time
            if code.startswith(("PROC", "DAY")) and draw.random() < 0.7:
                stamp = datetime(time.year, time.month, time.day)
            unit = draw.choice([None, "", "mg", "mmol", *(["new unit"] if late else [])])
            text = draw.choice(TEXTS[: 8 if late else 7]) if draw.random() < 0.3 else None
            own.append((stamp, code, _value(draw), text, unit))
        own.sort(key=lambda e: e[0])
        if draw.random() < 0.6:
            born = own[0][0] + timedelta(days=draw.choice([0, 0, -40, 0.5, 20, 30]))
            own.append((born, "MEDS_BIRTH", None, None, None))
        if draw.random() < 0.1:
            own.append((own[-1][0], "MEDS_BIRTH", None, None, None))  # a second one is an event like others
        own.sort(key=lambda e: e[0])
        born = min((e[0] for e in own if e[1] == "MEDS_BIRTH"), default=None)
        own = [e for e in own if born is None or e[0] >= born - timedelta(days=30)]
        rows += [(subject, *e) for e in own]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")
