"""What a task definition (`ehrctx/tasks/definitions/*.yaml`, or a user's own file) says, by family."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from ehrctx.errors import InputError, nearest
from ehrctx.study import Config, find, load

DEFINITIONS = Path(__file__).parent / "definitions"
Concepts = dict[str, tuple[str, ...]]


class _Task(Config):
    task: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$", description="names the label file and the rows")
    question: str
    source: str = ""


class Stay(_Task):
    """Will a hospital stay be long? Predicted at 23:59 of the admission day."""

    family: Literal["stay"]
    at_least_days: float = Field(gt=0)


class Laboratory(_Task):
    """Will a result be abnormal? Predicted one minute before it."""

    family: Literal["laboratory"]
    result: Concepts = Field(description="the test: system -> codes")
    unit: str = Field(description="the unit of the thresholds")
    conversions: dict[str, float] = Field(description="unit -> factor to `unit`; results in other units are left out")
    abnormal: Literal["at_most", "below", "above"]
    thresholds: tuple[float, float, float] = Field(description="mild, moderate, severe")


class Diagnosis(_Task):
    """Will a disease be diagnosed for the first time? Predicted at 23:59 of the discharge day."""

    family: Literal["diagnosis"]
    diagnosis: Concepts = Field(description="the disease: system -> codes; ICD codes stand for all they begin")
    within_days: tuple[float, float] = Field(description="(more than, at most) days after the prediction time")


Definition = Stay | Laboratory | Diagnosis
FAMILIES: dict[str, type[Definition]] = {
    "stay": Stay,
    "laboratory": Laboratory,
    "diagnosis": Diagnosis,
}


def load_definition(name_or_path: str) -> Definition:
    """A shipped definition by name, or one from a file."""
    path = find(name_or_path, DEFINITIONS, "task")
    try:
        family = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("family")
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError):
        family = "stay"  # `load` below says what is wrong
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"{path}: no task family {family!r}; {nearest(str(family), FAMILIES)}")
    return load(FAMILIES[family], path)
