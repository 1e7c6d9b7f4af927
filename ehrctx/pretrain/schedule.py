"""The learning rate as a function of tokens, so that it is the same for every context length and batch size."""

from __future__ import annotations

from ehrctx.study import Pretraining


def learning_rate(tokens_seen: float, settings: Pretraining) -> float:
    """Linear warm-up over `warmup_share` of the budget, then linear decay to `final_learning_rate` at its end."""
    progress = min(max(tokens_seen / settings.tokens, 0.0), 1.0)
    if progress < settings.warmup_share:
        return settings.learning_rate * progress / settings.warmup_share
    decayed = (progress - settings.warmup_share) / (1 - settings.warmup_share)
    return settings.learning_rate + decayed * (settings.final_learning_rate - settings.learning_rate)
