"""`ehrctx embed`: one representation per distinct (subject, prediction time), shared by all tasks.

A causal model's pass over a timeline yields the state at every position, so all prediction times of a subject whose
history fits the window share one pass; only the others get a window of their own. The reference pays one padded pass
for every label. Both give the same numbers, because every window is built by `timelines.windows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ehrctx.artifacts import new_artifact, read_manifest, require_same_input
from ehrctx.errors import InputError
from ehrctx.models.model import TimelineModel, load_model
from ehrctx.pretrain.trained import KIND as MODEL
from ehrctx.probe.embeddings import KIND, labelled_times
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows, batches_by_budget, pad


@dataclass(frozen=True)
class Pass:
    """One window of one subject, and which rows are read at which of its positions (int64[n] each)."""

    subject: int
    visible: int
    rows: np.ndarray
    positions: np.ndarray
    length: int


def plan_passes(windows: Windows, subjects: np.ndarray, times: np.ndarray) -> Iterator[Pass]:
    """The passes that give every row its state. `subjects` are store positions in order, `times` datetime64[n]."""
    bounds = np.flatnonzero(np.diff(subjects, prepend=-2, append=-2))
    for first, last in pairwise(bounds):
        subject = int(subjects[first])
        rows = np.arange(first, last)
        visible = windows.timelines.visible(subject, times[first:last])
        fits = windows.fits(visible)
        if fits.any():
            # the position of the v-th visible token is v, after [BOS] at 0
            longest = int(visible[fits].max())
            yield Pass(subject, longest, rows[fits], visible[fits], longest + 1)
        for v in np.unique(visible[~fits]):
            mine = rows[visible == v]
            yield Pass(subject, int(v), mine, np.full(len(mine), windows.context - 1), windows.context)


@torch.no_grad()
def embed_rows(
    model: TimelineModel, windows: Windows, subjects: np.ndarray, times: np.ndarray, batch_tokens: int
) -> tuple[np.ndarray, int]:
    """Last-layer states at the last visible token, float32[n, hidden], and how many tokens were passed through."""
    device = next(model.parameters()).device
    model.eval()
    passes = list(plan_passes(windows, subjects, times))
    out = np.empty((len(subjects), model.hidden_size), dtype=np.float32)
    lengths = np.array([p.length for p in passes], dtype=np.int64)
    for batch in batches_by_budget(lengths, batch_tokens):
        tokens, _ = pad([windows.history(passes[i].subject, passes[i].visible) for i in batch])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            states = model.states(torch.from_numpy(tokens).to(device))
        for row, i in enumerate(batch):
            picked = states[row, torch.from_numpy(passes[i].positions).to(device)]
            out[passes[i].rows] = picked.float().cpu().numpy()
    return out, int(lengths.sum())


def embed(
    model_folder: Path,
    timelines: Path,
    labels_folder: Path,
    out: Path,
    context: int | None = None,
    batch_tokens: int = 8_192,
    threads: int = 2,
) -> dict[str, Any]:
    """Writes embeddings.npy (float32[n, hidden]) and index.parquet (subject_id, prediction_time, split) to `out`.

    `context` defaults to the length that the model was trained with. Labels of subjects without a timeline are counted
    and left out. Raises InputError if the model was trained on other timelines.
    """
    torch.set_num_threads(threads)
    manifest = read_manifest(model_folder, MODEL)
    require_same_input(model_folder, MODEL, "timelines", timelines)
    store = Timelines.open(timelines)
    model = load_model(model_folder)
    context = manifest["facts"]["context"] if context is None else context
    if model.context_limit is not None and context > model.context_limit:
        raise InputError(
            f"a context length of {context:,} is longer than the {model.context_limit:,} positions that "
            f"{manifest['settings']['model']} learned. Use at most {model.context_limit:,}."
        )
    if torch.cuda.is_available():
        model.to("cuda")
    index, positions, without = labelled_times(store, labels_folder)
    facts: dict[str, Any] = {"context": context, "rows": index.height, "without_timeline": without}
    inputs = {"model": model_folder, "timelines": timelines, "labels": labels_folder}
    settings = {"model": manifest["settings"]["model"], "context": context, "pooling": "last"}
    with new_artifact(out, KIND, settings, inputs, facts) as folder:
        windows = Windows(store, context)
        rows, tokens = embed_rows(model, windows, positions, index["prediction_time"].to_numpy(), batch_tokens)
        facts["tokens_passed"] = tokens
        np.save(folder / "embeddings.npy", rows)
        index.write_parquet(folder / "index.parquet")
    return facts
