"""Models and tokenizers out of checkpoints, by the names that generation calls them."""

from __future__ import annotations

from transom.pretrained.load import from_pretrained as load_model
from transom.pretrained.tokenizer import tokenizer_of as load_checkpoint_tokenizer

__all__ = ["load_checkpoint_tokenizer", "load_model"]
