"""Whole models, put together from the parts of `transom.transformer`."""
