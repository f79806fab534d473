"""Multi-head latent attention (DeepSeek-V2), for Transom's slot ``self_attention``.

The sizes are `transom_multi_latent_attention.sizes`, the module is `transom_multi_latent_attention.attention`; what it
supports is declared in ``transom.toml``.
"""
