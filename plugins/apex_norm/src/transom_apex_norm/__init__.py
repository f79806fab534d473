"""Transom's norms on NVIDIA Apex: ``apex_norm`` and ``apex_fast_layer_norm``.

What they support is declared in ``transom.toml``; the modules are `transom_apex_norm.norm` and
`transom_apex_norm.fast`. Importing either imports nothing of Apex: `transom_apex_norm.installation` says what is there,
and `transom_apex_norm.kernels` has every call into it.
"""
