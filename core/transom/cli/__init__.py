"""The command line `transom`: one module per verb, each with a `command`; `main` finds them by name."""
