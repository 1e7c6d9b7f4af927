"""The whole study file."""

from __future__ import annotations

import json
from collections.abc import Collection
from shlex import quote
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ehrctx.configuration import Config
from ehrctx.errors import nearest
from ehrctx.study.data import HashSplits, Labels, Simulation, Source
from ehrctx.study.evaluation import Embedding, Perplexity, Privacy, Probe, Statistics
from ehrctx.study.model_id import MODEL_ID, ModelId, known_model
from ehrctx.study.training import Pretraining


class Study(Config):
    """One study: a data set, a tokenizer, the models and the tasks that compare them."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", description="names results/<name> and the experiment")]
    data: str | None = Field(None, description="a MEDS data set's folder; or else `simulate` or `source`")
    simulate: Simulation | None = None
    source: Source | None = Field(None, description="a data set of another format, imported first")
    profile: str = Field("simulated", description="how the data set writes visits, units, deaths")
    splits: Literal["given"] | HashSplits = "given"
    tokenizer: str = Field("clmbr", description="a spec in tokenizers/, or the path of one")
    models: tuple[Annotated[str, AfterValidator(known_model)], ...] = Field(min_length=1)
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
