"""Transom's core attention on PyTorch's ``scaled_dot_product_attention``, under the name ``torch_dot_product``.

What it supports is declared in ``transom.toml``; the module is `transom_torch_dot_product.attention`.
"""
