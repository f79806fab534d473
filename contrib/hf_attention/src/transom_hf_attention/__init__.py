"""Transom's core attentions in Hugging Face transformers: ``attn_implementation="transom:NAME"``.

Call `register` once; nothing happens before.
"""

from transom_hf_attention.bridge import register

__all__ = ["register"]
