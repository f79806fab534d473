"""Weights of linears in eight bits, as the hook ``int8_linear``.

`transom_int8_linear.hook` says which linears, and `transom_int8_linear.linear` is what they become.
"""
