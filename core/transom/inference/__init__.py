"""Trained models in use: loading them from checkpoints, and generating tokens."""
