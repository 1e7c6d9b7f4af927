"""`ehrctx embed`: one representation per distinct (subject, prediction time), shared by all tasks.

A causal model's pass over a timeline yields the state at every position, so all prediction times of a subject whose
history fits the window share one pass; only the others get a window of their own, or, with `windows: grid`, one for
all that end in the same quarter of a window. The reference pays one padded pass for every label. Both give the same
numbers, because every window is built by `timelines.windows`. Rows go to disk as batches finish: label-rich data sets
have millions.
"""

from __future__ import annotations

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
from ehrctx.study import Embedding
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows, batches_by_budget, pad

DEFAULT = Embedding()


@dataclass(frozen=True)
class Passes:
    """Windows, and the rows that are read in each: those from bounds[i] to bounds[i + 1], at their `positions`."""

    subjects: np.ndarray  # int64[passes], positions in the store
    starts: np.ndarray  # int64[passes], the timed token at which a window begins
    visible: np.ndarray  # int64[passes], how many of the subject's tokens may be seen at its last row
    bounds: np.ndarray  # int64[passes + 1]
    positions: np.ndarray  # int64[rows], of the last visible token in the window, [BOS] being at 0

    @property
    def lengths(self) -> np.ndarray:
        return 1 + self.positions[self.bounds[1:] - 1]


def visible_tokens(timelines: Timelines, subjects: np.ndarray, times: np.ndarray) -> np.ndarray:
    """How many tokens of its subject each row may see; int64[n]. `subjects` are store positions in order."""
    visible = np.empty(len(subjects), dtype=np.int64)
    for first, last in pairwise(np.flatnonzero(np.diff(subjects, prepend=-2, append=-2))):
        visible[first:last] = timelines.visible(int(subjects[first]), times[first:last])
    return visible


def plan_passes(windows: Windows, subjects: np.ndarray, times: np.ndarray, on_grid: bool = False) -> Passes:
    """The passes that give every row its state: one for each subject and start of a window.

    `subjects` are store positions, `times` datetime64[n]; in the order of both, as an index is.
    """
    visible = visible_tokens(windows.timelines, subjects, times)
    starts = windows.starts(subjects, visible, on_grid)
    is_new = (np.diff(subjects, prepend=-1) != 0) | (np.diff(starts, prepend=-1) != 0)
    first = np.flatnonzero(is_new)
    return Passes(
        subjects=subjects[first],
        starts=starts[first],
        visible=np.maximum.reduceat(visible, first),
        bounds=np.append(first, len(subjects)),
        positions=windows.positions(subjects, starts, visible),
    )


def running_means(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Means of `states` [length, hidden] from the first to each of `positions` int64[n]; float32[n, hidden].

    [BOS] counts as a token: the mean is then over all that the window holds, and that of an empty history is finite.
    What lies between two positions is summed in float32 (pairwise, by torch), and these sums in float64: no digit is
    lost over 16k tokens, and nothing else of the size of `states` is held.
    """
    ends, which = torch.unique(positions, return_inverse=True)
    parts = states.tensor_split((ends + 1).cpu())[:-1]  # the last is what follows the last position
    sums = torch.stack([part.sum(0, dtype=torch.float32) for part in parts]).double().cumsum(0)
    return (sums / (ends + 1).unsqueeze(1))[which].float()


def last_states(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`states` [length, hidden] at `positions` int64[n]; float32[n, hidden]."""
    return states[positions].float()


POOLINGS = {"last": last_states, "mean": running_means}


@torch.no_grad()
def embed_rows(
    model: TimelineModel,
    windows: Windows,
    subjects: np.ndarray,
    times: np.ndarray,
    batch_tokens: int,
    out: np.ndarray,
    settings: Embedding = DEFAULT,
) -> int:
    """Writes the pooled last-layer states of each row's window to `out` float32[n, hidden], batch by batch.

    Returns how many tokens were passed through. Rows are as in `plan_passes`. Beside `out`, a few numbers per row and
    one batch are held.
    """
    device = next(model.parameters()).device
    model.eval()
    pool = POOLINGS[settings.pooling]
    passes = plan_passes(windows, subjects, times, on_grid=settings.windows == "grid")
    # the longest first: a heap in which each batch is a little longer than the last one fills up with gaps
    for batch in reversed(batches_by_budget(passes.lengths, batch_tokens)):
        cut = [windows.between(*(int(a[i]) for a in (passes.subjects, passes.starts, passes.visible))) for i in batch]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            states = model.states(torch.from_numpy(pad(cut)[0]).to(device))
        read = [np.arange(passes.bounds[i], passes.bounds[i + 1]) for i in batch]
        places = [torch.from_numpy(passes.positions[rows]).to(device) for rows in read]
        pooled = [pool(of_pass, at) for of_pass, at in zip(states, places, strict=True)]
        out[np.concatenate(read)] = torch.cat(pooled).cpu().numpy()
    return int(passes.lengths.sum())


def embed(
    model_folder: Path,
    timelines: Path,
    labels_folder: Path,
    out: Path,
    context: int | None = None,
    batch_tokens: int = 8_192,
    threads: int = 2,
    settings: Embedding = DEFAULT,
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
    chosen = {"model": manifest["settings"]["model"], "context": context, **settings.model_dump()}
    with new_artifact(out, KIND, chosen, inputs, facts) as folder:
        windows = Windows(store, context)
        shape = (index.height, model.hidden_size)
        rows = np.lib.format.open_memmap(folder / "embeddings.npy", mode="w+", dtype=np.float32, shape=shape)
        times = index["prediction_time"].to_numpy()
        facts["tokens_passed"] = embed_rows(model, windows, positions, times, batch_tokens, rows, settings)
        rows.flush()
        index.write_parquet(folder / "index.parquet")
    return facts
