"""What the user writes: specs, the plans they resolve to, and the locks that record what was chosen."""
