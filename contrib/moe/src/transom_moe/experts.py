"""The experts that are on this rank, and how they compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor
from transom.errors import ConfigError
from transom.transformer.linear import ColumnLinear, RowLinear
from transom.transformer.mlp import MLP
from transom.transformer.partial_gradients import mark_own_parameters
from transom.transformer.sharding import Offset, ShardedModule, ShardedStateDict

from transom_moe.grouped import grouped_linear
from transom_moe.precision import compute_dtype

__all__ = ["Experts"]


@final
class Experts(ShardedModule):
    """Core's MLPs, each under its number among all experts.

    Args:
        experts: by number, in order.
        compute: as `transom_moe.options.MoEOptions` says.
        are_own: no other tensor-parallel rank has them.

    Raises:
        ConfigError: grouped products were asked for, and the linears do not allow them.

    Example:
        >>> from transom import TransformerConfig
        >>> from transom.transformer.mlp import MLPSubmodules
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1, add_bias_linear=False)
        >>> parts = MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear)
        >>> made = {i: MLP(config, parts, is_expert=True, ffn_hidden_size=8) for i in range(2)}
        >>> Experts(made)(torch.ones(5, 4), counts=torch.tensor([2, 3])).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        experts: Mapping[int, MLP],
        compute: Literal["auto", "sequential", "grouped"] = "auto",
        *,
        are_own: bool = False,
    ) -> None:
        super().__init__()
        for number, expert in experts.items():
            self.add_module(str(number), expert)
        self.compute, self.are_own = compute, are_own
        if are_own:
            mark_own_parameters(self)
        if compute == "grouped" and not self._are_plain:
            raise _not_plain(self)

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Compute each expert's rows.

        Args:
            rows: ``[n, h]``, those of the first expert first.
            counts: how many each has; together n.

        Returns:
            ``[n, h]``, output biases added.
        """
        # A hook may have put other linears in since: none may be passed over.
        if self.compute != "sequential" and self._are_plain:
            return self._together(rows, counts)
        parts = torch.split(rows, counts.tolist())
        # An expert without rows runs too, so that its gradient is zero, and not missing: ranks reduce all or none.
        return torch.cat([_called(expert, part) for expert, part in zip(self._experts(), parts, strict=True)])

    def backward_dw(self) -> None:
        """Add the weights' gradients that backward put off."""
        for expert in self._experts():
            expert.backward_dw()

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe each expert under its number; what one rank alone has is no replica of anything."""
        if self.are_own:
            metadata = {**(metadata or {}), "tensor_parallel_rank": 0}
        return super().sharded_state_dict(prefix, sharded_offsets, metadata)

    def _experts(self) -> Iterator[MLP]:
        for expert in self.children():
            assert isinstance(expert, MLP)
            yield expert

    @property
    def _are_plain(self) -> bool:
        """Whether all linears are core's own, whose weights may be used without them, and put nothing off."""
        return all(
            type(expert.linear_fc1) is ColumnLinear
            and type(expert.linear_fc2) is RowLinear
            and not expert.config.delay_wgrad_compute
            for expert in self._experts()
        )

    def _together(self, rows: Tensor, counts: Tensor) -> Tensor:
        experts = list(self._experts())
        inner = _linear(rows, [expert.linear_fc1 for expert in experts], counts)  # [n, h] -> [n, f] or [n, 2f]
        inner = experts[0].activation_func(inner)  # -> [n, f]
        return _linear(inner, [expert.linear_fc2 for expert in experts], counts)  # -> [n, h]


def _called(expert: MLP, rows: Tensor) -> Tensor:
    output: Tensor
    output, bias = expert(rows)
    return output if bias is None else output + bias.to(output.dtype)


def _linear(rows: Tensor, linears: Sequence[Any], counts: Tensor) -> Tensor:
    """Map the rows of each linear, and add its bias."""
    dtype = compute_dtype(rows)
    outputs: Tensor = grouped_linear(rows.to(dtype), [linear.weight.to(dtype) for linear in linears], counts)
    biases = [linear.bias for linear in linears if linear.bias is not None]
    if not biases:
        return outputs
    of_rows = torch.arange(len(linears), device=rows.device).repeat_interleave(counts, output_size=len(rows))
    return outputs + torch.stack(biases).to(dtype)[of_rows]


def _not_plain(experts: Experts) -> ConfigError:
    kinds = sorted({type(module).__name__ for expert in experts.children() for module in expert.children()})
    delays = any(expert.config.delay_wgrad_compute for expert in experts.children() if isinstance(expert, MLP))
    return ConfigError(
        f"compute is 'grouped', for which experts must be core's torch_linear without delay_wgrad_compute; these are "
        f"{', '.join(kinds)}, with delay_wgrad_compute {delays}.",
        hint="compute: auto, or torch_linear for the experts' linears",
        field="compute",
        value="grouped",
        path="options.mlp.compute",
        file=None,
        line=None,
    )
