"""Embeddings of 30 labels per subject: shared passes against one pass per label; windows on a grid against exact ones.

Where histories fit the context, rows are compared with those of one padded pass per label, as the reference pays them,
and must agree to 1e-4. Prediction times are drawn evenly over the tokens: labels of one hospital stay lie nearer to one
another, and share more on the grid. One pass per label is made for every third label (`--quick`: for two of a subject).
Tokens passed per label are counted as well: they do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measure import line, medians, options, peak_mib

from ehrctx.models.model import TimelineModel, build_model
from ehrctx.probe.embed import embed_rows, plan_passes, visible_tokens
from ehrctx.study import Embedding, ModelId
from ehrctx.timelines.store import SUBJECT, Timelines
from ehrctx.timelines.windows import Windows, batches_by_budget, pad

CONTEXT, BATCH_TOKENS, VOCABULARY, LABELS, TOLERANCE = 4_096, 8_192, 4_096, 30, 1e-4
PADDED, OWN_LENGTH = "one padded pass per label", "one unpadded pass per label, by length"
FITTING, OUTGROWING = (1_000, 2_000, 3_000, 4_000), (8_192, 10_240, 12_288, 16_384)  # tokens of each subject
GRID = Embedding(windows="grid")


class Rows(NamedTuple):
    """What is embedded: positions of subjects in the store, and prediction times, in order."""

    subjects: np.ndarray
    times: np.ndarray

    def only(self, which: slice) -> Rows:
        return Rows(self.subjects[which], self.times[which])


def timelines_of(lengths: tuple[int, ...]) -> Timelines:
    """Subjects of so many tokens and a static one, one token a minute."""
    rng = np.random.default_rng(0)
    offsets = np.cumsum([0, *(1 + n for n in lengths)]).astype(np.int64)
    subjects = np.zeros(len(lengths), dtype=SUBJECT)
    subjects["subject_id"], subjects["n_static"] = np.arange(len(lengths)), 1
    subjects["origin"] = np.datetime64("2000-01-01", "us")
    minutes = np.concatenate([np.arange(1 + n) for n in lengths])
    tokens = rng.integers(7, VOCABULARY, offsets[-1])
    return Timelines(Path("in memory"), tokens, 60 * minutes, minutes, offsets, subjects, {})


def rows_of(store: Timelines, first: int) -> Rows:
    """LABELS prediction times of each subject, drawn from those at which it has more than `first` timed tokens."""
    rng = np.random.default_rng(1)
    sizes = np.diff(store.offsets) - 1
    seen = np.concatenate([np.sort(first + 1 + rng.choice(n - first, LABELS, replace=False)) for n in sizes])
    subjects = np.repeat(np.arange(len(store)), LABELS)
    return Rows(subjects, store.subjects["origin"][subjects] + seen.astype("timedelta64[m]"))


@torch.no_grad()
def one_pass_per_label(model: TimelineModel, windows: Windows, rows: Rows, is_padded: bool) -> np.ndarray:
    """The last states of each row's own window, padded to the context in batches, or as it is, the shortest first."""
    visible = visible_tokens(windows.timelines, *rows)
    cut = [windows.history(int(s), int(v)) for s, v in zip(rows.subjects, visible, strict=True)]
    lengths = np.array([len(w) for w in cut])
    out = np.empty((len(cut), model.hidden_size), dtype=np.float32)
    passed = np.full(len(cut), windows.context) if is_padded else lengths
    for batch in batches_by_budget(passed, BATCH_TOKENS if is_padded else 1):
        tokens, _ = pad([cut[i] for i in batch])
        if is_padded:
            tokens = np.pad(tokens, ((0, 0), (0, windows.context - tokens.shape[1])))
        states = model.states(torch.from_numpy(tokens))
        out[batch] = states[torch.arange(len(batch)), torch.from_numpy(lengths[batch] - 1)].numpy()
    return out


def shared_passes(
    model: TimelineModel, windows: Windows, rows: Rows, settings: Embedding | None = None
) -> tuple[np.ndarray, int]:
    """The rows, and how many tokens were passed through."""
    out = np.empty((len(rows.subjects), model.hidden_size), dtype=np.float32)
    return out, embed_rows(model, windows, *rows, BATCH_TOKENS, out, settings or Embedding())


def tokens_per_label(windows: Windows, rows: Rows, on_grid: bool = False) -> float:
    return float(plan_passes(windows, *rows, on_grid).lengths.sum() / len(rows.subjects))


