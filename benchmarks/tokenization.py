"""Tokenizing: fit and apply, from parquet to the store, against a loop over events and against polars alone.

The loop is the reference's logic: an event becomes the name of a token (a code's bins are tried one after another), and
the names of a subject become ids in transformers' tokenizer in Python; and, to see what is whose, the same with a
dictionary for the ids. Its events are in memory as Python objects: the rate is that of applying alone, on a million of
them. The polars variant reads, fits exact quantiles and applies them by joins, in memory, and writes the tokens. Each
case runs in a process of its own, whose most resident memory is told (Python and its libraries are some 450 MiB of it);
what such a process does once, to load its compiled loops, takes about a second and is no part of the rate.

Not named tokenize.py: Python would take that for its own module of this name, in every benchmark beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import synthetic_events
from measure import line, options

THREADS = 2
LOOPED = 1_000_000


@dataclass
class Event:
    """As the reference has them: a record whose value is a number, a text, or None."""

    code: str
    value: float | str | None
    unit: str | None


class Loop:
    """The reference's logic: an event becomes the name of a token, a code's ranges tried one after another."""

    def __init__(self, vocabulary: pl.DataFrame) -> None:
        self.tokens: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.ids: dict[str, int] = {}
        for row in vocabulary.iter_rows(named=True):
            name = {
                "code": row["code"],
                "text": f"{row['code']} || {row['text']}",
                "number": f"{row['code']} || {row['unit']} || {row['lower']} - {row['upper']}",
            }[row["kind"]]
            says = {"unit": row["unit"], "from": row["lower"], "to": row["upper"], "texts": [row["text"]]}
            of_kind = self.tokens.setdefault(row["code"], {}).setdefault(row["kind"], [])
            of_kind.append({"token": name, "says": says})
            self.ids[name] = row["token"]

    def name_of(self, event: Event) -> str | None:
        if event.code not in self.tokens:
            return None
        of_code = self.tokens[event.code]
        if "number" in of_code and event.value is not None and isinstance(event.value, float | int):
            for entry in of_code["number"]:
                says = entry["says"]
                if says["unit"] == event.unit and says["from"] <= event.value < says["to"]:
                    return entry["token"]
        if "text" in of_code and event.value is not None and isinstance(event.value, str) and event.value != "":
            for entry in of_code["text"]:
                if event.value in entry["says"]["texts"]:
                    return entry["token"]
        return of_code["code"][0]["token"] if "code" in of_code else None

    def names_of(self, events: list[Event]) -> list[str]:
        names = []
        for event in events:
            name = self.name_of(event)
            if name is not None:
                names.append(name)
        return names


def reference_tokenizer(ids: dict[str, int]) -> Any:
    """As the reference has it: transformers' tokenizer in Python, whose words are the names of tokens."""
    from transformers import PreTrainedTokenizer

    class Tokenizer(PreTrainedTokenizer):
        def __init__(self) -> None:
            self.names = {number: name for name, number in ids.items()}
            super().__init__(pad_token="[PAD]", unk_token="[UNK]")

        @property
        def vocab_size(self) -> int:
            return len(ids)

        def get_vocab(self) -> dict[str, int]:
            return dict(ids)

        def tokenize(self, text: str, **kwargs: Any) -> list[str]:
            return [text]

        def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
            return [text]

        def _convert_token_to_id(self, token: str) -> int:
            return ids[token]

        def _convert_id_to_token(self, index: int) -> str:
            return self.names[index]

    return Tokenizer()


def ours(data: Path, out: Path) -> float:
    from ehrctx.timelines.build import build_timelines

    def run(data: Path, out: Path) -> float:
        splits, profile = data / "metadata" / "subject_splits.parquet", str(data / "profile.yaml")
        started = time.perf_counter()
        build_timelines(data, profile, splits, "clmbr", out, THREADS)
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory() as place:  # a process loads its compiled loops once, in about a second
        synthetic_events.write(Path(place) / "data_set", 10_000)
        run(Path(place) / "data_set", Path(place) / "out")
    return run(data, out)


