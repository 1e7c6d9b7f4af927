"""Prediction tasks: definitions that a clinician can read, labelers, label files."""
