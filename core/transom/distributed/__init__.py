"""Many processes for one model: their mesh, what each holds, and checkpoints that any number of them can load."""
