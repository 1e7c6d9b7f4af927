"""Training batches of a simulated cohort: how fast they are made, against a model that eats them; how much is padding.

The model is Hyena, the fastest of the tiny ones. Padding is held against batches of windows in random order.
"""

from __future__ import annotations

import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from measure import line, options
from training_step import ours

from ehrctx.events.meds import open_dataset
from ehrctx.events.simulate.cohort import simulate
from ehrctx.events.simulate.parameters import parameters_of
from ehrctx.events.splits import subject_splits
from ehrctx.models.model import build_model
from ehrctx.pretrain.batches import TrainingBatches
from ehrctx.study import ModelId, Pretraining
from ehrctx.timelines.build import build_timelines
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows


def cohort(folder: Path, subjects: int) -> Timelines:
    simulate(parameters_of("planted", {}, "benchmark"), subjects, 0, folder / "events")
    subject_splits(open_dataset(folder / "events"), None).write_parquet(folder / "splits.parquet")
    build_timelines(folder / "events", "simulated", folder / "splits.parquet", "clmbr_4k", folder / "timelines")
    return Timelines.open(folder / "timelines")


def model_rate(context: int, vocabulary: int) -> float:
    """Tokens per second of a training step on one thread."""
    model = build_model(ModelId.parse(f"hyena-tiny-{context}"), vocabulary, seed=0)
    run = ours(model, torch.randint(7, vocabulary, (max(1, 4_096 // context), context)))
    run()
    started = time.perf_counter()
    for _ in range(5):
        run()
    return 5 * max(1, 4_096 // context) * context / (time.perf_counter() - started)


def main() -> None:
    is_quick = options(__doc__, runs_on_gpu=False).quick
    with tempfile.TemporaryDirectory() as folder:
        store = cohort(Path(folder), 2_000 if is_quick else 20_000)
        for context in (64, 512, 4_096):
            settings = Pretraining(tokens=10_000_000, tokens_per_step=65_536, batch_tokens=16_384)
            batches = TrainingBatches(Windows(store, context), store.in_split("train"), settings, seed=0)
            started = time.perf_counter()
            steps = list(islice(batches.steps(), 40))
            rate = sum(step.tokens for step in steps) / (time.perf_counter() - started)
            case = f"{len(store):,} subjects, context {context:,}"
            eaten = model_rate(context, store.vocabulary_size)
            line("batches", case, "tokens/s", rate, eaten, "hyena-tiny's training step", 1, more_is_better=True)
            share = sum(step.tokens for step in steps) / sum(step.padded_tokens for step in steps)
            lengths = np.concatenate([lengths for step in steps for _, lengths in step.batches])
            shuffled = np.random.default_rng(0).permutation(lengths)
            groups = np.split(shuffled, range(16, len(shuffled), 16))
            random = shuffled.sum() / sum(len(group) * group.max() for group in groups)
            line(
                "batches", case, "real-token share", share, random, "16 windows in random order", 1, more_is_better=True
            )


if __name__ == "__main__":
    main()
