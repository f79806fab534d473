"""A decoder-only language model: embedding, a stack of layers, a final norm and an output projection."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.errors import CacheError, ConfigError, InputError, MaskError
from transom.models.embedding import LanguageModelEmbedding
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.direct_attributes import buffer, submodule
from transom.transformer.kv_cache import StaticKVCache
from transom.transformer.transformer_block import TransformerStack

if TYPE_CHECKING:
    from transom.slots.kv_cache import KVCache
    from transom.slots.loss import Loss
    from transom.slots.model import Model
    from transom.transformer.recompute import LayerRecompute

__all__ = ["TransformerDecoder"]


@final
class TransformerDecoder(TransformerStack):
    """A decoder-only transformer: token ids to logits (or to token losses).

    Notation of shapes: b batch, s sequence length, v vocabulary, h hidden size, T cache capacity.

    Args:
        tok_embeddings: maps ids ``[b, s]`` to ``[b, s, h]``.
        layer: one layer, of which ``num_layers`` clones are made, each freshly initialised, or a list of layers; they
            satisfy `transom.slots.layer.Layer`.
        num_layers: number of layers.
        max_seq_len: longest sequence, and the capacity of the caches.
        num_heads: number of query heads.
        head_dim: size of a head, for the caches.
        norm: normalises the hidden states ``[b, s, h]`` of the last layer.
        output: maps ``[b, s, h]`` to logits ``[b, s, v]``, or to ``(logits, None)``; `None` = the transposed embedding
            table.
        loss: maps ``(hidden, weight, labels)`` to token losses; needed only for ``labels``.
        masks: kinds of mask that callers may pass; `None` = any.
        alibi_slopes: ``[n]``, of ALiBi position biases; `None` = none.
        recompute: which layers are recomputed in the backward pass; `None` = none.
        kv_cache: makes the caches, of ``batch_size``, ``capacity``, ``dtype`` and ``device``, all by name; `None` = a
            `StaticKVCache`.
        logit_softcap: logits become ``c * tanh(logits / c)``; `None` = they stay as they are. A loss has its own.
        takes_shares: tokens are a rank's share of every sequence, and ``input_pos`` must say where they are in it.

    Raises:
        ConfigError: ``num_layers`` is not a positive number or not the length of the list.

    Example:
        >>> import transom
        >>> decoder = transom.build("tiny-llama", seed=0)
        >>> tokens = torch.tensor([[10, 20, 30]])
        >>> decoder(tokens).shape
        torch.Size([1, 3, 256])
        >>> decoder(tokens, labels=tokens).shape
        torch.Size([1, 3])
    """

    embedding: LanguageModelEmbedding = submodule()
    output_layer: nn.Module | None = submodule()
    cache: KVCache | None = submodule()
    final_layernorm: nn.Module
    alibi_slopes: Tensor | None = buffer()

    def __init__(
        self,
        tok_embeddings: nn.Module,
        layer: nn.Module | Sequence[nn.Module],
        num_layers: int,
        max_seq_len: int,
        num_heads: int,
        head_dim: int,
        norm: nn.Module,
        output: nn.Module | None,
        *,
        loss: Loss | None = None,
        masks: frozenset[str] | None = None,
        alibi_slopes: Tensor | None = None,
        recompute: LayerRecompute | None = None,
        kv_cache: Callable[..., KVCache] | None = None,
        logit_softcap: float | None = None,
        takes_shares: bool = False,
    ) -> None:
        super().__init__(_layers(layer, num_layers), final_layernorm=norm, recompute=recompute)
        if not isinstance(tok_embeddings, LanguageModelEmbedding):
            tok_embeddings = LanguageModelEmbedding(tok_embeddings)
        self.embedding = tok_embeddings
        self.output_layer = output
        self.loss = loss
        self.max_seq_len = max_seq_len
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.masks = masks
        self.logit_softcap = logit_softcap
        self.takes_shares = takes_shares
        self.register_buffer("alibi_slopes", alibi_slopes, persistent=False)
        self.make_cache = kv_cache
        self.cache = None

    def forward(
        self,
        tokens: Tensor,
        *,
        mask: Tensor | AttentionMask | None = None,
        input_pos: Tensor | None = None,
        labels: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Run the model.

        Args:
            tokens: integer ids ``[b, s]``.
            mask: boolean, True = may attend: ``[b, s, s]``, or ``[b, s, T]`` with caches; or an `AttentionMask`.
                `None` = causal (with caches: over what is cached, by position). Where ranks share sequences, it is over
                the whole ones, and everything else of a rank's share.
            input_pos: position of each token, ``[s]`` or ``[b, s]``, for position embeddings; with caches also where
                keys and values are written. `None` = 0 ... s-1.
            labels: ids ``[b, s]``; -100 = no loss.
            last_only: give the logits of the last token alone: of a prompt, nobody asks for the others.

        Returns:
            logits ``[b, s, v]`` in float32, ``[b, 1, v]`` with ``last_only``; with ``labels`` each token's
            cross-entropy ``[b, s]`` in nats, float32 (float64 where the weights are).

        Raises:
            ConfigError: more tokens than ``max_seq_len``.
            InputError: ranks share sequences and there is no ``input_pos``.
            MaskError: a mask of a wrong shape or dtype, or of a kind that the model was not built for.
            CacheError: caches are enabled and ``input_pos`` is missing, a position is beyond the capacity, or the batch
                is larger than the caches'.
        """
        self._check(tokens, labels, input_pos)
        mask = self._mask(mask)
        hidden = self.embedding(tokens, input_pos)  # [b, s] -> [b, s, h]
        hidden = self.run_layers(hidden, mask=mask, positions=input_pos, cache=self.cache)
        # The residual stream may be in float32 while the weights are not.
        hidden = self.final_layernorm(hidden).to(self._output_weight().dtype)
        if labels is not None:
            return self._losses(hidden, labels)
        # Under sequence parallelism the last token is on one rank, and the logits of all are gathered first.
        is_whole = hidden.shape[1] == tokens.shape[1]
        logits = self._logits(hidden[:, -1:] if last_only and is_whole else hidden).float()
        logits = logits[:, -1:] if last_only else logits
        return logits if self.logit_softcap is None else self.logit_softcap * torch.tanh(logits / self.logit_softcap)

    def setup_caches(self, batch_size: int, dtype: torch.dtype | None = None, *, capacity: int | None = None) -> None:
        """Make room for the keys and values of ``batch_size`` sequences of up to ``max_seq_len`` tokens.

        Args:
            batch_size: largest batch; smaller ones may be run too.
            dtype: of the caches; `None` = the embedding table's.
            capacity: fewer positions than ``max_seq_len``.

        Raises:
            CacheError: the model was not built for caches, or a size is not one that it can have.
        """
        missing = frozenset({"bottom_right", "positions"}) - self.masks if self.masks is not None else frozenset()
        if missing:
            raise CacheError(
                f"the model was not built for caches: its attention need not know {' and '.join(sorted(missing))}.",
                hint='build it with mode="infer", or add `masks: [bottom_right, positions]` to the spec',
            )
        capacity = self.max_seq_len if capacity is None else capacity
        if capacity > self.max_seq_len:
            raise CacheError(
                f"a capacity of {capacity} is more than max_seq_len, {self.max_seq_len}.",
                hint="build the model with a larger max_sequence_length",
                capacity=self.max_seq_len,
                asked=capacity,
            )
        weight = next(self.embedding.parameters())
        make = self.make_cache or self._make_static_cache
        self.cache = make(batch_size=batch_size, capacity=capacity, dtype=dtype or weight.dtype, device=weight.device)

    def caches_are_enabled(self) -> bool:
        """Whether `setup_caches` was called."""
        return self.cache is not None

    def reset_caches(self) -> None:
        """Forget what is cached, keeping the room.

        Raises:
            CacheError: there are no caches.
        """
        if self.cache is None:
            raise CacheError("there are no caches to reset.", hint="call setup_caches(batch_size) first")
        self.cache.reset()

    def reorder_caches(self, rows: Tensor) -> None:
        """Let row i go on from what row ``rows[i]`` has seen.

        Args:
            rows: integers ``[b]``.

        Raises:
            CacheError: there are no caches.
        """
        if self.cache is None:
            raise CacheError("there are no caches to reorder.", hint="call setup_caches(batch_size) first")
        self.cache.reorder(rows)

    def delete_caches(self) -> None:
        """Give the caches' memory back; the model then attends to its input alone."""
        self.cache = None

    def _check(self, tokens: Tensor, labels: Tensor | None, input_pos: Tensor | None) -> None:
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise InputError(
                f"tokens are {tokens.dtype} {list(tokens.shape)}; integer ids of shape [b, s] are needed.",
                hint="tokens.unsqueeze(0) makes a batch of one sequence",
            )
        if tokens.shape[1] > self.max_seq_len:
            raise InputError(
                f"{tokens.shape[1]} tokens are more than max_seq_len, {self.max_seq_len}.",
                hint="shorten the sequence, or build the model with a larger max_sequence_length",
            )
        if labels is not None and labels.shape != tokens.shape:
            raise InputError(
                f"labels are {list(labels.shape)} and tokens {list(tokens.shape)}; each token has one label.",
                hint="-100 where there is no loss",
            )
        if self.takes_shares and input_pos is None:
            raise InputError(
                "input_pos is missing: tokens are a share of their sequences, and nothing says where they are in them.",
                asked_by="config.context_parallel_size",
                hint="input_pos=ContextShare(ranks).positions(s), of whole sequences of s tokens",
            )

    def _mask(self, mask: Tensor | AttentionMask | None) -> AttentionMask:
        if mask is None:
            return AttentionMask(causal=True, alibi_slopes=self.alibi_slopes)
        if isinstance(mask, Tensor):
            if mask.dim() == 2:
                raise MaskError(
                    f"a mask of shape {list(mask.shape)} does not say which token sees which; [b, s, t] does.",
                    asked_by="TransformerDecoder.forward(mask=...)",
                    hint="of padding, [b, t]: mask=AttentionMask(causal=True, key_padding=mask.bool()), "
                    "and `masks: [padding]` in the spec",
                    field="keep",
                )
            keep = mask.unsqueeze(1) if mask.dim() == 3 else mask  # [b, s, t] -> [b, 1, s, t]
            mask = AttentionMask(keep=keep, alibi_slopes=self.alibi_slopes)
        undeclared = mask.features - self.masks if self.masks is not None else frozenset()
        if undeclared:
            kinds = ", ".join(sorted(undeclared))
            raise MaskError(
                f"the model was not built for masks of kind {kinds}.",
                asked_by="TransformerDecoder.forward(mask=...)",
                available=sorted(self.masks or ()),
                hint=f"add `masks: [{kinds}]` to the spec: every core attention is then checked for it",
            )
        return mask

    def _logits(self, hidden: Tensor) -> Tensor:
        if self.output_layer is None:
            project = getattr(self.embedding.word_embeddings, "project", None)  # of a table that is split over ranks
            return project(hidden) if project else F.linear(hidden, self._output_weight())  # [b, s, h] -> [b, s, v]
        logits: Tensor | tuple[Tensor, None] = self.output_layer(hidden)
        return logits[0] if isinstance(logits, tuple) else logits

    def _output_weight(self) -> Tensor:
        output: nn.Module = self.embedding.word_embeddings if self.output_layer is None else self.output_layer
        return cast("Tensor", output.weight)  # [v, h]

    def _losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        if self.loss is None:
            raise InputError("labels are given and the model has no loss.", hint="pass loss= to its constructor")
        bias = None if self.output_layer is None else getattr(self.output_layer, "bias", None)
        return self.loss(hidden, self._output_weight(), labels, bias)

    def _make_static_cache(self, **sizes: Any) -> KVCache:
        attention = getattr(self.layers[0], "self_attention", None)
        groups = int(getattr(attention, "num_query_groups", self.num_heads))
        return StaticKVCache(num_layers=len(self.layers), num_query_groups=groups, head_size=self.head_dim, **sizes)


def _layers(layer: nn.Module | Sequence[nn.Module], num_layers: int) -> list[nn.Module]:
    if isinstance(layer, nn.Module) and not isinstance(layer, nn.ModuleList):
        return [_fresh(copy.deepcopy(layer)) for _ in range(num_layers)]
    layers = list(layer)
    if len(layers) != num_layers:
        raise ConfigError(
            f"num_layers is {num_layers} and {len(layers)} layers are given.",
            hint="leave the list as long as num_layers, or pass one layer to be cloned",
            field="num_layers",
            value=num_layers,
            path="num_layers",
            file=None,
            line=None,
        )
    return layers


def _fresh(clone: nn.Module) -> nn.Module:
    """Initialise every module of a clone anew: copies of one layer would all start with the same weights."""
    for module in clone.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return clone


if TYPE_CHECKING:

    def _is_a_model(decoder: TransformerDecoder) -> Model:
        return decoder
