"""`ehrctx perplexity`: how surprised a model is by every token of held-out timelines.

A timeline is read in windows of the model's context length that move on by `stride` tokens; each window scores the
tokens that no earlier one has scored. The published stride of 32 gives every token nearly a full window of history and
costs L / 32 passes; half a window, the default here, gives every token at least half a window and costs two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ehrctx.artifacts import new_artifact, read_manifest, require_same_input
from ehrctx.errors import InputError
from ehrctx.models.model import TimelineModel, load_model
from ehrctx.pretrain.trained import KIND as MODEL
from ehrctx.robustness.progression import KIND
from ehrctx.study import Perplexity
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows, batches_by_budget, pad

SPLIT = "held_out"


def scored_spans(n: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(from, to] of the timed tokens that each window of a timeline of `n` scores; a window ends at `to`."""
    if n == 0:
        return []
    ends = [min(room, n)]
    while ends[-1] < n:
        ends.append(min(ends[-1] + stride, n))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def repeats(tokens: np.ndarray) -> np.ndarray:
    """Whether each token occurred before in its timeline; bool[n]."""
    _, first = np.unique(tokens, return_index=True)
    found = np.ones(len(tokens), dtype=bool)
    found[first] = False
    return found


def losses_of(
    model: TimelineModel, windows: Windows, subjects: np.ndarray, stride: int, batch_tokens: int
) -> tuple[list[np.ndarray], int]:
    """The loss (nats) of every timed token of each subject, float32[n] each, and how many tokens were passed through.

    `subjects` are store positions, int64.
    """
    device = next(model.parameters()).device
    model.eval()
    offsets, n_static = windows.timelines.offsets, windows.timelines.subjects["n_static"]
    rooms = windows.room(subjects)
    out, spans = [], []
    for i, subject in enumerate(subjects):
        n = int(offsets[subject + 1] - offsets[subject]) - int(n_static[subject])
        out.append(np.empty(n, dtype=np.float32))
        spans += [(i, *span) for span in scored_spans(n, int(rooms[i]), stride)]
    lengths = np.array([windows.context - int(rooms[i]) + min(to, int(rooms[i])) for i, _, to in spans], dtype=np.int64)
    for batch in batches_by_budget(lengths, batch_tokens):
        cut = [
            windows.history(int(subjects[spans[b][0]]), int(n_static[subjects[spans[b][0]]]) + spans[b][2])
            for b in batch
        ]
        tokens, of_window = pad(cut)
        counts = np.array([spans[b][2] - spans[b][1] for b in batch])
        rows = np.repeat(np.arange(len(batch)), counts)
        # the scored tokens are the last ones of their window
        ends = np.repeat(of_window - np.cumsum(counts), counts) + np.arange(counts.sum())
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            losses = model.token_losses(*(torch.from_numpy(a).to(device) for a in (tokens, ends, rows)))
        parts = np.split(losses.cpu().numpy(), np.cumsum(counts)[:-1])
        for b, part in zip(batch, parts, strict=True):
            i, first, to = spans[b]
            out[i][first:to] = part
    return out, int(lengths.sum())


def write_token_losses(
    model_folder: Path, timelines: Path, settings: Perplexity, out: Path, batch_tokens: int = 8_192, threads: int = 2
) -> dict[str, Any]:
    """Writes losses.parquet (subject_id, position from 1, repeat, loss in nats) to the folder `out`.

    Raises InputError if the window is longer than the model's positions, or no longer than the stride.
    """
    torch.set_num_threads(threads)
    manifest = read_manifest(model_folder, MODEL)
    require_same_input(model_folder, MODEL, "timelines", timelines)
    store = Timelines.open(timelines)
    model = load_model(model_folder)
    window = settings.window or manifest["facts"]["context"]
    if model.context_limit is not None and window > model.context_limit:
        raise InputError(
            f"perplexity.window is {window:,}, but {manifest['settings']['model']} learned {model.context_limit:,} "
            f"positions. Use at most {model.context_limit:,}, or leave it out."
        )
    windows = Windows(store, window)
    stride = settings.stride or window // 2
    if stride > int(windows.room(np.arange(len(store))).min()):
        raise InputError(
            f"perplexity.stride is {stride:,}, more than a window of {window:,} holds. Use a smaller stride."
        )
    if torch.cuda.is_available():
        model.to("cuda")
    subjects = store.in_split(SPLIT)
    if len(subjects) > settings.subjects:
        subjects = np.sort(np.random.default_rng(settings.seed).choice(subjects, settings.subjects, replace=False))
    facts: dict[str, Any] = {"split": SPLIT, "subjects": len(subjects), "window": window, "stride": stride}
    inputs = {"model": model_folder, "timelines": timelines}
    chosen = {"model": manifest["settings"]["model"], "perplexity": settings.model_dump()}
    with new_artifact(out, KIND, chosen, inputs, facts) as folder:
        losses, facts["tokens_passed"] = losses_of(model, windows, subjects, stride, batch_tokens)
        frames = []
        for subject, loss in zip(subjects, losses, strict=True):
            first = int(store.offsets[subject]) + int(store.subjects["n_static"][subject])
            tokens = store.tokens[first : int(store.offsets[subject + 1])]
            frames.append(
                pl.DataFrame({"position": np.arange(1, len(loss) + 1), "repeat": repeats(tokens), "loss": loss})
                .with_columns(subject_id=pl.lit(int(store.subjects["subject_id"][subject]), pl.Int64))
                .select("subject_id", "position", "repeat", "loss")
            )
        table = pl.concat(frames)
        facts["tokens_scored"] = table.height
        table.write_parquet(folder / "losses.parquet")
    return facts
