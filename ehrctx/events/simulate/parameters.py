"""What a simulated cohort may choose (`pipelines/cohorts/*.yaml`, the study key `simulate`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ehrctx.configuration import Config, find, load, merged, read_yaml, validate

PRESETS = Path("pipelines/cohorts")
LONGEST_RECORD_YEARS = 18.0  # records begin from 2006 on and end in 2024
LONGEST_TIMELINE = 100_000  # events; faster rates of visits are cut, see `Visits`

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Visits(Config):
    """Outpatient visits: a self-exciting process whose rate and regularity are the subject's own."""

    rate: Positive = Field(2.0, description="visits per year: the median over subjects")
    rate_spread: NotNegative = Field(1.2, description="standard deviation of the logarithm of the rate")
    most: Positive = Field(120.0, description="visits per year at most")
    gap_shape: Positive = Field(1.0, description="Weibull shape of the (time-changed) gaps: the median; 1 is Poisson")
    gap_shape_spread: NotNegative = Field(0.5, description="standard deviation of its logarithm; large is clockwork")
    offspring: Annotated[float, Field(ge=0, lt=1)] = Field(0.3, description="visits that a visit brings about")
    offspring_days: Positive = Field(20.0, description="mean delay of those")
    burden: NotNegative = Field(0.06, description="rise of the rate with each chronic disease that is diagnosed")


class Stays(Config):
    """Hospital stays, from competing hazards."""

    rate: NotNegative = Field(0.05, description="admissions per year of a subject of frailty 1 without a disease")
    rate_spread: NotNegative = Field(0.5, description="standard deviation of its logarithm, which goes with visits'")
    burden: NotNegative = Field(0.35, description="rise of the rate with each chronic disease that is diagnosed")
    index_years: tuple[NotNegative, NotNegative] | None = Field(
        None,
        description="everyone comes to hospital for the first time so many years before the end of the follow-up, at "
        "least and at most, unless they die before; none: whenever the hazards say",
    )
    work_up: Share = Field(0.6, description="of beginning preclinical stages that lead to an admission")
    readmission: NotNegative = Field(1.0, description="factor of the excess of admissions after a discharge")
    readmission_days: Positive = Field(10.0, description="time constant of that excess")
    intensive: Positive = Field(1.0, description="factor of the hazard of a transfer to intensive care")
    tested: NotNegative = Field(
        1.0, description="factor of the chance of each panel of tests, and of vital signs at visits"
    )
    charted_per_day: NotNegative = Field(1.0, description="rounds of vital signs per day on a ward")
    charted_per_intensive_day: NotNegative = Field(8.0, description="and in intensive care")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.index_years and not self.index_years[0] < self.index_years[1]:
            raise ValueError(f"index_years {list(self.index_years)} must rise")
        return self


class Cause(Config):
    """An early episode that raises the risk of a first myocardial infarction, and its sham of equal length.

    Every subject whose record has room between its beginning and the first admission has one or the other, so far
    before the admission as the distances say.
    """

    share: Share = Field(0.35, description="of those subjects, who have the cause; the others have the sham")
    events: int = Field(30, ge=1, description="of the episode; 1 is a needle")
    distance_tokens: int = Field(64, ge=0, description="events, of a token each, between episode and first admission")
    distance_years: NotNegative = Field(0.0, description="years between them at least")
    risk: Share = Field(0.45, lt=1, description="of an infarction within a year, from the first discharge on")
    background: Share = Field(0.04, lt=1, description="the same of all others")
    shown: bool = Field(True, description="false: everyone has the sham, and the risks stay: nobody can see the cause")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.events + self.distance_tokens >= LONGEST_TIMELINE:
            raise ValueError(
                f"distance_tokens ({self.distance_tokens:,}) and events ({self.events:,}) are more than any timeline "
                f"holds; use less than {LONGEST_TIMELINE:,} together"
            )
        if self.distance_years >= LONGEST_RECORD_YEARS:
            raise ValueError(
                f"distance_years ({self.distance_years:g}) is more than any timeline spans; use less than "
                f"{LONGEST_RECORD_YEARS:g}"
            )
        return self


