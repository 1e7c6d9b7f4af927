"""Verbs on timelines: tokenize, and its four steps for clusters: count, fit, encode, gather."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ehrctx.cli.datasets import Profile, profile_for, tell_files
from ehrctx.cli.verbs import (
    Data,
    Out,
    SplitsFile,
    StudyFile,
    app,
    check_inputs,
    print_facts,
    privacy_of,
    read_study,
)

if TYPE_CHECKING:
    from ehrctx.study import Privacy

Tokenizer = Annotated[
    str | None,
    typer.Option(help="a spec in tokenizers/, or the path of one; clmbr, or that of --vocabulary, if left out"),
]
Vocabulary = Annotated[
    Path | None,
    typer.Option(help="apply this vocabulary instead of fitting one: folder of timelines, or of an exported model"),
]
Adapt = Annotated[
    bool, typer.Option("--adapt", help="read codes that --vocabulary has not as their parents, or by their description")
]
Extend = Annotated[int, typer.Option(help="add so many tokens, for the best entries of codes that it has not", min=0)]
Threads = Annotated[int, typer.Option(help="pieces of the data set that are worked on at a time", min=1)]
Fitted = Annotated[Path, typer.Option(help="folder that `ehrctx fit` wrote")]


def _existing(vocabulary: Path | None, adapt: bool, extend: int) -> Any:
    from ehrctx.errors import InputError
    from ehrctx.timelines.build import Existing

    if vocabulary is None and (adapt or extend):
        raise InputError("--adapt and --extend go with --vocabulary. Give the vocabulary of another site.")
    return None if vocabulary is None else Existing(vocabulary, adapt, extend)


def _print_timelines(facts: dict[str, Any], out: Path, privacy: Privacy) -> None:
    """The facts, and what became of the events of each code system."""
    from ehrctx.timelines.coverage import report

    print_facts({name: fact for name, fact in facts.items() if name != "events_by_system"}, privacy)
    text, warning = report(out, privacy)
    typer.echo(text)
    if (out / "mapping.parquet").is_file():
        from ehrctx.timelines.adaptation import read_unmapped

        typer.echo(read_unmapped(out, privacy))
    if warning:
        typer.echo(warning, err=True)


@app.command()
def tokenize(
    data: Data,
    splits: SplitsFile,
    out: Out,
    tokenizer: Tokenizer = None,
    profile: Profile = None,
    threads: Threads = 2,
    vocabulary: Vocabulary = None,
    adapt: Adapt = False,
    extend: Extend = 0,
    study: StudyFile = None,
) -> None:
    """Fit the vocabulary on the train split and turn every subject's events into an integer timeline."""
    from ehrctx.timelines.build import build_timelines

    whole, existing = read_study(study), _existing(vocabulary, adapt, extend)
    check_inputs(whole, splits)
    tell_files(data)
    facts = build_timelines(
        data, profile_for(data, profile), splits, tokenizer, out, threads, existing, privacy_of(whole)
    )
    _print_timelines(facts, out, privacy_of(whole))


@app.command()
def count(
    data: Data,
    splits: SplitsFile,
    out: Out,
    part: Annotated[str, typer.Option(help="which part of the data set: 2-of-8")],
    profile: Profile = None,
    threads: Threads = 2,
    study: StudyFile = None,
) -> None:
    """Step 1 of tokenize on a cluster: one part's events as integers, and their statistics; of any tokenizer."""
    from ehrctx.timelines.parts import count_part

    whole = read_study(study)
    check_inputs(whole, splits)
    privacy = privacy_of(whole)
    print_facts(count_part(data, profile_for(data, profile), splits, part, out, threads, privacy), privacy)


@app.command()
def fit(
    data: Data,
    splits: SplitsFile,
    counted: Annotated[list[Path], typer.Option(help="folders that `ehrctx count` wrote, of all parts; repeat")],
    out: Out,
    tokenizer: Tokenizer = None,
    profile: Profile = None,
    vocabulary: Vocabulary = None,
    adapt: Adapt = False,
    extend: Extend = 0,
    study: StudyFile = None,
) -> None:
    """Step 2: the vocabulary, fitted on the train split of all parts."""
    from ehrctx.timelines.parts import fit_parts

    privacy, existing = privacy_of(read_study(study)), _existing(vocabulary, adapt, extend)
    print_facts(fit_parts(data, profile_for(data, profile), splits, tokenizer, counted, out, existing), privacy)


@app.command()
def encode(
    data: Data,
    splits: SplitsFile,
    counted: Annotated[Path, typer.Option(help="folder that `ehrctx count` wrote")],
    vocabulary: Fitted,
    out: Out,
    profile: Profile = None,
    threads: Threads = 2,
    study: StudyFile = None,
) -> None:
    """Step 3: one part's tokens."""
    from ehrctx.timelines.parts import encode_part

    privacy = privacy_of(read_study(study))
    print_facts(encode_part(data, profile_for(data, profile), splits, counted, vocabulary, out, threads), privacy)


@app.command()
def gather(
    data: Data,
    splits: SplitsFile,
    vocabulary: Fitted,
    encoded: Annotated[list[Path], typer.Option(help="folders that `ehrctx encode` wrote, of all parts; repeat")],
    out: Out,
    profile: Profile = None,
    study: StudyFile = None,
) -> None:
    """Step 4: the timelines of all parts, in one folder."""
    from ehrctx.timelines.parts import gather_parts

    privacy = privacy_of(read_study(study))
    facts = gather_parts(data, profile_for(data, profile), splits, vocabulary, encoded, out)
    _print_timelines(facts, out, privacy)


@app.command()
def show(
    subject: Annotated[int, typer.Argument(help="subject_id")],
    timelines: Annotated[Path, typer.Option(help="folder that `ehrctx tokenize` wrote")],
    first: Annotated[int, typer.Option(help="how many tokens from the beginning; all if left out", min=1)] = 2**31,
) -> None:
    """Print one subject's timeline: when, which token, what it means. It is a patient's record: mind who reads it."""
    from ehrctx.timelines.show import show as text_of

    typer.echo(text_of(timelines, subject, first))
