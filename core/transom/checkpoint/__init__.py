"""Checkpoints: complete or absent, readable without executing anything, and independent of who computed them."""
