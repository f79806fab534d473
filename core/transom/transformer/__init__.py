"""The reference transformer: readable first, and the oracle of every plugin. Importing this package loads no torch."""
