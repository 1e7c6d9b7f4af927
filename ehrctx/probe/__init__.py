"""Heads on frozen representations: embeddings, linear probes, count baselines, and how sure we are."""
