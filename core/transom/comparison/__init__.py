"""Implementations of a slot side by side, on one's own machine and shapes: outputs, gradients and time."""
