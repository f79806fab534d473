"""A linear for column and row places on one process, with products of oneDNN."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

from transom.transformer.linear import PlainLinear

from transom_onednn_linear.product import linear, missing

if TYPE_CHECKING:
    from transom.slots.linear import ColumnLinearBuilder, LinearRequest, RowLinearBuilder

__all__ = ["OneDNNLinear"]


@final
class OneDNNLinear(PlainLinear):
    """``x @ weight.T + bias``, by oneDNN in float32 on a CPU, for column and row places alike.

    A model that is moved to another device or cast to another dtype stays correct: torch computes there. Arguments are
    those of `transom.transformer.linear.PlainLinear`.

    Raises:
        ParallelError: ``tp_group`` has several processes.

    Example:
        >>> import torch
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
        >>> linear = OneDNNLinear(
        ...     4, 6, config=config, init_method=torch.nn.init.ones_, bias=True, skip_bias_add=True, tp_group=None
        ... )
        >>> out, bias = linear(torch.ones(1, 2, 4))
        >>> out.shape, bias.shape
        (torch.Size([1, 2, 6]), torch.Size([6]))
    """

    product = staticmethod(linear)
    called = "onednn_linear"

    @classmethod
    def supports(cls, request: LinearRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        reason = missing()
        if reason is not None:
            yield reason


if TYPE_CHECKING:
    _column: ColumnLinearBuilder = OneDNNLinear
    _row: RowLinearBuilder = OneDNNLinear
