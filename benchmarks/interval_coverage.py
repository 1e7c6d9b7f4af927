"""How often the 95 % intervals of the patient-level bootstrap hold the truth, by how many subjects are positive.

Repeated samples of one population: subjects with a risk and a varying number of labels, and two models that see the
risk through noise of their own. The truth is the score of two million of its subjects. `ours` is the coverage in
percent, `baseline` that of DeLong's interval on the same samples, where there is one (AUROC and its difference).
"""

from __future__ import annotations

import numpy as np
from measure import line, options
from scipy.special import expit
from scipy.stats import norm

from ehrctx.probe.delong import delong
from ehrctx.probe.statistics import SCORES, Draws, Intervals, scores
from ehrctx.study import Statistics

LEVEL = 0.95
LABELS = (1, 2, 3, 5)  # of a subject, at random
SUBJECTS = {5: 45, 10: 90, 20: 180, 50: 450, 100: 900, 200: 1_800}  # positive subjects, about -> subjects


def sample(n_subjects: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y bool[n], p float64[2, n] and the subject of each label; a sixth of the subjects have a positive label."""
    of = np.repeat(np.arange(n_subjects), rng.choice(LABELS, n_subjects))
    risk = 1.2 * rng.standard_normal(n_subjects)[of]
    y = rng.random(len(of)) < expit(risk - 3.6)
    shared = rng.standard_normal(n_subjects)[of]
    noise = np.stack([0.6 * shared + 0.3 * rng.standard_normal(len(of)), 0.9 * shared + rng.standard_normal(len(of))])
    return y, expit(0.8 * (risk + noise) - 3.0), of


def truth() -> np.ndarray:
    """float64[2, 3]: each model's scores."""
    y, p, _ = sample(2_000_000, np.random.default_rng(0))
    return np.stack([scores(y, one, np.ones((1, len(y)), dtype=np.uint16))[0] for one in p])


def limits(y: np.ndarray, p: np.ndarray, of: np.ndarray, replicates: int) -> dict[str, tuple[float, float]]:
    """Intervals of the first model's scores and of their difference to the second's."""
    draws = Draws.of(of, Statistics(replicates=replicates))
    a, b = (draws.scores(y, one, of)[1] for one in p)
    intervals = Intervals(LEVEL)
    n = intervals.subjects(y, of)
    found = {}
    for s, name in enumerate(SCORES):
        found[name] = intervals.of(a[:, s], n)
        found[f"{name} difference"] = intervals.of(a[:, s] - b[:, s], n)
    return found


def limits_in_closed_form(y: np.ndarray, p: np.ndarray, of: np.ndarray) -> dict[str, tuple[float, float]]:
    """DeLong's, for labels that cluster in subjects."""
    auroc, covariance = delong(y, p, of)
    z = norm.ppf((1 + LEVEL) / 2)
    found = {}
    for name, contrast in (("auroc", np.array([1, 0])), ("auroc difference", np.array([1, -1]))):
        middle, spread = contrast @ auroc, np.sqrt(contrast @ covariance @ contrast)
        found[name] = middle - z * spread, middle + z * spread
    return found


def main() -> None:
    is_quick = options(__doc__, runs_on_gpu=False).quick
    repetitions, replicates = (100, 200) if is_quick else (2_000, 1_000)
    of_population = truth()
    true = dict(zip(SCORES, of_population[0], strict=True))
    true |= {f"{s} difference": d for s, d in zip(SCORES, of_population[0] - of_population[1], strict=True)}
    for n_positive, n_subjects in SUBJECTS.items():
        covered = dict.fromkeys(true, 0)
        covered_in_closed_form = {"auroc": 0, "auroc difference": 0}
        defined = 0
        rng = np.random.default_rng(n_positive)
        positive_subjects = []
        while defined < repetitions:
            y, p, of = sample(n_subjects, rng)
            if not 0 < y.sum() < len(y):
                continue
            defined += 1
            positive_subjects.append(len(np.unique(of[y])))
            for name, (lower, upper) in limits(y, p, of, replicates).items():
                covered[name] += lower <= true[name] <= upper
            for name, (lower, upper) in limits_in_closed_form(y, p, of).items():
                covered_in_closed_form[name] += lower <= true[name] <= upper
        for name in covered:
            closed = covered_in_closed_form.get(name)
            line(
                "interval_coverage", f"{name}, about {np.mean(positive_subjects):.0f} positive subjects", "%",
                100 * covered[name] / repetitions, None if closed is None else 100 * closed / repetitions,
                "DeLong, clustered" if closed is not None else "none", repetitions, more_is_better=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
