"""Controls: what the workflow finds in cohorts of which the truth is known, against that truth."""
