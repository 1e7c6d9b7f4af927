"""The controls' file: several studies of simulated cohorts, one per arm, and what they are compared for.

It is read here, and each arm validated as the study that it is: an arm runs through the same workflow as any study.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from ehrctx.configuration import Config, merged, validate
from ehrctx.errors import InputError
from ehrctx.events.simulate.parameters import parameters_of
from ehrctx.probe.predict import COUNTS
from ehrctx.study import ModelId, Privacy, Statistics, Study

# What each arm is for. `<property>_levels` plants a property at several levels.
POSITIVE = ("far", "near", "hidden", "needle")
NEGATIVE = "permuted"
LEVELS = ("copy_rate_levels", "gap_shape_levels", "visit_rate_levels")
PROGRESSION = ("progressing", "steady")
ARMS = (*POSITIVE, NEGATIVE, *LEVELS, *PROGRESSION)


class Bars(Config):
    """What must hold for the controls to pass."""

    recovered: float = Field(0.8, gt=0, le=1, description="share of the oracle's AUROC above .5 of the best model")
    stretch: float = Field(0.9, gt=0, le=1, description="the same, hoped for")
    equal: float = Field(0.1, gt=0, lt=1, description="two AUROCs are at one level if the difference is surely less")


class Controls(Config):
    """Arms are changes on top of `shared`, keys of a study like any other."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", description="names results/<name>")]
    task: str = Field("new_acutemi", description="whose outcome the planted cause brings about")
    shared: dict[str, Any] = Field(description="keys of every arm's study")
    far: dict[str, Any] = Field(description="the cause lies beyond the short context, within the long one")
    near: dict[str, Any] = Field(description="the cause lies within the short context")
    hidden: dict[str, Any] = Field(description="as far, but nobody's record shows the cause")
    needle: dict[str, Any] = Field(description="as far, but the cause is a single event; reported without a bar")
    permuted: dict[str, Any] = Field(description="outcomes are dealt out among subjects")
    copy_rate_levels: dict[str, Any] = Field(description="copy-forward planted at several levels")
    gap_shape_levels: dict[str, Any] = Field(description="regularity of visits planted at several levels")
    visit_rate_levels: dict[str, Any] = Field(description="rate of visits planted at several levels")
    steady: dict[str, Any] = Field(description="no disease moves on")
    progressing: dict[str, Any] = Field(description="the same subjects, whose diseases move on")
    bars: Bars = Bars()
    statistics: Statistics = Statistics()
    privacy: Privacy = Privacy(minimum_count=1)

    def study(self, arm: str) -> Study:
        """The study of one arm; raises InputError with a sentence for each mistake, led by the arm's name."""
        values = merged(self.shared, getattr(self, arm))
        if taken := {"name", "statistics", "privacy"} & values.keys():
            raise InputError(f"controls: `{arm}` has the key `{min(taken)}`, which is the controls' own. Take it out.")
        own = {
            "name": f"{self.name}_{arm}",
            "statistics": self.statistics.model_dump(),
            "privacy": self.privacy.model_dump(),
        }
        return validate(Study, values | own, f"controls: {arm}")

    def studies(self) -> dict[str, Study]:
        """All arms; raises InputError where they cannot be compared."""
        studies = {arm: self.study(arm) for arm in ARMS}
        _check_models({arm: study.models for arm, study in studies.items()})
        _check_cohorts(studies)
        for arm in POSITIVE:
            if self.task not in studies[arm].tasks:
                raise InputError(f"controls: `{arm}` has not the task {self.task!r}, which is compared. Add it.")
        return studies

    @model_validator(mode="after")
    def _bars(self) -> Self:
        if self.bars.stretch < self.bars.recovered:
            raise ValueError(f"`bars.stretch` ({self.bars.stretch:g}) is less than `bars.recovered`")
        return self


def _check_cohorts(studies: Mapping[str, Study]) -> None:
    """Cohorts of which what is compared, and nothing else, differs; raises InputError."""
    made, rest = {}, {}
    for arm, study in studies.items():
        if study.simulate is None:
            raise InputError(f"controls: `{arm}` has no `simulate`, and so no truth. Give it a cohort.")
        source = f"controls: {arm}: simulate.parameters"
        made[arm] = parameters_of(study.simulate.preset, study.simulate.parameters, source)
        alike = study.model_dump(exclude={"name", "models", "simulate"})
        rest[arm] = study.simulate.subjects, study.simulate.seed, alike
    shown = {"cause": made["hidden"].cause.model_copy(update={"shown": True})}
    steady = {"progression": made["steady"].progression}
    for arm, other, same_cohort, differ in (
        ("hidden", "far", made["hidden"].model_copy(update=shown) == made["far"], "`cause.shown`"),
        ("progressing", "steady", made["progressing"].model_copy(update=steady) == made["steady"], "`progression`"),
    ):
        if not same_cohort or rest[arm] != rest[other] or made[arm] == made[other]:
            raise InputError(
                f"controls: cohorts of `{arm}` and `{other}` must differ in {differ}, and in nothing else: not in seed "
                "or size, nor in any key of the study but `models`."
            )
    for arm in LEVELS:
        planted = made[arm].levels
        if planted is None or f"{planted.property}_levels" != arm:
            raise InputError(f"controls: `{arm}` must plant `levels` of the property {arm.removesuffix('_levels')}.")
    short, long = contexts(studies["far"].models)
    cause = made["far"].cause
    if not short <= cause.distance_tokens < cause.distance_tokens + cause.events < long:
        raise InputError(
            f"controls: `far` plants {cause.events:,} events at a distance of {cause.distance_tokens:,}, which must "
            f"lie between its context lengths, {short:,} and {long:,} tokens."
        )


def _check_models(models: Mapping[str, Sequence[str]]) -> None:
    """Models that say what each arm is for; raises InputError."""
    short, long = contexts(models["far"])
    too_short = set(by_context(models["far"], short))
    pairs = "a model of both the shortest and the longest context of `far`, which must differ"
    for arm, is_enough, needed in (
        ("far", both_contexts(models["far"], short, long), pairs),
        ("near", both_contexts(models["near"], short, long), pairs),
        ("hidden", too_short <= set(models["hidden"]), "`far`'s models of the short context"),
        ("needle", by_context(models["needle"], long), "a model of `far`'s long context"),
        ("steady", set(models["steady"]) == set(models["progressing"]), "the models of `progressing`"),
    ):
        if not is_enough:
            raise InputError(f"controls: `{arm}` needs {needed}, or there is nothing to compare.")


def compared(arm: str, study: Study, results: Path) -> list[Path]:
    """What is compared of an arm; `results` is the folder of its study's results."""
    if arm in LEVELS:
        return [results / "robustness" / "properties"]
    if arm in PROGRESSION:
        return [results / "robustness" / "perplexity" / model for model in study.models]
    return [results / "probes" / model for model in (*study.models, COUNTS)]


def contexts(models: Sequence[str]) -> tuple[int, int]:
    """The shortest and the longest context length of `models`."""
    lengths = [ModelId.parse(model).context for model in models]
    return min(lengths), max(lengths)


def by_context(models: Sequence[str], context: int) -> list[str]:
    """The models of one context length."""
    return [model for model in models if ModelId.parse(model).context == context]


def both_contexts(models: Sequence[str], short: int, long: int) -> list[tuple[str, str]]:
    """Pairs of models that differ in their context alone, of the two lengths, the shorter one first."""
    pairs = [(re.sub(rf"-{long}(?=-s|$)", f"-{short}", model), model) for model in by_context(models, long)]
    return [pair for pair in pairs if pair[0] in models and short < long]
