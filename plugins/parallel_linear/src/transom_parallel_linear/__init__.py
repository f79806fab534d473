"""Transom's linears split over tensor-parallel processes, under the name ``parallel_linear``.

What they support is declared in ``transom.toml``; the modules are in `transom_parallel_linear.linear`, what the
processes say to one another in `transom.transformer.collectives`.
"""
