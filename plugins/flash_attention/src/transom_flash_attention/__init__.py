"""Transom's core attention on FlashAttention 2, 3 or 4, under the name ``flash_attention``.

What it supports is declared in ``transom.toml``. `transom_flash_attention.versions` says which version is installed and
can serve; `transom_flash_attention.attention` has the module, `transom_flash_attention.operators` the operators that it
calls, and ``fa2``, ``fa3`` and ``fa4`` every call into the packages. Importing any of these imports none of them.
"""
