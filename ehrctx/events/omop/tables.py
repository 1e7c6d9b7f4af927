"""Which tables of an OMOP CDM give which events: the only place that names its tables and columns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a row becomes: an event, an event that an END closes, or a death with its cause."""

    EVENT = "event"
    VISIT = "visit"
    DEATH = "death"


@dataclass(frozen=True)
class EventTable:
    """One table with one event a row.

    `stem` begins the names of its concept columns (`<stem>_concept_id`, `<stem>_source_concept_id`,
    `<stem>_source_value`), `start` and `end` those of its times (`<start>_datetime`, `<start>_date`). `prefix` leads
    its codes. `valued`: it has value_as_number and the like. `placed`: its care sites are events.
    """

    name: str
    stem: str
    start: str
    end: str | None = None
    kind: Kind = Kind.EVENT
    prefix: str = ""
    valued: bool = False
    placed: bool = False

    @property
    def concept(self) -> str:
        return f"{self.stem}_concept_id"

    @property
    def source_concept(self) -> str:
        return f"{self.stem}_source_concept_id"

    @property
    def source_value(self) -> str:
        return f"{self.stem}_source_value"

    @property
    def concepts(self) -> tuple[str, ...]:
        """Columns that refer to CONCEPT."""
        return (self.concept, self.source_concept, *(("value_as_concept_id", "unit_concept_id") if self.valued else ()))


# In the order of their events within one time. What was found comes before what was done about it.
EVENT_TABLES = (
    EventTable("visit_occurrence", "visit", "visit_start", "visit_end", Kind.VISIT),
    EventTable(
        "visit_detail",
        "visit_detail",
        "visit_detail_start",
        "visit_detail_end",
        Kind.VISIT,
        "VISIT_DETAIL//",
        placed=True,
    ),
    EventTable("observation", "observation", "observation", valued=True),
    EventTable("condition_occurrence", "condition", "condition_start", "condition_end"),
    EventTable("measurement", "measurement", "measurement", valued=True),
    EventTable("procedure_occurrence", "procedure", "procedure", "procedure_end"),
    EventTable("drug_exposure", "drug", "drug_exposure_start", "drug_exposure_end"),
    EventTable("device_exposure", "device", "device_exposure_start", "device_exposure_end"),
    EventTable("death", "cause", "death", kind=Kind.DEATH),
)
PERSON, CONCEPT, ANCESTOR, RELATIONSHIP = "person", "concept", "concept_ancestor", "concept_relationship"
CARE_SITE, SOURCE = "care_site", "cdm_source"
REQUIRED = {
    PERSON: "Give the folder that holds the tables of an OMOP CDM.",
    CONCEPT: "Export it with the others, or copy it from the vocabulary's download of https://athena.ohdsi.org.",
}
TABLES = (*REQUIRED, *(table.name for table in EVENT_TABLES), ANCESTOR, RELATIONSHIP, CARE_SITE, SOURCE)

# What else the CDM, its vocabulary's download and OHDSI's tools call a table; these give no events.
OTHER_TABLES = (
    "note", "note_nlp", "cost", "drug_era", "dose_era", "condition_era", "episode", "episode_event", "specimen",
    "payer_plan_period", "observation_period", "fact_relationship", "location", "location_history", "provider",
    "survey_conduct", "image_occurrence", "image_feature", "metadata", "cohort", "cohort_definition",
    "cohort_attribute", "attribute_definition", "drug_strength", "vocabulary", "domain", "concept_class",
    "relationship", "concept_synonym", "concept_cpt4", "source_to_concept_map", "source_to_source_vocab_map",
    "source_to_standard_vocab_map", "achilles_analysis", "achilles_results", "achilles_results_dist",
)  # fmt: skip

# Static events: column stems of PERSON, which is also what UNMAPPED codes call them.
TRAITS = ("gender", "race", "ethnicity")

# Within one time: birth, starts of visits, other events in the order of their tables, ends of visits, death.
ORDER = ("birth", "visit_occurrence", "visit_detail", "care_site", *(table.name for table in EVENT_TABLES[2:-1]),
         "visit_detail//END", "visit_occurrence//END", "cause", "death")  # fmt: skip
RANK = {what: rank for rank, what in enumerate(ORDER)}

# The CDM's operators (domain Meas Value Operator) that say something beside the number; "=" (4172703) does not.
OPERATORS = {4171756: "<", 4171754: "<=", 4172704: ">", 4171755: ">="}
