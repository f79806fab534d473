"""Zeta's ``TransformerBlock``: attention and feed-forward side by side on one normed input.

`transom_zeta_block.block.TransformerBlock` is the published class; `transom_zeta_block.layer.ZetaLayer` is the same in
a residual branch, for Transom's slot ``layer``, where it is called ``zeta_block``. What it supports is declared in
``transom.toml``.
"""
