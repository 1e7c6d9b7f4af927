"""What a task definition (`ehrctx/tasks/definitions/*.yaml`, or a user's own file) says, by family."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ehrctx.configuration import Config, find, read_yaml, validate
from ehrctx.errors import InputError, nearest
from ehrctx.tasks.label_files import SUFFIXES, is_whole, label_stem

DEFINITIONS = Path(__file__).parent / "definitions"
MACRO = "macro"  # what stands for a task's name in rows of the mean over tasks
MACRO_MANY_POSITIVES = "macro_many_positives"  # and of the mean over those that rest on many positive subjects
DEFINITION_SUFFIXES = (".yaml", ".yml")
Concepts = dict[str, tuple[str, ...]]
Censored = Literal["negative", "left_out"]
CENSORED = "a horizon that outlasts the follow-up: no label, or judged by what was seen of it"


def plain_unit(unit: str) -> str:
    """A unit without case and spaces, and with `u` for micro (µ, μ, mc): `K/mcL` and `k/uL` are one."""
    return re.sub("µ|μ|mc", "u", unit.lower().replace(" ", ""))


CHEXPERT = (
    "EHRSHOT's task 'chexpert' holds 14 findings in one number, and the study leaves it out. Leave it out too, or "
    "write labels of True and False for each finding, under names of your own."
)


NAME = r"^[a-z0-9][a-z0-9_]*$"


def _own_name(task: str) -> str:
    if task == "chexpert":
        raise ValueError(CHEXPERT)
    taken = dict.fromkeys((MACRO, MACRO_MANY_POSITIVES), "a mean over tasks") | {"history": "a file beside the labels"}
    if task in taken:
        raise ValueError(f"{task!r} is the name of {taken[task]}; choose another")
    return task


class _Task(Config):
    task: Annotated[str, AfterValidator(_own_name)] = Field(
        pattern=NAME, description="names the label file and the rows"
    )
    question: str
    source: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys that the data set's profile must fill."""
        return ()

    @property
    def concepts(self) -> Concepts:
        """The concepts that it names: system -> codes."""
        return {}


