"""Models out of checkpoints, whoever wrote them, and checkpoints from one form into another."""
