"""Which experts a token goes to, with which weights, and what keeps all of them in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transom.transformer.auxiliary_loss import AuxiliaryLoss
from transom.transformer.initialization import initialize
from transom.transformer.sharding import ShardedModule
from transom.transformer.utils import torch_dtype

from transom_moe.precision import full_precision

if TYPE_CHECKING:
    from transom import TransformerConfig

    from transom_moe.options import MoEOptions

__all__ = ["Router", "load_balancing_loss", "router_z_loss"]


def load_balancing_loss(
    shares: Tensor, chosen: Tensor, mean_over_ranks: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Measure how unevenly experts are used: 1 when evenly, up to E / k when k experts do everything.

    Args:
        shares: ``[t, E]``, which share of the router's favour each expert has; each token's add up to 1.
        chosen: ``[t, k]``, the experts that the tokens went to.
        mean_over_ranks: of the tokens' means, where ranks see different tokens.

    Returns:
        ``E · sum_i f_i P_i``, a scalar: f the share of all choices that fell on an expert, through which no gradient
        flows, P the mean of its ``shares``.

    Source: Fedus et al. 2021, Switch Transformer, equations 4 to 6, whose tokens go to one expert each.

    Example:
        >>> load_balancing_loss(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([[0], [1]]))
        tensor(1.)
    """
    count = shares.shape[1]
    tokens = max(len(shares), 1)
    flat = chosen.flatten()
    hits = torch.zeros(count, dtype=torch.long, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
    used = mean_over_ranks(hits.to(shares.dtype) / (tokens * chosen.shape[1])).detach()
    wanted = mean_over_ranks(shares.sum(0) / tokens)
    return count * (used * wanted).sum()


def router_z_loss(logits: Tensor, mean_over_ranks: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Measure how large a router's logits ``[t, E]`` are: the mean of ``logsumexp(logits)²`` over tokens.

    Args:
        logits: of the experts.
        mean_over_ranks: of the tokens' mean, where ranks see different tokens.

    Source: Zoph et al. 2022, ST-MoE, equation 5.

    Example:
        >>> router_z_loss(torch.zeros(3, 1))
        tensor(0.)
    """
    return mean_over_ranks(logits.logsumexp(-1).square().sum() / max(len(logits), 1))


@final
class Router(ShardedModule):
    """``top_k(score(x @ weight.T))``, in float32 at least, with the losses that it adds to the training loss.

    Args:
        config: dtype and initialisation.
        width: of a token.
        options: of the mixture.
        mean_over_ranks: where ranks route different tokens.

    Source: Shazeer et al. 2017, section 2.1, without noise; scores by sigmoid: DeepSeek-V3, 2024, section 2.1.2.

    Example:
        >>> from transom import TransformerConfig
        >>> from transom_moe.options import MoEOptions
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
        >>> weights, chosen = Router(config, 4, MoEOptions(num_experts=4, top_k=2))(torch.ones(3, 4))
        >>> weights.shape, chosen.shape
        (torch.Size([3, 2]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        config: TransformerConfig,
        width: int,
        options: MoEOptions,
        mean_over_ranks: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        dtype = torch_dtype(config.params_dtype)
        self.weight = nn.Parameter(torch.empty(options.num_experts, width, dtype=dtype))
        self.top_k, self.normalizes = options.top_k, options.normalize_weights
        self._score = _softmax if options.score_function == "softmax" else _sigmoid
        self._config, self._mean = config, mean_over_ranks
        self.load_balancing = AuxiliaryLoss("load_balancing_loss", options.aux_loss_coeff)
        self.z_loss = AuxiliaryLoss("router_z_loss", options.z_loss_coeff)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the weight by the config's init method."""
        initialize(self.weight, self._config.init_method, self._config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Choose experts.

        Args:
            x: ``[t, h]``.

        Returns:
            weights ``[t, k]`` in float32 at least, and the numbers of the experts ``[t, k]``, the best first.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        with full_precision(x):
            logits = F.linear(x.to(wide), self.weight.to(wide))  # [t, h] -> [t, E]
        scores, shares = self._score(logits)
        weights, chosen = scores.topk(self.top_k, dim=-1)  # [t, k]
        if self.normalizes:
            weights = weights / weights.sum(-1, keepdim=True)
        weights = self.load_balancing(weights, load_balancing_loss(shares, chosen, self._mean))
        return self.z_loss(weights, router_z_loss(logits, self._mean)), chosen

    def extra_repr(self) -> str:
        """Say how many of how many."""
        return f"{self.top_k} of {len(self.weight)}"


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.softmax(-1)
    return scores, scores


def _sigmoid(logits: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid()
    return scores, scores / scores.sum(-1, keepdim=True)
