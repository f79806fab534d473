"""Differential attention (Ye et al. 2024): the difference of two softmax maps, for Transom's slot ``self_attention``.

The module is `transom_differential_attention.attention`; what it supports is declared in ``transom.toml``.
"""
