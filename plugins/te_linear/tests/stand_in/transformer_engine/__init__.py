"""Transformer Engine by plain torch, on any device: what its modules document."""
