"""Next-token pretraining: token-budget batches, a schedule in tokens, the Lightning module, run and resume."""
