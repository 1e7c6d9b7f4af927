"""Events and code hierarchies as the reference tokenizer reads them: plain Python, from the rules alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

LONGEST_TEXT = 200  # bytes


class Event(NamedTuple):
    """One event as it is read: units and times as the profile says."""

    time: datetime | None
    code: str
    value: float | None
    text: str | None
    unit: str | None


# ---------------------------------------------------------------------------------------------- reading


@cache
def is_one_of(code: str, patterns: tuple[str, ...]) -> bool:
    return any(code.startswith(p[:-1]) if p.endswith("*") else code == p for p in patterns)


def _unit(row: dict[str, Any], profile: Any) -> str | None:
    stated = row.get(profile.unit_column) if profile.unit_column else None
    if stated:
        return stated
    parts = row["code"].split("//")
    if len(parts) > 2 and is_one_of(row["code"], profile.unit_in_code) and parts[-1] not in ("", "UNK"):
        return parts[-1]
    return None


def _known_at(row: dict[str, Any], profile: Any) -> datetime | None:
    time = row["time"]
    if time is not None and is_one_of(row["code"], profile.date_only) and time == datetime(*time.timetuple()[:3]):
        return time + timedelta(hours=23, minutes=59)
    return time


def subjects_of(rows: Iterable[dict[str, Any]], profile: Any) -> dict[int, list[Event]]:
    """Each subject's events in the total order: static first, then by time, then as in the file."""
    found: dict[int, list[Event]] = {}
    for row in rows:
        value, text = row.get("numeric_value"), row.get("text_value")
        event = Event(_known_at(row, profile), row["code"], value, text, _unit(row, profile))
        found.setdefault(row["subject_id"], []).append(event)
    for events in found.values():
        events.sort(key=lambda e: (e.time is not None, e.time or datetime.min))  # it is stable
    return found


def kind_of(event: Event) -> str:
    if event.value is not None and math.isfinite(event.value):
        return "number"
    return "text" if event.text and len(event.text.encode()) <= LONGEST_TEXT else "code"


def origin_of(events: list[Event], birth: str) -> datetime | None:
    """The first birth, else the first timed event, without the part of its second."""
    timed = [e.time for e in events if e.time is not None]
    births = [e.time for e in events if e.time is not None and e.code == birth]
    first = min(births or timed, default=None)
    return None if first is None else first.replace(microsecond=0)


# ------------------------------------------------------------------------------------------ code hierarchy


def parents_of(code: str, stated: dict[str, list[str]]) -> list[str]:
    found = set(stated.get(code, []))
    for system in ("ICD10CM/", "ICD9CM/"):
        own = code.removeprefix(system)
        if own != code and len(own.replace(".", "")) > 3:
            found.add(system + own[:-1].rstrip("."))
    return sorted(found - {code})


def ancestors_of(code: str, stated: dict[str, list[str]]) -> dict[str, int]:
    """Every ancestor and how many steps it is away; never the code itself."""
    found = {code: 0}
    level = [code]
    while level:
        level = sorted({p for c in level for p in parents_of(c, stated)} - found.keys())
        found |= dict.fromkeys(level, 1 + max(found.values()))
    del found[code]
    return found
