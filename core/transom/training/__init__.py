"""The trainer behind `transom train`: data, optimizer, loop, metrics and the folder of a run."""
