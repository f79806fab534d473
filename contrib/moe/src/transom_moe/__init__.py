"""A mixture of experts for Transom's slot ``mlp``, in plain PyTorch.

The module is `transom_moe.moe`; who goes where `transom_moe.router`; what experts compute `transom_moe.experts`; how
tokens come to experts of other ranks `transom_moe.places`. What it supports is declared in ``transom.toml``.
"""
