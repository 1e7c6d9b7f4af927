"""The embedded cohort: what its clinics do, how its subjects live, and how it is written as MEDS."""
