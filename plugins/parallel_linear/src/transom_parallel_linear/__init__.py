"""Transom's linears, embedding and loss split over tensor-parallel processes, under the name ``parallel_linear``.

What they support is declared in ``transom.toml``; the modules are in `transom_parallel_linear.linear`,
`transom_parallel_linear.embedding` and `transom_parallel_linear.loss`, what the processes say to one another in
`transom.transformer.collectives`.
"""
