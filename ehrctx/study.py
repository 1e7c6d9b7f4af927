"""The study file: every choice a run makes, typed, validated before anything runs, and frozen.

Snakemake owns files and order, the study owns choices. A wrong key is refused with the nearest right one. Each stage is
handed its own section alone (`Study.section`), so changing one key re-runs only what depends on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from shlex import quote
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from ehrctx.configuration import Config
from ehrctx.errors import nearest

ARCHITECTURES = ("gpt", "llama", "mamba", "mamba2", "hyena")
SIZES = ("tiny", "small", "paper")
MODEL_ID = re.compile(r"(?P<arch>[a-z0-9]+)-(?P<size>[a-z]+)-(?P<context>[0-9]+)(?:-s(?P<seed>[0-9]+))?")
MINIMUM_CONTEXT = 8
LARGEST_SEED = 2**31 - 1  # what every library here takes


class ModelId(Config):
    """`<arch>-<size>-<context>[-s<seed>]`, the name of a model everywhere: `mamba-tiny-4096`."""

    arch: str
    size: str
    context: int
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        match = MODEL_ID.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is not <arch>-<size>-<context>[-s<seed>], as in 'mamba-tiny-4096'")
        parts = match.groupdict()
        for part, known in (("arch", ARCHITECTURES), ("size", SIZES)):
            if parts[part] not in known:
                raise ValueError(f"{text!r}: no {part} {parts[part]!r}; {nearest(parts[part], known)}")
        if int(parts["seed"] or 0) > LARGEST_SEED:
            raise ValueError(f"{text!r}: a seed of at most {LARGEST_SEED:,} is needed")
        if int(parts["context"]) < MINIMUM_CONTEXT:
            raise ValueError(f"{text!r}: a context length of at least {MINIMUM_CONTEXT} tokens is needed")
        return cls(arch=parts["arch"], size=parts["size"], context=int(parts["context"]), seed=int(parts["seed"] or 0))


def _model_id(text: str) -> str:
    ModelId.parse(text)
    return text


class Simulation(Config):
    """The embedded cohort (`ehrctx simulate`)."""

    subjects: int = Field(2000, ge=10, description="how many subjects")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="the same seed gives the same cohort, byte for byte")
    preset: str = Field("published", description="a cohort in pipelines/cohorts/, or the path of one")
    parameters: dict[str, Any] = Field({}, description="what differs from the preset, as a preset's file has it")


class OmopOptions(Config):
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


class EhrshotSource(Config):
    """EHRSHOT's CSV release, which the workflow imports."""

    format: Literal["ehrshot"]
    folder: str = Field(description="into which the release was unpacked")
    concepts: str | None = Field(None, description="an OMOP vocabulary from Athena, which describes the codes")


class FemrSource(Config):
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


class Rope(Config):
    """Rotary positions of Llama: pair i of a head of width d turns by theta^(-2 i / d) per token."""

    theta: float | None = Field(
        None,
        gt=1,
        allow_inf_nan=False,
        description="the base: larger turns more slowly; 500,000, or the base of the start, if left out",
    )
    scaling: Literal["none", "linear", "yarn"] = Field(
        "none",
        description="linear: every turn is divided by the factor (arXiv 2306.15595); yarn: only turns too slow to "
        "come round within the original context, and attention is sharpened (arXiv 2309.00071)",
    )
    factor: float = Field(1.0, ge=1, allow_inf_nan=False, description="by how much the original context is stretched")
    original_context: int | None = Field(
        None,
        ge=MINIMUM_CONTEXT,
        description="the context before stretching, in tokens: models of it or less are not stretched; if left out, "
        "the model's own divided by the factor, or that of the start",
    )

    def original(self, context: int) -> int:
        """The context before stretching, in tokens, of a model whose context length is `context`."""
        return self.original_context or round(context / self.factor)

    def of(self, context: int) -> Self:
        """What it says to a model of `context` tokens: no stretching where the original context suffices."""
        if self.original_context is None or context > self.original_context:
            return self
        return self.model_copy(update={"scaling": "none", "factor": 1.0, "original_context": None})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.scaling == "none") != (self.factor == 1):
            raise ValueError(
                f"scaling {self.scaling!r} does not go with factor {self.factor:g}. Give `scaling` (linear or "
                f"yarn) and a `factor` above 1 together, or neither"
            )
        if self.original_context is not None and self.scaling == "none":
            raise ValueError(
                "`original_context` goes with a scaling. Give `scaling` and `factor` as well, or leave it out"
            )
        return self


