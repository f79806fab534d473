"""From the decoder's hidden states to logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.errors import InputError, ParallelError
from transom.transformer.collectives import Ranks, copy_to_ranks, gather_features, gather_sequence
from transom.transformer.direct_attributes import submodule
from transom.transformer.linear import ColumnLinear
from transom.transformer.module import Module
from transom.transformer.sharding import Offset, ShardedModule, ShardedStateDict
from transom.transformer.split_parameter import described, local_tensor, split_parameter
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from transom.slots.linear import ColumnLinearBuilder
    from transom.slots.loss import Loss
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["T5LMHead", "TiedOutput"]


@final
class TiedOutput(ShardedModule):
    """A linear whose weight is somebody else's: only a bias, or nothing at all, is its own.

    Over p tensor-parallel ranks each has a block of the weight's rows, as those of an embedding table are split, and of
    the bias.

    Args:
        size: v, over all ranks.
        bias: have a bias, zero at first.
        dtype: of the bias.
        gather_output: give every rank all logits, not only those of its rows.
        sequence_parallel: the hidden states are split along the sequence.
        tp_group: the p ranks; `None` = one process.

    Raises:
        ParallelError: the rows cannot be split over the ranks.
    """

    def __init__(
        self,
        size: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        gather_output: bool = True,
        sequence_parallel: bool = False,
        tp_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.ranks = Ranks.of(tp_group)
        self.gather_output, self.sequence_parallel = gather_output, sequence_parallel
        own = torch.empty(_rows_of_rank(size, self.ranks), dtype=dtype)
        self.bias = split_parameter(own, 0, tp_group) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the bias with zeros."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Map ``x [b, s, h]`` to ``[b, s, v]`` by a weight ``[v, h]``, or to ``[b, s, v/p]``.

        With sequence parallelism, x is this rank's ``[b, s/p, h]``.
        """
        ranks, bias = self.ranks, None if self.bias is None else local_tensor(self.bias, self.ranks)
        if ranks.size == 1:
            return F.linear(x, weight, bias)
        x = gather_sequence(x, ranks) if self.sequence_parallel else copy_to_ranks(x, ranks)
        logits = F.linear(x, local_tensor(weight, ranks), bias)  # [b, s, h] -> [b, s, v/p]
        return gather_features(logits, ranks) if self.gather_output else logits

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe this rank's part of the bias, as `transom.transformer.sharding` does."""
        if self.ranks.size == 1 or self.bias is None:
            return super().sharded_state_dict(prefix, sharded_offsets, metadata)
        key = f"{prefix}bias"
        return {key: described(key, self.bias, 0, self.ranks, sharded_offsets, metadata)}


def _rows_of_rank(size: int, ranks: Ranks) -> int:
    if size % ranks.size:
        raise ParallelError(
            f"logits of {size} ids cannot be split over {ranks.size} tensor-parallel ranks.",
            hint="choose a tensor_model_parallel_size that divides vocab_size",
            size=size,
            ranks=ranks.size,
        )
    return size // ranks.size


@final
class T5LMHead(Module):
    """``hidden @ weight.T + bias``: the weight is its own, or the word embeddings; a bias goes with those only.

    Args:
        config: h, dtype and initialisation.
        parallel_output: leave logits split over the tensor-parallel ranks.
        vocab_size: v.
        pre_process: the word embeddings are on this pipeline stage; where they are shared and are not, the head has a
            copy of them.
        share_embeddings_and_output_weights: the weight is the word embeddings.
        output_layer: builds the linear, where the head has a weight; `None` = core's own.
        bias: have a bias; `None` = iff weights are shared.
        factor: the hidden states are multiplied by it first.
        tp_group: tensor-parallel process group.

    Source: Raffel et al. 2020; the bias of the tied head is Megatron-core's.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
        >>> head = T5LMHead(config, parallel_output=True, vocab_size=10, share_embeddings_and_output_weights=True)
        >>> [name for name, _ in head.named_parameters()], head(torch.ones(1, 2, 4), torch.ones(10, 4)).shape
        (['output_layer.bias'], torch.Size([1, 2, 10]))
    """

    output_layer: Any = submodule()

    def __init__(
        self,
        config: TransformerConfig,
        parallel_output: bool,
        vocab_size: int,
        pre_process: bool = True,
        share_embeddings_and_output_weights: bool = False,
        *,
        output_layer: ColumnLinearBuilder | None = None,
        bias: bool | None = None,
        factor: float = 1.0,
        tp_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(config, tp_group)
        self.dtype, self.factor = torch_dtype(config.params_dtype), factor
        has_bias = share_embeddings_and_output_weights if bias is None else bias
        self.is_tied = share_embeddings_and_output_weights and pre_process
        if self.is_tied:
            self.output_layer = TiedOutput(
                vocab_size,
                bias=has_bias,
                dtype=self.dtype,
                gather_output=not parallel_output,
                sequence_parallel=config.sequence_parallel,
                tp_group=tp_group,
            )
            return
        self.output_layer = (output_layer or ColumnLinear)(
            config.hidden_size,
            vocab_size,
            config=config,
            init_method=config.init_method,
            gather_output=not parallel_output,
            bias=has_bias,
            skip_bias_add=False,
            is_expert=False,
            tp_comm_buffer_name=None,
            tp_group=tp_group,
        )

    @property
    def bias(self) -> Tensor | None:
        """``[v]``, or `None`."""
        bias: Tensor | None = getattr(self.output_layer, "bias", None)
        return bias

    def weight_of(self, word_embeddings_weight: Tensor | None) -> Tensor:
        """Give the weight ``[v, h]`` that logits are made with.

        Raises:
            InputError: it is the word embeddings, and they are not given.
        """
        if not self.is_tied:
            weight: Tensor = self.output_layer.weight
            return weight
        if word_embeddings_weight is None:
            raise InputError(
                "the head's weight is the word embeddings, and they are not given.",
                asked_by="T5LMHead.forward(word_embeddings_weight=...)",
                hint="pass embedding.word_embeddings.weight",
            )
        return word_embeddings_weight

    def forward(self, hidden_states: Tensor, word_embeddings_weight: Tensor | None = None) -> Tensor:
        """Make logits.

        Args:
            hidden_states: ``[b, s, h]``; with sequence parallelism this rank's ``[b, s/p, h]``.
            word_embeddings_weight: ``[v, h]``; needed where it is the weight, and not read elsewhere.

        Returns:
            ``[b, s, v]``; with ``parallel_output`` this rank's ``[b, s, v/p]``.

        Raises:
            InputError: the word embeddings are the weight, and are not given.
        """
        hidden_states = self._scaled(hidden_states)
        if self.is_tied:
            logits: Tensor = self.output_layer(hidden_states, self.weight_of(word_embeddings_weight))
        else:
            logits, _ = self.output_layer(hidden_states)
        return logits

    def losses(
        self, loss: Loss, hidden_states: Tensor, labels: Tensor, word_embeddings_weight: Tensor | None
    ) -> Tensor:
        """Compute each token's cross-entropy without making all logits.

        Args:
            loss: computes it.
            hidden_states: ``[b, s, h]``.
            labels: ids ``[b, s]``.
            word_embeddings_weight: as in `forward`.

        Returns:
            ``[b, s]`` in nats, in float32 at least.
        """
        weight = self.weight_of(word_embeddings_weight)
        return loss(self._scaled(hidden_states), weight, labels, self.bias)

    def _scaled(self, hidden_states: Tensor) -> Tensor:
        return hidden_states if self.factor == 1.0 else hidden_states * self.factor
