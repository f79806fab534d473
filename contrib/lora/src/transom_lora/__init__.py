"""Low-rank adapters (Hu et al. 2021) for the linears of any model, as the hook ``lora``.

`transom_lora.hook` says where they go, `transom_lora.linear` is one of them, and `transom_lora.merge` adds what they
have learned to the weights, and takes it off again.
"""
