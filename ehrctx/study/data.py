"""Keys on data: where events come from, who is held out, which labels are used."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ehrctx.configuration import Config
from ehrctx.study.model_id import LARGEST_SEED


class Simulation(Config):
    """The embedded cohort (`ehrctx simulate`)."""

    subjects: int = Field(2000, ge=10, description="how many subjects")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="the same seed gives the same cohort, byte for byte")
    preset: str = Field("published", description="a cohort in pipelines/cohorts/, or the path of one")
    parameters: dict[str, Any] = Field({}, description="what differs from the preset, as a preset's file has it")


class ImportOptions(Config):
    """What imports of all formats do with times that cannot be."""

    implausible_time: Literal["refuse", "drop"] = Field(
        "refuse",
        description="what events before the year 1700 or after 2499 do, which are placeholders: end the import, or be "
        "left out; births are kept",
    )


class OmopOptions(ImportOptions):
    """How the tables of an OMOP CDM become events (`ehrctx import omop`)."""

    codes: Literal["standard", "source"] = Field(
        "standard", description="an event's code: its standard concept, or its source concept where it has one"
    )
    before_birth: Literal["refuse", "drop"] = Field(
        "refuse", description="what events more than 30 days before the birth do: end the import, or be left out"
    )


class OmopSource(OmopOptions):
    """A CDM that the workflow imports."""

    format: Literal["omop"]
    folder: str = Field(description="folder of the tables, as CSV or parquet")


class EhrshotSource(ImportOptions):
    """EHRSHOT's CSV release, which the workflow imports."""

    format: Literal["ehrshot"]
    folder: str = Field(description="into which the release was unpacked")
    concepts: str | None = Field(None, description="an OMOP vocabulary from Athena, which describes the codes")


class FemrSource(ImportOptions):
    """A meds_reader database or an extract of femr 0.1, which the workflow imports."""

    format: Literal["femr"]
    folder: str = Field(description="of the database or of the extract")


Source = Annotated[OmopSource | EhrshotSource | FemrSource, Field(discriminator="format")]


class HashSplits(Config):
    """Splits drawn from a hash of the subject, which replace the data set's own."""

    hash: tuple[float, float, float] = Field(description="shares of train, tuning and held_out; they add up to 1")
    seed: int = Field(0, ge=0, lt=2**63, description="of the hash, as femr takes it")

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if min(self.hash) <= 0 or abs(sum(self.hash) - 1) > 1e-6:
            raise ValueError(f"the shares {list(self.hash)} must be positive and add up to 1")
        return self


class Labels(Config):
    """Which labels of a task are used."""

    given: str | None = Field(
        None, description="a folder of label files of all tasks, instead of making labels; see docs/studies.md"
    )
    max_times_per_subject: int | None = Field(
        None, ge=1, description="laboratory tasks keep at most so many prediction times per subject, drawn once"
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    censored: Literal["published", "negative", "left_out"] = Field(
        "published", description="what readmissions and diagnoses make of a horizon that outlasts the follow-up"
    )

    permuted: int | None = Field(
        None,
        ge=0,
        le=LARGEST_SEED,
        description="a negative control: the seed with which outcomes are dealt out among subjects; none: they stay",
    )

    @model_validator(mode="after")
    def _made_or_given(self) -> Self:
        if self.given is not None and self.censored != "published":
            raise ValueError("`censored` says how labels are made, but `given` ones are made already. Leave one out")
        return self
