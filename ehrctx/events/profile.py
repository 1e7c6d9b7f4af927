"""How one data set writes visits and units, and which of its times are only dates (`pipelines/datasets/*.yaml`)."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import Field, field_validator

from ehrctx.configuration import Config, find
from ehrctx.errors import InputError

PROFILES = Path("pipelines/datasets")
ABOUT_FILE = Path("metadata/dataset.json")  # of a MEDS data set: its name and version
SIMULATED = "ehrctx simulated cohort"  # the name of those that `ehrctx simulate` writes
SIMULATED_PROFILE = "simulated"


class DatasetProfile(Config):
    """Codes are given exactly, or as a prefix that ends in `*` (`HOSPITAL_ADMISSION//*`)."""

    name: str
    birth: str = Field("MEDS_BIRTH", description="its time is the origin of a subject's clock")
    admission: tuple[str, ...] = Field((), description="events that open a hospital stay")
    discharge: tuple[str, ...] = Field((), description="events that close a hospital stay")
    discharged_dead: tuple[str, ...] = Field((), description="those of `discharge` that say that the patient died")
    icu_admission: tuple[str, ...] = Field((), description="events that open a stay in intensive care")
    death: tuple[str, ...] = Field(("MEDS_DEATH",), description="events of death, with or without a time of day")
    follow_up_end: str | None = Field(
        None, description="until when admissions would be seen: record_end, death, or a last day YYYY-MM-DD"
    )
    visit_column: str | None = Field(None, description="column that ties a discharge to its admission")
    unit_column: str | None = Field(None, description="column that holds the unit of numeric_value")
    unit_in_code: tuple[str, ...] = Field((), description="codes whose last //segment is the unit")
    date_only: tuple[str, ...] = Field((), description="codes stamped 00:00 that are known only at the day's end")

    groups: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], dict[str, tuple[str, ...]]] = Field(
        {}, description="of subjects, whose results are told apart: group -> level -> codes (sex: {female: [...]})"
    )

    @field_validator("groups")
    @classmethod
    def _own_names(cls, groups: dict[str, Any]) -> dict[str, Any]:
        if taken := groups.keys() & {"age", "history", "repeated", "subject_id", "prediction_time"}:
            raise ValueError(f"{min(taken)!r} is a name that results have already; choose another")
        return groups

    @field_validator("follow_up_end", mode="before")
    @classmethod
    def _kind_or_day(cls, value: Any) -> Any:
        if value in (None, "record_end", "death"):
            return value
        try:  # YAML reads 2024-12-31 as a date
            day = value if isinstance(value, date) else datetime.strptime(value, "%Y-%m-%d").date()
        except (TypeError, ValueError):
            day = None
        if day is None or isinstance(day, datetime):
            raise ValueError(f"{value!s} is not record_end, death or a date YYYY-MM-DD")
        return day.isoformat()


def is_simulated(data: Path) -> bool:
    """Whether `ehrctx simulate` wrote the MEDS data set in the folder `data`."""
    try:
        about = json.loads((Path(data) / ABOUT_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("dataset_name") == SIMULATED


def profile_for(data: Path, profile: str | None) -> str:
    """The `profile` that is named, or that of a simulated cohort in the folder `data`.

    Raises InputError for other data sets: a profile of other codes would find no visits, and say nothing.
    """
    if profile is not None:
        return profile
    if is_simulated(data):
        return SIMULATED_PROFILE
    shipped = ", ".join(sorted(file.stem for file in PROFILES.glob("*.yaml")))
    raise InputError(
        f"--profile is missing, which says how {data} writes visits and units. Give a shipped one ({shipped}), or the "
        f"path of your own (docs/studies.md)."
    )


def find_profile(name_or_path: str) -> Path:
    """`mimic_iv` -> `pipelines/datasets/mimic_iv.yaml`; a path stays a path."""
    return find(name_or_path, PROFILES, "data set profile")


def matches(code: pl.Expr, patterns: tuple[str, ...]) -> pl.Expr:
    """Whether `code` is one of `patterns` (exact, or a prefix that ends in `*`). A boolean expression."""
    exact = [p for p in patterns if not p.endswith("*")]
    prefixes = [p[:-1] for p in patterns if p.endswith("*")]
    found = code.is_in(exact) if exact else pl.lit(False)
    for prefix in prefixes:
        found = found | code.str.starts_with(prefix)
    return found
