"""Linear attention by the delta rule, for Transom's slot ``self_attention``, in plain PyTorch.

The rule is `transom_delta_attention.delta_rule`, the module around it `transom_delta_attention.attention`; what it
supports is declared in ``transom.toml``.
"""
