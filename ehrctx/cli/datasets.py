"""What verbs on MEDS data sets share: the option --profile, and the warning of files that nobody reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Profile = Annotated[
    str | None,
    typer.Option(help="a profile in pipelines/datasets/, or the path of one; a simulated cohort needs none"),
]


def profile_for(data: Path, profile: str | None) -> str:
    """See `ehrctx.events.profile.profile_for`."""
    from ehrctx.events import profile as profiles

    return profiles.profile_for(data, profile)


def tell_files(data: Path, verbose: bool = False) -> None:
    """Warns of the files in a data set that nobody reads; lists those that are ignored by rule, too, if `verbose`."""
    from ehrctx.events.meds import REMEDY, open_dataset
    from ehrctx.inventory import tell_inventory

    tell_inventory(open_dataset(data).inventory, REMEDY, verbose)
