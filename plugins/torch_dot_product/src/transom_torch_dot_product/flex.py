"""Core attention on `torch.nn.attention.flex_attention`, which compiles a kernel for each structure of mask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, flex_attention
from transom import AttentionMask
from transom.errors import InputError

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.core_attention import CoreAttention, CoreAttentionBuilder, CoreAttentionRequest
    from transom.transformer.attention_mask import ScoreMod

__all__ = ["TorchFlexAttention"]

_NO_KERNEL = "the flex_attention kernel that torch compiles for the cpu gives wrong numbers for some masks"


@final
class TorchFlexAttention(nn.Module):
    """Scaled dot-product attention whose mask is a function, compiled into the kernel, and which skips hidden blocks.

    Compile the model: only then is there a kernel, which holds no matrix of scores and does no work for blocks of keys
    that are hidden. Not compiled, torch computes the same by plain tensor operations, slowly, and warns of it. That is
    all there is on the CPU: the kernel that torch 2.13 compiles for it gives wrong numbers for a window within packed
    sequences, so compiling is refused there.

    Args:
        config: ``softmax_type``, and ``params_dtype`` of the sinks.
        request: heads, sizes, window and softcap.
        layer_number: changes nothing.
        softmax_scale: multiplies the scores; `None` = 1/sqrt(d).
        attention_dropout: no weight is ever dropped; the card does not declare it.

    Attributes:
        softmax_offset: ``[n]``, with ``softmax_type="learnable"``: each head's sink logit, from zero.

    Source: Dong et al. 2024 (FlexAttention); soft-capping: Gemma 2; sinks: Xiao et al. 2024. The softmax with a sink is
    the plain one times ``sigmoid(l - sink)``, where l is the logarithm of the plain one's denominator.

    Example:
        >>> from transom import BuildContext, TransformerConfig
        >>> from transom.slots.core_attention import CoreAttentionRequest
        >>> request = CoreAttentionRequest(
        ...     context=BuildContext(mode="infer"), num_attention_heads=4, num_query_groups=2, head_size=8,
        ...     value_head_size=8
        ... )
        >>> config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4)
        >>> attention = TorchFlexAttention(config, request=request, layer_number=1)
        >>> query, key = torch.randn(1, 3, 4, 8), torch.randn(1, 5, 2, 8)
        >>> attention(query, key, key, mask=AttentionMask(causal=True)).shape
        torch.Size([1, 3, 4, 8])
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        request: CoreAttentionRequest,
        layer_number: int,
        softmax_scale: float | None = None,
        attention_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.window = request.window
        self.softcap = request.softcap
        self.grouped = request.num_query_groups != request.num_attention_heads
        self.softmax_scale = softmax_scale
        self.has_sink = config.softmax_type != "vanilla"
        self.softmax_offset: nn.Parameter | None = None
        if config.softmax_type == "learnable":
            dtype = getattr(torch, config.params_dtype)
            self.softmax_offset = nn.Parameter(torch.empty(request.num_attention_heads, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with sinks of logit 0, if there are sinks."""
        if self.softmax_offset is not None:
            nn.init.zeros_(self.softmax_offset)

    @classmethod
    def supports(cls, request: CoreAttentionRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        context = request.context
        if context.mode == "train":
            yield from _why_not_trained(request)
        if context.compile and context.device == "cpu":
            yield _NO_KERNEL
        if context.compile and context.device == "cuda":
            yield from _why_not_compiled(request)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: AttentionMask | None = None) -> Tensor:
        """Attend: ``softmax(query · key * scale + bias) · value`` over the keys that the mask shows.

        Args:
            query: ``[b, s, n, d]``.
            key: ``[b, t, g, d]``.
            value: ``[b, t, g, dv]``.
            mask: who may attend to whom, and biases; `None` = everyone to everyone within the request's window.

        Returns:
            ``[b, s, n, dv]``; zeros where a query sees no key.

        Raises:
            InputError: it is being compiled for the CPU.
        """
        if query.device.type == "cpu" and torch.compiler.is_compiling():
            raise InputError(
                f"{_NO_KERNEL}.",
                asked_by="torch.compile of torch_flex",
                hint="do not compile this model on the cpu, or build it with core_attention: torch_dot_product",
            )
        mask = AttentionMask() if mask is None else mask
        s, t, device = query.shape[1], key.shape[1], query.device
        if t == 0:  # which flex_attention takes for a mistake
            return query.new_zeros(*query.shape[:3], value.shape[-1])
        attended, aux = flex_attention(
            query.transpose(1, 2),  # [b, s, n, d] -> [b, n, s, d]
            key.transpose(1, 2),  # [b, t, g, d] -> [b, g, t, d]
            value.transpose(1, 2),
            score_mod=_capped(self.softcap, mask.as_score_mod(s, t, device=device)),
            block_mask=mask.as_block_mask(s, t, device=device, window=self.window),
            scale=self.softmax_scale,
            enable_gqa=self.grouped,
            return_aux=AuxRequest(lse=self.has_sink),
        )
        if aux.lse is not None:
            attended = attended * self._share_beside_sink(aux.lse).to(attended.dtype)
        return attended.transpose(1, 2)  # [b, n, s, dv] -> [b, s, n, dv]

    def _share_beside_sink(self, log_denominator: Tensor) -> Tensor:
        """Compute which share of the weight the keys keep, ``[b, n, s, 1]`` from ``[b, n, s]``."""
        sink = 0.0 if self.softmax_offset is None else self.softmax_offset[:, None]
        return (log_denominator - sink).sigmoid()[..., None]


def _why_not_trained(request: CoreAttentionRequest) -> Iterable[str]:
    if request.context.device == "cpu":
        yield "torch's flex_attention has no backward pass on the cpu: it serves mode infer there"
    if "bias_grad" in request.features:
        yield "a bias is added, and its gradient was never tried"
    if request.context.deterministic:
        yield "its backward pass was never shown to give the same bits for the same inputs"


def _why_not_compiled(request: CoreAttentionRequest) -> Iterable[str]:
    if request.context.dtype == "float64":
        yield "torch compiles no float64 kernel of flex_attention"
    smallest = min(request.head_size, request.value_head_size)
    if smallest < 16:
        yield f"heads of size {smallest} are smaller than 16, the least that torch's kernel takes"


def _capped(softcap: float | None, add: ScoreMod | None) -> ScoreMod | None:
    """Cap a score, then add to it."""
    if softcap is None:
        return add

    def cap(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        capped = softcap * torch.tanh(score / softcap)
        return capped if add is None else add(capped, b, h, i, j)

    return cap


if TYPE_CHECKING:
    _builder: CoreAttentionBuilder = TorchFlexAttention

    def _is_a_core_attention(module: TorchFlexAttention) -> CoreAttention:
        return module