def require_equal(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise SystemExit(f"{what}: rows differ from ours by {difference:.2g}, more than {TOLERANCE:g}")


def those_that_fit(name: str, model: TimelineModel, lengths: tuple[int, ...], nth: int, repeats: int) -> None:
    windows = Windows(timelines_of(lengths), CONTEXT)
    rows, thinned = rows_of(windows.timelines, first=0), slice(nth // 2, None, nth)
    some, longest = rows.only(thinned), rows.only(slice(-2, None))  # the longest are one batch, as large as any
    found: dict[str, np.ndarray] = {}

    def ours() -> None:
        found["ours"], _ = shared_passes(model, windows, rows)

    def baseline(called: str, of: Rows) -> Callable[[], None]:
        def run() -> None:
            found[called] = one_pass_per_label(model, windows, of, is_padded=called == PADDED)

        return run

    took = medians({"ours": ours} | {b: baseline(b, some) for b in (PADDED, OWN_LENGTH)}, repeats, warm_up=False)
    for called in (PADDED, OWN_LENGTH):
        require_equal(found[called], found["ours"][thinned], f"{name}, {called}")
    peaks = {"ours": peak_mib(ours)} | {b: peak_mib(baseline(b, longest)) for b in (PADDED, OWN_LENGTH)}
    tokens = {PADDED: float(CONTEXT), OWN_LENGTH: float((1 + visible_tokens(windows.timelines, *rows)).mean())}
    case = f"{name}, histories of up to {max(lengths):,} tokens, context {CONTEXT:,}"
    for called in (PADDED, OWN_LENGTH):
        line(
            "embed", case, "labels/s", len(rows.subjects) / took["ours"], len(some.subjects) / took[called], called,
            repeats, more_is_better=True, ours_peak_mib=peaks["ours"], baseline_peak_mib=peaks[called],
        )  # fmt: skip
        passed = tokens_per_label(windows, rows), tokens[called]
        line("embed", case, "tokens per label", *passed, called, 1, more_is_better=False)


def those_that_outgrow(name: str, model: TimelineModel, lengths: tuple[int, ...], nth: int, repeats: int) -> None:
    windows = Windows(timelines_of(lengths), CONTEXT)
    rows = rows_of(windows.timelines, first=CONTEXT)
    some, longest = rows.only(slice(nth // 2, None, nth)), rows.only(slice(-2, None))

    def grid() -> None:
        shared_passes(model, windows, rows, GRID)

    def exact() -> None:
        shared_passes(model, windows, some)

    took = medians({"grid": grid, "exact": exact}, repeats, warm_up=False)
    peaks = peak_mib(grid), peak_mib(lambda: shared_passes(model, windows, longest))
    of = ", ".join(f"{n:,}" for n in lengths)
    case = f"{name}, grid, beyond the context of {CONTEXT:,} in timelines of {of} tokens"
    line(
        "embed", case, "labels/s",
        len(rows.subjects) / took["grid"], len(some.subjects) / took["exact"], "exact windows", repeats,
        more_is_better=True, ours_peak_mib=peaks[0], baseline_peak_mib=peaks[1],
    )  # fmt: skip
    passed = tokens_per_label(windows, rows, on_grid=True), tokens_per_label(windows, rows)
    line("embed", case, "tokens per label", *passed, "exact windows", 1, more_is_better=False)


def main() -> None:
    is_quick = options(__doc__, runs_on_gpu=False).quick
    nth, repeats = (LABELS // 2, 2) if is_quick else (3, 3)
    for arch in ("mamba", "gpt"):
        name = f"{arch}-tiny-{CONTEXT}"
        model = build_model(ModelId.parse(name), VOCABULARY, seed=0).eval()
        with torch.no_grad():
            model.states(torch.zeros(1, CONTEXT, dtype=torch.int64))  # what is compiled or computed once for all
        those_that_fit(name, model, FITTING[-1:] if is_quick else FITTING, nth, repeats)
        if not is_quick:
            for lengths in (OUTGROWING, OUTGROWING[:1], OUTGROWING[-1:]):
                those_that_outgrow(name, model, lengths, nth, repeats)
        elif arch == "mamba":
            those_that_outgrow(name, model, OUTGROWING[1:2], nth, repeats)


if __name__ == "__main__":
    main()
