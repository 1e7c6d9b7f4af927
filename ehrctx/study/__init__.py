"""The study file: every choice a run makes, typed, validated before anything runs, and frozen.

Snakemake owns files and order, the study owns choices. A wrong key is refused with the nearest right one. Each stage is
handed its own section alone (`Study.section`), so changing one key re-runs only what depends on it.
"""

from ehrctx.study.data import (
    EhrshotSource,
    FemrSource,
    HashSplits,
    ImportOptions,
    Labels,
    OmopOptions,
    OmopSource,
    Simulation,
)
from ehrctx.study.evaluation import Boosting, Embedding, FewShot, Forest, Perplexity, Privacy, Probe, Statistics
from ehrctx.study.model_id import ARCHITECTURES, SIZES, ModelId
from ehrctx.study.study import Study
from ehrctx.study.training import Pretraining, Rope

__all__ = [
    "ARCHITECTURES",
    "SIZES",
    "Boosting",
    "EhrshotSource",
    "Embedding",
    "FemrSource",
    "FewShot",
    "Forest",
    "HashSplits",
    "ImportOptions",
    "Labels",
    "ModelId",
    "OmopOptions",
    "OmopSource",
    "Perplexity",
    "Pretraining",
    "Privacy",
    "Probe",
    "Rope",
    "Simulation",
    "Statistics",
    "Study",
]