class Pretraining(Config):
    """Next-token pretraining. All amounts are in tokens that are not padding, so context lengths compare."""

    # How a training is run, not what it learns: changing one trains nothing again.
    RUNNING: ClassVar[tuple[str, ...]] = (
        "checkpoint_seconds", "keep_every_tokens", "threads", "devices", "strategy", "compile",
    )  # fmt: skip
    # What one architecture alone reads: changing it trains no other again.
    OF_ONE: ClassVar[dict[str, str]] = {"rope": "llama", "scan": "mamba"}

    tokens: int = Field(2_000_000_000, ge=1, description="the whole budget")
    tokens_per_step: int = Field(65_536, ge=1, description="tokens of one optimizer step")
    batch_tokens: int = Field(16_384, ge=1, description="tokens of one forward pass, padding included: sets memory")
    pool_windows: int = Field(
        20_000, ge=1, description="windows sorted by length at a time: 20,000 leave < 2 % padding"
    )
    learning_rate: float = Field(2e-4, gt=0)
    final_learning_rate: float = Field(1e-5, ge=0)
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the tokens over which the rate rises")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    weight_decay: float = Field(0.1, ge=0, description="on matrices only: no bias, gain or state decays")
    gradient_clip: float = Field(1.0, gt=0)
    validations: int = Field(
        4, ge=1, description="whole-split validations, evenly over the tokens, the last at the end"
    )
    weights: Literal["last", "best"] = Field(
        "last", description="which the model ends with: those of the last step, or of the lowest validation loss"
    )
    on_loss_spike: Literal["warn", "skip", "stop"] = Field(
        "warn", description="a step whose loss leaps far above the last 50: say so, leave its update out, or end"
    )
    checkpoint_seconds: float = Field(60.0, ge=0, description="what a kill can cost at most")
    keep_every_tokens: int | None = Field(
        None, ge=1, description="also keep the model every so many tokens, beside the checkpoint"
    )
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "auto", description="auto: bf16 on CUDA, float32 on CPU"
    )
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(2, ge=1, description="CPU threads of one training process or embedding job")
    devices: int = Field(1, ge=1, description="processes that share one training, one per GPU")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="what several devices share: batches alone, or weights and optimizer as well"
    )
    compile: bool = Field(False, description="torch.compile: minutes at the start, faster steps on a GPU")
    scan: Literal["auto", "mamba_ssm", "triton", "numba", "torch"] = Field(
        "auto", description="who computes Mamba's scan; auto: the best that the device has"
    )
    rope: Rope = Field(Rope(), description="rotary positions of Llama models; changing it trains no other again")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="added to the model's own seed (-s1, -s2 …)")

    def without_effect(self, model: ModelId) -> set[str]:
        """The keys on which what `model` learns does not depend."""
        return {*self.RUNNING, *(key for key, arch in self.OF_ONE.items() if arch != model.arch)}

    def check_context(self, model: ModelId) -> None:
        """Raises ValueError if one window is more than a step: steps, and with them the budget, would grow with it."""
        if model.context > self.tokens_per_step:
            raise ValueError(
                f"a context length of {model.context:,} is more than pretraining.tokens_per_step "
                f"({self.tokens_per_step:,}); raise tokens_per_step"
            )
        if model.arch == "llama" and self.rope.original(model.context) < MINIMUM_CONTEXT:
            raise ValueError(
                f"a context length of {model.context:,} divided by pretraining.rope.factor ({self.rope.factor:g}) is "
                f"less than {MINIMUM_CONTEXT} tokens; lower the factor"
            )


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


