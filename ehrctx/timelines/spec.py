"""What a tokenizer spec (`tokenizers/*.yaml`) may choose. `tokenizers/README.md` shows what each choice does."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ehrctx.configuration import Config, find

SPECS = Path("tokenizers")
# In this order they are the first token ids of every vocabulary.
SPECIAL_TOKENS = ("[BOS]", "[EOS]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
BOS, EOS, UNK, SEP, PAD, CLS, MASK = range(len(SPECIAL_TOKENS))


class TimeTokens(Config):
    """Artificial time tokens, as CEHR-BERT and Context Clues have them; thresholds in days."""

    weeks_from: int = Field(7, ge=1, description="shorter gaps are named by the day")
    months_from: int = Field(28, ge=1, description="shorter ones by the week: days // 7")
    long_term_from: int = Field(365, ge=1, description="shorter ones by the month: days // 30; longer ones alike")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.weeks_from <= self.months_from <= self.long_term_from:
            raise ValueError(
                f"weeks_from ({self.weeks_from}), months_from ({self.months_from}) and long_term_from "
                f"({self.long_term_from}) must not fall"
            )
        return self


class RollUp(Config):
    """Rare codes become their nearest parent that is not rare."""

    fewer_than: int = Field(20, ge=1, description="events of the train split that make a code rare")


class TokenizerSpec(Config):
    """A declarative tokenizer: which events become which tokens. All choices combine, but where a check says so."""

    name: str
    description: str = ""
    ranking: Literal["entropy", "count"] = Field(
        "entropy",
        description="which entries fill the vocabulary: the smallest p ln p + (1-p) ln(1-p), or the most events",
    )
    weights: Literal["subject", "event"] = Field(
        "subject", description="what counts the same in p and in quantiles: every subject, or every event"
    )
    vocabulary_size: int = Field(39_818, gt=len(SPECIAL_TOKENS), description="the seven special tokens included")
    bins: int = Field(10, ge=0, description="weighted quantile bins of a numeric code and unit; 0 ignores values")
    values: Literal["joined", "separate"] = Field(
        "joined", description="a value and its code are one token, or a code's token and then a quantile's"
    )
    texts: bool = Field(True, description="a code with a text is an entry of its own; false ignores texts")
    descriptions: bool = Field(False, description="codes are spelled in word pieces of their descriptions")
    roll_up: RollUp | None = Field(None, description="what becomes of rare codes, if the data set names parents")
    unknown: Literal["drop", "unk"] = Field("drop", description="what an event outside the vocabulary becomes")
    time_tokens: TimeTokens | None = Field(None, description="a token for the days since the event before")
    visit_tokens: bool = Field(False, description="[VISIT START] before admissions and [VISIT END] after discharges")
    static_prefix: bool = Field(True, description="static events (sex, race) open every window, or none")
    age_bands: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (), description="in years, rising: every window also opens with the age at its first event"
    )
    least_coverage: float = Field(0.9, ge=0, le=1, description="warns if a smaller share of events becomes a token")

    @field_validator("age_bands")
    @classmethod
    def _rising(cls, bands: tuple[int, ...]) -> tuple[int, ...]:
        if any(a >= b for a, b in pairwise(bands)):
            raise ValueError(f"{', '.join(map(str, bands))} do not rise; write each once, in order")
        return bands

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bins == 1:
            raise ValueError("`bins: 1` holds every value; write 0 to ignore values, or 2 and more")
        if self.descriptions and self.bins and self.values == "joined":
            raise ValueError("word pieces name no values: with `descriptions`, write `values: separate` or `bins: 0`")
        if self.descriptions and self.roll_up:
            raise ValueError("with `descriptions` no code is rare: leave out `roll_up`")
        n_fixed = len(fixed_tokens(self))
        if self.vocabulary_size <= n_fixed:
            raise ValueError(f"`vocabulary_size` must be more than the {n_fixed} tokens that the spec has in any case")
        return self


FIXED_KINDS = ("special", "visit", "time", "age", "quantile")
# A token whose meaning the spec alone says: its kind, its name, and the range [lower, upper) that it stands for.
Fixed = tuple[str, str, float | None, float | None]


def _gaps(chosen: TimeTokens) -> list[Fixed]:
    """One token for each range of whole days."""
    names = [f"[DAY {day}]" for day in range(1, chosen.weeks_from)]
    names += [f"[WEEK {max(1, day // 7)}]" for day in range(chosen.weeks_from, chosen.months_from)]
    names += [f"[MONTH {max(1, day // 30)}]" for day in range(chosen.months_from, chosen.long_term_from)]
    starts = [day for day, name in enumerate(names, 1) if day == 1 or name != names[day - 2]]
    bounds = [*starts, chosen.long_term_from]
    found: list[Fixed] = [("time", names[a - 1], float(a), float(b)) for a, b in pairwise(bounds)]
    return [*found, ("time", "[LONG TERM]", float(chosen.long_term_from), float("inf"))]


def _ages(bands: tuple[int, ...]) -> list[Fixed]:
    bounds = [0, *bands]
    names = {a: f"[AGE {a}]" if b == a + 1 else f"[AGE {a}-{b - 1}]" for a, b in pairwise(bounds)}
    found: list[Fixed] = [("age", names[a], float(a), float(b)) for a, b in pairwise(bounds)]
    return [*found, ("age", f"[AGE {bounds[-1]}+]", float(bounds[-1]), float("inf"))]


def fixed_tokens(spec: TokenizerSpec) -> list[Fixed]:
    """The first tokens of a vocabulary, in order of their ids: special ones, visits, times, ages, quantiles."""
    found: list[Fixed] = [("special", name, None, None) for name in SPECIAL_TOKENS]
    if spec.visit_tokens:
        found += [("visit", "[VISIT START]", None, None), ("visit", "[VISIT END]", None, None)]
    if spec.time_tokens:
        found += _gaps(spec.time_tokens)
    if spec.age_bands:
        found += _ages(spec.age_bands)
    if spec.values == "separate":
        found += [("quantile", f"[Q{i}]", None, None) for i in range(1, spec.bins + 1)]
    return found


def find_spec(name_or_path: str) -> Path:
    """`clmbr` -> `tokenizers/clmbr.yaml`; a path stays a path."""
    return find(name_or_path, SPECS, "tokenizer")
