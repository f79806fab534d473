"""Transom on NVIDIA Transformer Engine: linears, norms, both in one module, MLPs, activations, attention.

What they support is declared in ``transom.toml``; the bundle ``te`` names them all. Importing any module imports
nothing of Transformer Engine: `transom_te_linear.installation` says what is there, and `transom_te_linear.engine` has
every call into it.
"""