class Study(Config):
    """One study: a data set, a tokenizer, the models and the tasks that compare them."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", description="names results/<name> and the experiment")]
    data: str | None = Field(None, description="a MEDS data set's folder; or else `simulate` or `source`")
    simulate: Simulation | None = None
    source: Source | None = Field(None, description="a data set of another format, imported first")
    profile: str = Field("simulated", description="how the data set writes visits, units, deaths")
    splits: Literal["given"] | HashSplits = "given"
    tokenizer: str = Field("clmbr", description="a spec in tokenizers/, or the path of one")
    models: tuple[Annotated[str, AfterValidator(_model_id)], ...] = Field(min_length=1)
    start_from: dict[str, str] = Field(
        {}, description="model -> whose weights it starts from: another model of the study, or a folder"
    )
    tasks: tuple[str, ...] = Field(
        min_length=1, description="shipped definitions, or paths of your own, or of label files"
    )
    labels: Labels = Labels()
    ontology: str | None = Field(
        None, description="folder of an OMOP vocabulary from Athena, which says what lies below the tasks' concepts"
    )
    pretraining: Pretraining = Pretraining()
    embedding: Embedding = Embedding()
    probe: Probe = Probe()
    statistics: Statistics = Statistics()
    perplexity: Perplexity = Perplexity()
    privacy: Privacy = Privacy()
    published: Literal["context_clues"] | None = Field(
        None, description="whose published figures the report prints beside the study's own; they are of EHRSHOT"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if [self.data, self.simulate, self.source].count(None) != 2:
            raise ValueError("give one of `data` (a MEDS folder), `simulate` and `source`, not several and not none")
        if self.ontology is not None and self.labels.given is not None:
            raise ValueError(
                "`ontology` says which codes belong to a task, but `labels.given` are made already. Leave one out"
            )
        for key in ("models", "tasks"):
            names = getattr(self, key)
            if len(set(names)) != len(names):
                raise ValueError(f"`{key}` names {max(names, key=names.count)!r} twice")
        for model in self.models:
            self.pretraining.check_context(ModelId.parse(model))
        self._check_perplexity()
        self._check_starts()
        return self

    def _check_perplexity(self) -> None:
        """What a static prefix takes of a window, and how many positions a start knows, the job alone can check."""
        window = self.perplexity.window or 0
        positions = {model: ModelId.parse(model).context for model in self.models if model.startswith("gpt-")}
        few = {model: n for model, n in positions.items() if n < window and model not in self.start_from}
        if few:
            raise ValueError(
                f"`perplexity.window` is {window:,}, more than the positions that {', '.join(few)} will learn; "
                f"use at most {min(few.values()):,}, or leave it out"
            )
        stride = self.perplexity.stride or 0
        windows = {model: self.perplexity.window or ModelId.parse(model).context for model in self.models}
        short = {model: window for model, window in windows.items() if window <= stride}
        if short:
            raise ValueError(
                f"`perplexity.stride` is {stride:,}, more than a window of "
                f"{', '.join(f'{model} ({window:,} tokens)' for model, window in short.items())} holds besides its "
                f"first token; use less than {min(short.values()):,}"
            )

    def _check_starts(self) -> None:
        for model, start in self.start_from.items():
            if model not in self.models:
                raise ValueError(
                    f"`start_from` names {model!r}, which is not in `models`; {nearest(model, self.models)}"
                )
            if start not in self.models:
                if MODEL_ID.fullmatch(start):
                    raise ValueError(
                        f"`start_from`: {model} starts from {start!r}, which is not in `models`; add it there, "
                        f"or write './{start}' if it is a folder"
                    )
                continue
            new, old = ModelId.parse(model), ModelId.parse(start)
            if (new.arch, new.size) != (old.arch, old.size):
                raise ValueError(f"`start_from`: {model} cannot start from {start}, which has another shape")
            if new.arch == "gpt" and new.context > old.context:
                raise ValueError(
                    f"`start_from`: {model} cannot start from {start}: a gpt knows no positions beyond those it learned"
                )
            chain = [model]
            while start in self.start_from:
                if start in chain:
                    raise ValueError(f"`start_from` goes in a circle: {' from '.join([*chain, start])}")
                chain.append(start)
                start = self.start_from[start]

    def start_of(self, model: str, trained: str) -> str | None:
        """The folder whose weights `model` starts from, if any; `trained` is the folder of the study's own models."""
        start = self.start_from.get(model)
        return f"{trained}/{start}" if start in self.models else start

    def import_options(self) -> str:
        """The keys of `source` as options of `ehrctx import <format>`."""
        chosen = self.source.model_dump(exclude={"format", "folder"}) if self.source else {}
        given = {key.replace("_", "-"): quote(value) for key, value in chosen.items() if value is not None}
        return " ".join(f"--{key} {value}" for key, value in given.items())

    def section(self, key: str, without: Collection[str] = ()) -> str:
        """One section as JSON text: what a stage is handed, and what Snakemake watches for changes.

        `without` leaves out keys on which the stage's result does not depend.
        """
        value = getattr(self, key)
        if isinstance(value, Config):
            value = {name: v for name, v in value.model_dump(mode="json").items() if name not in without}
        return json.dumps(value, sort_keys=True)

    def running(self, threads: int) -> str:
        """How a training is run, as JSON text; its processes share `threads`, which may be fewer than it asks for."""
        value = self.pretraining.model_dump(mode="json", include=set(Pretraining.RUNNING))
        return json.dumps(value | {"threads": max(1, threads // self.pretraining.devices)}, sort_keys=True)