PROPERTIES = {
    "copy_rate": (0.0, 1.0),
    "gap_shape": (0.1, 20.0),
    "visit_rate": (0.05, 365.0),
    "progression": (0.0, 20.0),
}


class Levels(Config):
    """One property planted at several levels, all else being equal: each subject is lived once at every level."""

    property: Literal["copy_rate", "gap_shape", "visit_rate", "progression"]
    values: tuple[float, ...] = Field(min_length=2, description="the levels")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = PROPERTIES[self.property]
        if wrong := [value for value in self.values if not low <= value <= high]:
            raise ValueError(f"{self.property} of {wrong[0]:g} is not between {low:g} and {high:g}")
        if len(set(self.values)) < len(self.values):
            raise ValueError("a level is given twice")
        return self


class Parameters(Config):
    """A cohort. The modules of `ehrctx/events/simulate/` say what is made of each value."""

    name: str = "own"
    description: str = ""
    record_years: Positive = Field(18.0, le=LONGEST_RECORD_YEARS, description="of the longest records")
    shortest_record_years: Positive = Field(0.1, description="of the shortest")
    age: tuple[Annotated[float, Field(ge=18)], Annotated[float, Field(le=100)]] = Field(
        (18, 85), description="of the youngest and of the oldest when their records begin"
    )
    copy_rate: Share = Field(0.5, description="share of visits that carry the visit before forward: the mean")
    copy_rate_spread: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.25, description="standard deviation of it over subjects"
    )
    progression: NotNegative = Field(1.0, description="factor of the diseases' pace from the record's start; 0: none")
    deaths: NotNegative = Field(1.0, description="factor of the hazard of death")
    visits: Visits = Visits()
    stays: Stays = Stays()
    cause: Cause = Cause()
    levels: Levels | None = None
    subjects_per_shard: int = Field(1000, ge=1, description="of one file: some 500,000 events are a good size")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.age[0] >= self.age[1]:
            raise ValueError(f"age {list(self.age)} must rise")
        if self.shortest_record_years > self.record_years:
            raise ValueError(
                f"shortest_record_years ({self.shortest_record_years:g}) is more than record_years "
                f"({self.record_years:g})"
            )
        spread, most = self.copy_rate_spread, (self.copy_rate * (1 - self.copy_rate)) ** 0.5
        if spread and spread >= most:
            raise ValueError(
                f"copy_rate_spread ({spread:g}) is too large for rates of mean {self.copy_rate:g}; use less than "
                f"{most:.2g}"
            )
        if self.stays.index_years and self.stays.index_years[1] > self.shortest_record_years:
            raise ValueError(
                f"stays.index_years {list(self.stays.index_years)} begins before the shortest records do; "
                f"shortest_record_years is {self.shortest_record_years:g}"
            )
        if self.levels and self.levels.property == "visit_rate" and max(self.levels.values) > self.visits.most:
            raise ValueError(
                f"levels: visit_rate of {max(self.levels.values):g} is more than visits.most ({self.visits.most:g}), "
                "at which rates are cut"
            )
        if self.cause.distance_years >= self.record_years:
            raise ValueError(
                f"cause.distance_years ({self.cause.distance_years:g}) is more than any timeline spans; record_years "
                f"is {self.record_years:g}"
            )
        return self


def find_preset(name_or_path: str) -> Path:
    """`published` -> `pipelines/cohorts/published.yaml`; a path stays a path."""
    return find(name_or_path, PRESETS, "cohort")


def parameters_of(preset: str, changes: Any, source: str) -> Parameters:
    """The cohort of a preset (name or path) with `changes`, keys and values that `source` gave, key by key.

    Raises InputError for a preset that is not there, and with a sentence for each mistake in either.
    """
    file = find_preset(preset)
    load(Parameters, file)
    changed = merged(read_yaml(file), changes) if isinstance(changes, Mapping) else changes
    return validate(Parameters, changed, source)
