"""Parts on the Triton kernels of Liger Kernel: norms, rotary embedding, gated activation, fused cross-entropy.

What they support is declared in ``transom.toml``. Importing their modules imports nothing of Liger Kernel:
`transom_liger.installation` says whether it can be loaded, and `transom_liger.kernels` has every call into it.
"""
