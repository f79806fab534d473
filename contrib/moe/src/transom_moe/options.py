"""What a spec may say of a mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MoEOptions"]


@dataclass(frozen=True)
class MoEOptions:
    """How many experts there are, who decides between them, and where they are.

    Args:
        num_experts: E.
        top_k: k, how many of them each token goes to.
        expert_ffn_hidden_size: inner width of an expert; `None` = that of the MLP that the mixture stands for.
        shared_expert_ffn_hidden_size: inner width of an expert that all tokens go to besides; `None` = there is none.
        shared_expert_gate: multiply the shared expert's output by ``sigmoid(gate(x))``.
        score_function: of the router's logits: over all experts together, or each by itself.
        normalize_weights: divide the weights of a token's k experts by their sum.
        aux_loss_coeff: weight of the load-balancing loss.
        z_loss_coeff: weight of the router's z-loss.
        compute: experts one after another through their modules, together by grouped products, which plain linears
            alone allow, or ``auto``: together where that can be.
        expert_parallel: spread whole experts over the tensor-parallel ranks; otherwise each expert is split over them.

    Example:
        >>> MoEOptions(num_experts=4, top_k=5)
        Traceback (most recent call last):
            ...
        ValueError: top_k is 5; 1 to num_experts (4) is possible
    """

    num_experts: int = 8
    top_k: int = 2
    expert_ffn_hidden_size: int | None = None
    shared_expert_ffn_hidden_size: int | None = None
    shared_expert_gate: bool = False
    score_function: Literal["softmax", "sigmoid"] = "softmax"
    normalize_weights: bool = True
    aux_loss_coeff: float = 0.01
    z_loss_coeff: float = 0.0
    compute: Literal["auto", "sequential", "grouped"] = "auto"
    expert_parallel: bool = False

    def __post_init__(self) -> None:
        if self.num_experts < 1:
            raise ValueError(f"num_experts is {self.num_experts}; at least 1 is needed")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k is {self.top_k}; 1 to num_experts ({self.num_experts}) is possible")
        for name in ("expert_ffn_hidden_size", "shared_expert_ffn_hidden_size"):
            width = getattr(self, name)
            if width is not None and width < 1:
                raise ValueError(f"{name} is {width}; at least 1 is needed")
        for name in ("aux_loss_coeff", "z_loss_coeff"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 or more is needed")
        if self.shared_expert_gate and self.shared_expert_ffn_hidden_size is None:
            raise ValueError(
                "shared_expert_gate is true and shared_expert_ffn_hidden_size is not given: nothing to gate"
            )
