"""What about a timeline makes prediction hard: repetition, irregularity, length, and scores by quartile of each."""
