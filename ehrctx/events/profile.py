"""How one data set writes visits and units, and which of its times are only dates (`pipelines/datasets/*.yaml`)."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from pydantic import Field

from ehrctx.study import Config, find

PROFILES = Path("pipelines/datasets")


class DatasetProfile(Config):
    """Codes are given exactly, or as a prefix that ends in `*` (`HOSPITAL_ADMISSION//*`)."""

    name: str
    birth: str = Field("MEDS_BIRTH", description="its time is the origin of a subject's clock")
    admission: tuple[str, ...] = Field((), description="events that open a hospital stay")
    discharge: tuple[str, ...] = Field((), description="events that close a hospital stay")
    visit_column: str | None = Field(None, description="column that ties a discharge to its admission")
    unit_column: str | None = Field(None, description="column that holds the unit of numeric_value")
    unit_in_code: tuple[str, ...] = Field((), description="codes whose last //segment is the unit")
    date_only: tuple[str, ...] = Field((), description="codes stamped 00:00 that are known only at the day's end")


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
