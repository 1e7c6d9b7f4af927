"""Architectures behind one contract: right-padded tokens in, one state per position out, no padding mask needed."""
