"""What an embedding should be, from the definition: its own window, cut by hand, one pass, pooled in float64."""

from __future__ import annotations

import numpy as np
import torch

from ehrctx.models.model import TimelineModel, build_model
from ehrctx.probe.embed import embed_rows
from ehrctx.study import ARCHITECTURES, Embedding, ModelId
from ehrctx.timelines.spec import BOS
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows

VOCABULARY = 30
MODELS = {arch: build_model(ModelId.parse(f"{arch}-tiny-24"), VOCABULARY, seed=1).eval() for arch in ARCHITECTURES}
LAST = Embedding()
SETTINGS = [Embedding(pooling=p, windows=w) for p in ("last", "mean") for w in ("exact", "grid")]


def start_of(n_timed: int, room: int, windows: str) -> int:
    """The first timed token of a window with `room`, of a history of `n_timed`; on a grid, the first that fits."""
    step = 1 if windows == "exact" else max(1, room // 4)
    start = 0
    while n_timed - start > room:
        start += step
    return start


def window(store: Timelines, position: int, seen: list[int], context: int, windows: str = "exact") -> list[int]:
    """[BOS], the static prefix, the most recent of the other tokens that fit, or those from a start on the grid."""
    n_static = int(store.subjects["n_static"][position])
    timed = seen[n_static:]
    return [BOS, *seen[:n_static], *timed[start_of(len(timed), context - 1 - n_static, windows) :]]


@torch.no_grad()
def pooled(model: TimelineModel, tokens: list[int], pooling: str = "last") -> np.ndarray:
    """Of the states of one pass over `tokens` alone."""
    states = model.states(torch.tensor([tokens]))[0].double().numpy()
    return states[-1] if pooling == "last" else states.mean(0)


def draw_rows(store: Timelines, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of subjects in order, at times around their events, fractions of seconds included."""
    rng = np.random.default_rng(seed)
    subjects = np.sort(rng.integers(0, len(store), size=n))
    since = rng.integers(-2_000_000, 55_000_000, size=n)
    whole = rng.random(n) < 0.5  # exactly at the second of an event, where <= matters
    since = np.where(whole, since // 1_000_000 * 1_000_000, since)
    times = store.subjects["origin"][subjects] + since.astype("timedelta64[us]")
    return subjects, times[np.lexsort((times, subjects))]


def embedded(
    model: torch.nn.Module,
    windows: Windows,
    subjects: np.ndarray,
    times: np.ndarray,
    batch_tokens: int,
    settings: Embedding = LAST,
) -> tuple[np.ndarray, int]:
    """The rows, and how many tokens were passed through; a row that is not written stays NaN."""
    out = np.full((len(subjects), model.hidden_size), np.nan, dtype=np.float32)
    return out, embed_rows(model, windows, subjects, times, batch_tokens, out, settings)