class Stay(_Task):
    """Will a hospital stay be long? Predicted at 23:59 of the admission day."""

    family: Literal["stay"]
    at_least_days: float = Field(gt=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("admission", "discharge")


class Icu(_Task):
    """Will the patient come to intensive care in this stay? Predicted at 23:59 of the admission day."""

    family: Literal["icu"]

    @property
    def needs(self) -> tuple[str, ...]:
        return ("admission", "discharge", "icu_admission")


class Readmission(_Task):
    """Will the patient be admitted again soon? Predicted at 23:59 of the discharge day."""

    family: Literal["readmission"]
    at_least_minutes: float = Field(ge=0, description="after the prediction time")
    at_most_days: float = Field(gt=0, description="after the prediction time")
    censored: Censored = Field("left_out", description=CENSORED)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("admission", "discharge", "death", *(("follow_up_end",) if self.censored == "left_out" else ()))

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.at_least_minutes >= self.at_most_days * 24 * 60:
            raise ValueError(
                f"no time is at least {self.at_least_minutes:g} minutes (at_least_minutes) and at most "
                f"{self.at_most_days:g} days (at_most_days) away; make the second longer than the first"
            )
        return self


class Laboratory(_Task):
    """Will a result be abnormal? Predicted one minute before it."""

    family: Literal["laboratory"]
    result: Concepts = Field(description="the test: system -> codes")
    unit: str = Field(description="the unit of the thresholds")
    conversions: dict[str, Annotated[float, Field(gt=0)]] = Field(
        description="unit -> factor to `unit`; results in other units are left out"
    )
    abnormal: Literal["at_most", "below", "above"] = Field(
        description="how a mild value lies to its threshold; moderate and severe ones lie strictly beyond theirs"
    )
    thresholds: tuple[float, float, float] = Field(description="mild, moderate, severe")

    @property
    def concepts(self) -> Concepts:
        return self.result

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        mild, moderate, severe = self.thresholds
        if not (mild < moderate < severe if self.abnormal == "above" else mild > moderate > severe):
            direction = "rise" if self.abnormal == "above" else "fall"
            raise ValueError(
                f"with `abnormal: {self.abnormal}` the thresholds must {direction} from mild to severe, "
                f"but they are {mild:g}, {moderate:g}, {severe:g}"
            )
        return self

    @model_validator(mode="after")
    def _convertible(self) -> Self:
        spelled: dict[str, str] = {}
        for unit, factor in self.conversions.items():
            twin = spelled.setdefault(plain_unit(unit), unit)
            if self.conversions[twin] != factor:
                raise ValueError(f"{twin!r} and {unit!r} are one unit, so they need the same factor")
        return self

    def factor(self, unit: str) -> float | None:
        """What a result in `unit` is multiplied by; None for a unit that `conversions` does not know."""
        factors = {plain_unit(known): factor for known, factor in self.conversions.items()}
        return factors.get(plain_unit(unit))


class Diagnosis(_Task):
    """Will a disease be diagnosed for the first time? Predicted at 23:59 of the discharge day."""

    family: Literal["diagnosis"]
    diagnosis: Concepts = Field(description="the disease: system -> codes; ICD codes stand for all they begin")
    within_days: tuple[float, float] = Field(description="(more than, at most) days after the prediction time")
    censored: Censored = Field("negative", description=CENSORED)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("admission", "discharge", *(("death", "follow_up_end") if self.censored == "left_out" else ()))

    @property
    def concepts(self) -> Concepts:
        return self.diagnosis

    @model_validator(mode="after")
    def _window(self) -> Self:
        more_than, at_most = self.within_days
        if not 0 <= more_than < at_most:
            raise ValueError(
                f"`within_days` is (more than, at most) days after the prediction time; "
                f"{more_than:g}, {at_most:g} is no such window"
            )
        return self


class Given(_Task):
    """Labels that are there already."""

    family: Literal["given"]
    labels: str = Field(description="a label file, or a folder with one or its shards; relative to the definition")

    def beside(self, folder: Path) -> Self:
        """The same, from another folder than the one that its path is relative to."""
        return self.model_copy(update={"labels": str(folder / self.labels)})


class Femr(_Task):
    """What a labeler says that was written for femr (`femr.labelers.Labeler`)."""

    family: Literal["femr"]
    labeler: str = Field(pattern=r"^.+\.py:[A-Za-z_]\w*$", description="file.py:Class; relative to the definition")
    arguments: dict[str, Any] = Field({}, description="of its constructor")

    def beside(self, folder: Path) -> Self:
        """The same, from another folder than the one that its path is relative to."""
        return self.model_copy(update={"labeler": str(folder / self.labeler)})

    @property
    def file(self) -> Path:
        """Where the class is written."""
        return Path(self.labeler.rpartition(":")[0])


Definition = Stay | Icu | Readmission | Laboratory | Diagnosis
Task = Definition | Given | Femr
FAMILIES: dict[str, type[Task]] = {
    "stay": Stay,
    "icu": Icu,
    "readmission": Readmission,
    "laboratory": Laboratory,
    "diagnosis": Diagnosis,
    "given": Given,
    "femr": Femr,
}


def with_censored(definition: Task, censored: Literal["published"] | Censored) -> Task:
    """The definition with another rule for censored horizons, where it has one; `published` leaves it as it is."""
    if censored == "published" or not isinstance(definition, Readmission | Diagnosis):
        return definition
    return definition.model_copy(update={"censored": censored})


def _given_at(place: Path) -> Given:
    """The task that a label file or a folder of labels stands for: its name is theirs."""
    named = place.parent if is_whole(place.name) else place
    name = label_stem(named.name) or named.name
    if not place.exists():
        raise InputError(f"no such label file: {place}.")
    if not re.fullmatch(NAME, name):
        raise InputError(
            f"{place}: {name!r} is no name of a task, which has lower-case letters, digits and _ alone. Rename it, or "
            f"write a definition with `family: given` and the path as `labels`."
        )
    values = {"task": name, "family": "given", "question": f"as given in {place}", "labels": str(place)}
    return validate(Given, values, str(place))


def load_definition(name_or_path: str) -> Task:
    """A shipped definition by name, one from a file, or the labels in a file or folder."""
    if name_or_path == "chexpert":
        raise InputError(CHEXPERT)
    place = Path(name_or_path)
    if label_stem(place.name) is not None or ("/" in name_or_path and place.is_dir()):
        return _given_at(place)
    if place.is_file() and place.suffix.lower() not in DEFINITION_SUFFIXES:  # never read as YAML: errors quote it
        raise InputError(
            f"{place}: a definition is a .yaml file, and labels are {' or '.join(SUFFIXES)}. Rename or convert it."
        )
    path = find(name_or_path, DEFINITIONS, "task")
    values = read_yaml(path)
    family = values.get("family") if isinstance(values, Mapping) else "stay"  # `validate` says what is wrong
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"{path}: no task family {family!r}; {nearest(str(family), FAMILIES)}")
    definition = validate(FAMILIES[family], values, str(path))
    if isinstance(definition, Given | Femr):
        definition = definition.beside(path.parent)
    if isinstance(definition, Femr) and not definition.file.is_file():
        raise InputError(f"{path}: no such file: {definition.file}. Fix `labeler`.")
    return definition


def load_definitions(names_or_paths: Sequence[str]) -> list[Task]:
    """Those of a study. Raises InputError if two have the same name."""
    definitions = [load_definition(task) for task in names_or_paths]
    names = [definition.task for definition in definitions]
    if len(set(names)) < len(names):
        raise InputError(f"two definitions are both called {max(names, key=names.count)!r}. Rename one of them.")
    return definitions
