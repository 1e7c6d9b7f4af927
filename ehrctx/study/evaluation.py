"""Keys on what models are judged by: representations, heads, statistics, perplexity, and what may be shown."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from ehrctx.configuration import Config
from ehrctx.study.model_id import LARGEST_SEED


class Embedding(Config):
    """What represents a history at a prediction time."""

    pooling: Literal["last", "mean"] = Field(
        "last", description="the last token's state, or the mean of the states of the window's tokens, [BOS] included"
    )
    windows: Literal["exact", "grid"] = Field(
        "exact",
        description="of histories that outgrow the context: the most recent tokens that fit, or at least three "
        "quarters of them, beginning on a grid, so that neighbouring labels share a pass",
    )


class Forest(Config):
    """Grid of the random forest on counts (the study's)."""

    trees: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 20, 50, 100, 300), min_length=1)
    depth: tuple[Annotated[int, Field(ge=1)], ...] = Field((3, 5, 10, 20, 50), min_length=1)


class Boosting(Config):
    """Grid of LightGBM on counts (the study's)."""

    depth: tuple[int, ...] = Field((3, 6, -1), min_length=1, description="-1: no limit")
    learning_rate: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.02, 0.1, 0.5), min_length=1)
    leaves: tuple[Annotated[int, Field(ge=2, le=131_072)], ...] = Field((10, 25, 100), min_length=1)
    rounds: int = Field(100, ge=1)


Head = Literal["logistic_regression", "random_forest", "lightgbm"]


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"names {max(values, key=values.count)!r} twice")
    return values


class FewShot(Config):
    """Heads that learn from k labels of each class; k of each class of the tuning split choose their settings."""

    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(_each_once)] = Field(
        (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128), min_length=1, description="labels per class (the study's)"
    )
    replicates: int = Field(5, ge=1, description="draws of each k; that of a larger k contains that of a smaller one")
    draw: Literal["labels", "subjects"] = Field(
        "labels", description="subjects: at most one label of a subject and class, unless the class is filled up"
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    shots: str | None = Field(
        None, description="a folder of EHRSHOT's draws, <task>/all_shots_data.json, to use instead"
    )
    baselines: Annotated[tuple[Head, ...], AfterValidator(_each_once)] = Field(
        ("logistic_regression",), description="heads on counts that are fitted few-shot as well; [] for none"
    )

    @model_validator(mode="after")
    def _drawn_or_given(self) -> Self:
        if self.shots is not None and self.draw == "subjects":
            raise ValueError("`draw` says how labels are drawn, but `shots` are draws already. Leave one out")
        return self


class Probe(Config):
    """Heads: logistic regression on frozen representations; the same and tree ensembles on counts."""

    regularization: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0, 1e2, 1e4),
        min_length=1,
        description="values of C; the tuning split's AUROC chooses",
    )
    max_iterations: int = Field(1000, ge=1)
    baselines: Annotated[tuple[Head, ...], AfterValidator(_each_once)] = Field(
        ("logistic_regression", "random_forest", "lightgbm"), min_length=1, description="heads on counts"
    )
    forest: Forest = Forest()
    boosting: Boosting = Boosting()
    few_shot: FewShot | None = Field(None, description="heads fitted on few labels, beside those fitted on all")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="of the forest and of LightGBM")


class Statistics(Config):
    """Patient-level bootstrap, and the risks from which on one would act."""

    replicates: int = Field(2000, ge=20)
    level: float = Field(0.95, gt=0, lt=1)
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        min_length=1,
        description="of net benefit, rising",
    )

    @field_validator("thresholds")
    @classmethod
    def _rising(cls, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        if list(thresholds) != sorted(set(thresholds)):
            raise ValueError(f"{', '.join(f'{t:g}' for t in thresholds)} do not rise; write each once, in order")
        return thresholds


class Perplexity(Config):
    """Perplexity by token position, on held-out subjects."""

    # How the table is cut from the tokens' losses: changing one scores no token again.
    TABLE: ClassVar[tuple[str, ...]] = ("bins_per_octave", "minimum_tokens", "minimum_subjects")

    window: int | None = Field(None, ge=8, description="tokens of a window; the model's context length if left out")
    stride: int | None = Field(
        None, ge=1, description="tokens scored per window after the first; half a window if left out (published: 32)"
    )
    subjects: int = Field(20_000, ge=1, description="at most so many subjects, drawn once")
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    bins_per_octave: int = Field(2, ge=1, description="log-spaced bins of position")
    minimum_tokens: int = Field(30, ge=1, description="a bin with fewer tokens is left out")
    minimum_subjects: int = Field(10, ge=1, description="a bin of fewer subjects is left out")


class Privacy(Config):
    """What a table may say about few people."""

    minimum_count: int = Field(10, ge=1, description="smaller counts of subjects or labels print as '<10'")

    def shown(self, count: int) -> str:
        """A count as people may see it."""
        return f"<{self.minimum_count}" if 0 < count < self.minimum_count else f"{count:,}"
