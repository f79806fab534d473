"""Linears and a loss of Transom whose float32 products on a CPU are oneDNN's, under the name ``onednn_linear``.

What they support is declared in ``transom.toml``; the modules are in `transom_onednn_linear.linear` and
`transom_onednn_linear.loss`, the products in `transom_onednn_linear.product`.
"""
