"""In place of a compiled extension."""
