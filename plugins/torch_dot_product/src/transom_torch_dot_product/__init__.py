"""Transom's core attentions on PyTorch's own kernels: ``torch_dot_product`` and ``torch_flex``.

What they support is declared in ``transom.toml``; the modules are `transom_torch_dot_product.attention`, on
``scaled_dot_product_attention``, and `transom_torch_dot_product.flex`, on ``flex_attention``.
"""
