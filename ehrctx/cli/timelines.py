"""Verbs on timelines: tokenize."""

from __future__ import annotations

from typing import Annotated

import typer

from ehrctx.cli.verbs import Data, Out, Profile, SplitsFile, app, print_facts


@app.command()
def tokenize(
    data: Data,
    splits: SplitsFile,
    out: Out,
    tokenizer: Annotated[str, typer.Option(help="a spec in tokenizers/, or the path of one")] = "clmbr",
    profile: Profile = "simulated",
    threads: Annotated[int, typer.Option(help="pieces of the data set that are worked on at a time", min=1)] = 2,
) -> None:
    """Fit the vocabulary on the train split and turn every subject's events into an integer timeline."""
    from ehrctx.timelines.build import build_timelines

    print_facts(build_timelines(data, profile, splits, tokenizer, out, threads))
