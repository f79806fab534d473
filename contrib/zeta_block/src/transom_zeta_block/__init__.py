"""Zeta's ``TransformerBlock``: attention and feed-forward side by side on one normed input.

`TransformerBlock` is the published class; `transom_zeta_block.layer.ZetaLayer` is the same in a residual branch, for
Transom's slot ``layer``, where it is called ``zeta_block``. What it supports is declared in ``transom.toml``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transom_zeta_block.block import TransformerBlock as TransformerBlock

__all__ = ["TransformerBlock"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: who lists plugins imports this package, and need not import torch.
    if name != "TransformerBlock":
        raise AttributeError(f"module 'transom_zeta_block' has no attribute {name!r}")
    from transom_zeta_block.block import TransformerBlock

    return TransformerBlock