def in_polars(data: Path, out: Path) -> float:
    """The same kinds of tokens: ten quantile bins per code and unit, codes and texts; the commonest 39,811."""
    started = time.perf_counter()
    events = pl.read_parquet(data / "data" / "*.parquet")
    train = events.join(pl.read_parquet(data / "metadata" / "*.parquet").filter(split="train"), on="subject_id")
    key = ["code", "unit"]
    numbers = train.filter(pl.col("numeric_value").is_finite())
    edges = numbers.group_by(key).agg(*(pl.col("numeric_value").quantile(i / 10).alias(f"q{i}") for i in range(1, 10)))
    bin_of = pl.sum_horizontal((pl.col("numeric_value") >= pl.col(f"q{i}")).cast(pl.UInt8) for i in range(1, 10))
    binned = events.join(edges, on=key, how="left", nulls_equal=True, maintain_order="left")
    entries = binned.select("subject_id", "time", "code", "unit", text="text_value", bin=bin_of)
    known = entries.join(train.select("subject_id").unique(), on="subject_id", how="semi")
    named = known.group_by("code", "unit", "text", "bin").len().sort("len", descending=True).head(39_811)
    tokens = entries.join(
        named.drop("len").with_row_index("token", offset=7), on=["code", "unit", "text", "bin"], how="left",
        nulls_equal=True, maintain_order="left",
    )  # fmt: skip
    out.mkdir()
    tokens.select("subject_id", "time", "token").drop_nulls("token").write_parquet(out / "tokens.parquet")
    return time.perf_counter() - started


def _looped(data: Path, out: Path, through_transformers: bool) -> float:
    """Applying alone, subject by subject; `out` is a folder of ours, whose vocabulary is applied."""
    vocabulary = pl.read_parquet(out / "vocabulary.parquet")
    loop = Loop(vocabulary.filter(pl.col("kind").is_in(["code", "text", "number"])))
    ids = dict(vocabulary.filter(kind="special").select("code", "token").iter_rows()) | loop.ids
    tokenizer = reference_tokenizer(ids) if through_transformers else None
    rows = pl.read_parquet(sorted((data / "data").glob("*.parquet"))[0]).head(LOOPED)
    columns = ("subject_id", "code", "numeric_value", "text_value", "unit")
    subjects: dict[int, list[Event]] = {}
    for subject, code, value, text, unit in rows.select(columns).iter_rows():
        subjects.setdefault(subject, []).append(Event(code, text if value is None else value, unit))
    started = time.perf_counter()
    n = 0
    for events in subjects.values():
        names = loop.names_of(events)
        if tokenizer is None:
            n += len([ids[name] for name in names])
        elif names:
            asked = {"is_split_into_words": True, "add_special_tokens": False}
            n += len(tokenizer([names], **asked)["input_ids"][0])
    seconds = time.perf_counter() - started
    expected = int(np.load(out / "offsets.npy")[len(subjects)])
    assert n == expected, f"{n:,} tokens in the loop, {expected:,} in the store"
    return seconds


def as_the_reference(data: Path, out: Path) -> float:
    return _looped(data, out, through_transformers=True)


def in_a_loop(data: Path, out: Path) -> float:
    return _looped(data, out, through_transformers=False)


VARIANTS = {"ours": ours, "reference": as_the_reference, "loop": in_a_loop, "polars": in_polars}
BASELINES = {
    "reference": "the reference's loop over events, applying alone",
    "loop": "the same loop with a dictionary for the ids",
    "polars": "polars in memory, fit and apply",
}


def run(variant: str, data: Path, out: Path) -> tuple[float, float]:
    """(seconds, most resident memory in MiB) of a variant in a process of its own."""
    command = [sys.executable, __file__, "--variant", variant, str(data), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{variant} ended with {process.returncode}")
    return float(json.loads(said)), usage.ru_maxrss / 1024


def measure(n_events: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        synthetic_events.write(folder / "data_set", n_events)
        rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
        peaks = dict.fromkeys(VARIANTS, 0.0)
        for turn in range(repeats):
            for name in VARIANTS:
                is_loop = name in ("reference", "loop")
                out = folder / ("ours_0" if is_loop else f"{name}_{turn}")
                seconds, peak = run(name, folder / "data_set", out)
                rates[name].append((min(LOOPED, n_events) if is_loop else n_events) / seconds)
                peaks[name] = max(peaks[name], peak)
        median = {name: float(np.median(found)) for name, found in rates.items()}
        for name, told in BASELINES.items():
            line(
                "tokenize", f"{n_events:,} events, clmbr, {THREADS} threads", "events/s", median["ours"], median[name],
                told, repeats, more_is_better=True, ours_peak_mib=peaks["ours"], baseline_peak_mib=peaks[name],
            )  # fmt: skip


def main() -> None:
    if "--variant" in sys.argv:
        name, data, out = sys.argv[sys.argv.index("--variant") + 1 :]
        print(json.dumps(VARIANTS[name](Path(data), Path(out))))
        return
    is_quick = options(__doc__, runs_on_gpu=False).quick
    for n_events, repeats in ((1_000_000, 3),) if is_quick else ((1_000_000, 5), (10_000_000, 3), (50_000_000, 1)):
        measure(n_events, repeats)


if __name__ == "__main__":
    main()
