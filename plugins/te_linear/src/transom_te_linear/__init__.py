"""Transom on NVIDIA Transformer Engine: linears, norms, activations, attention, and layers whose MLP is fused.

What they support is declared in ``transom.toml``; the bundle ``te`` names them all. Importing any module imports
nothing of Transformer Engine: `transom_te_linear.installation` says what is there, and `transom_te_linear.engine` has
every call into it.
"""
