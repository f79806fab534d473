"""The mixture: route, sort, compute, put back, weigh."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from transom.errors import ConfigError, ParallelError
from transom.slots import Part
from transom.transformer.collectives import Ranks, sum_over_ranks
from transom.transformer.initialization import initialize
from transom.transformer.mlp import MLP, MLPSubmodules
from transom.transformer.module import Module
from transom.transformer.partial_gradients import mark_partial_gradients
from transom.transformer.sharding import ShardedModule
from transom.transformer.utils import torch_dtype

from transom_moe.experts import Experts
from transom_moe.options import MoEOptions
from transom_moe.order import Order
from transom_moe.places import place_of
from transom_moe.router import Router

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import TransformerConfig
    from transom.slots import Parts
    from transom.slots.activation import ActivationBuilder
    from transom.slots.linear import ColumnLinearBuilder, RowLinearBuilder
    from transom.slots.mlp import MLPBuilder, MLPInterface, MLPRequest

__all__ = ["MoE", "MoESubmodules", "SharedExpertGate"]


@dataclass(frozen=True)
class MoESubmodules:
    """Builders of what is inside, one of each for every expert, the shared one last.

    Args:
        linear_fc1: of the experts' first linears.
        linear_fc2: of their second.
        activation_func: of their activations, when ``config.use_te_activation_func``.
    """

    linear_fc1: Sequence[ColumnLinearBuilder]
    linear_fc2: Sequence[RowLinearBuilder]
    activation_func: Sequence[ActivationBuilder] | None = None

    def of(self, number: int) -> MLPSubmodules:
        """Give those of one expert."""
        activation = None if self.activation_func is None else self.activation_func[number]
        return MLPSubmodules(self.linear_fc1[number], self.linear_fc2[number], activation)


@final
class SharedExpertGate(ShardedModule):
    """``sigmoid(x @ weight.T)``, one number a token.

    Args:
        config: dtype and initialisation.
        width: of a token.
    """

    def __init__(self, config: TransformerConfig, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width, dtype=torch_dtype(config.params_dtype)))
        self._config = config
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the weight by the config's init method."""
        initialize(self.weight, self._config.init_method, self._config)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b, s, h]`` to ``[b, s, 1]``."""
        return nn.functional.linear(x, self.weight).sigmoid()


@final
class MoE(Module):
    """``sum_i w_i · expert_i(x)`` over the k experts that the router chose for a token; no token is dropped.

    Args:
        config: sizes, activation, biases, initialisation.
        submodules: builders of the experts' linears.
        is_expert: refused: a mixture is no expert of another.
        input_size: width of the input; `None` = ``config.hidden_size``, which the output always has.
        ffn_hidden_size: inner width of an expert for which the options say none; `None` = ``config.ffn_hidden_size``.
        tp_group: tensor-parallel process group: experts are split over it, or spread.
        options: of the mixture.

    Raises:
        ConfigError: ``is_expert``; or grouped products were asked for that the linears do not allow.
        ParallelError: the experts cannot be spread evenly.

    Source: Shazeer et al. 2017; Fedus et al. 2021 (Switch Transformer); dropless as Gale et al. 2022 (MegaBlocks);
        shared expert: DeepSeekMoE, 2024, and its gate: Qwen1.5-MoE, 2024.

    Example:
        >>> import transom
        >>> spec = transom.load_spec("tiny-llama").to_dict() | {
        ...     "use": {"mlp": "moe"}, "options": {"mlp": {"num_experts": 4}}
        ... }
        >>> moe = transom.build(spec).layers[0].mlp
        >>> output, bias = moe(torch.ones(2, 3, 192))
        >>> output.shape, bias, len(list(moe.experts.children()))
        (torch.Size([2, 3, 192]), None, 4)
    """

    Submodules = MoESubmodules
    Options = MoEOptions

    def __init__(
        self,
        config: TransformerConfig,
        submodules: MoESubmodules,
        *,
        is_expert: bool = False,
        input_size: int | None = None,
        ffn_hidden_size: int | None = None,
        tp_group: ProcessGroup | None = None,
        options: MoEOptions | None = None,
    ) -> None:
        super().__init__(config, tp_group)
        options = MoEOptions() if options is None else options
        ranks, split = Ranks.of(tp_group), config.sequence_parallel
        spread = options.expert_parallel and ranks.size > 1
        _check(options, ranks.size, is_expert=is_expert)
        self.num_experts, self.top_k = options.num_experts, options.top_k
        self.place = place_of(ranks, expert_parallel=spread, sequence_parallel=split)
        width = config.hidden_size if input_size is None else input_size
        mean = partial(_mean_over_ranks, ranks=ranks) if spread and split else _as_is
        self.router = Router(config, width, options, mean)
        widths = input_size, ffn_hidden_size
        made = _experts(config, submodules, options, widths, ranks, tp_group)
        self.experts = Experts(made, options.compute, are_own=spread)
        self.shared_expert = _shared_expert(config, submodules, options, input_size, tp_group)
        self.shared_expert_gate = SharedExpertGate(config, width) if options.shared_expert_gate else None
        if spread and split:
            mark_partial_gradients(self.router)  # each rank routes its own tokens
        if split and self.shared_expert_gate is not None:
            mark_partial_gradients(self.shared_expert_gate)

    @classmethod
    def supports(cls, request: MLPRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        if request.is_expert:
            yield "a mixture is no expert of another"

    @classmethod
    def parts(cls, request: MLPRequest, options: MoEOptions | None) -> Parts:
        """Say what is inside: the linears of every expert, and of the shared one."""
        options = MoEOptions() if options is None else options
        _check(options, request.config.tensor_model_parallel_size, compiles=request.context.compile)
        kinds: dict[str, list[Part]] = {}
        for path, expert in _planned(request, options):
            for name, part in MLP.parts(expert).items():
                assert isinstance(part, Part)
                # The router reads what goes in too: no norm may be taken in by one expert's linear.
                kinds.setdefault(name, []).append(replace(part, path=f"{path}.{name}", reads_input=False))
        return kinds

    @classmethod
    def describe(cls, request: MLPRequest, options: MoEOptions | None) -> str:
        """Say how many experts a token goes to, and where they are."""
        options = MoEOptions() if options is None else options
        shared = "" if options.shared_expert_ffn_hidden_size is None else " and a shared one"
        spread = options.expert_parallel and request.config.tensor_model_parallel_size > 1
        return f"{options.top_k} of {options.num_experts} experts{shared}{', spread over the ranks' if spread else ''}"

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Run the mixture.

        Args:
            hidden_states: ``[b, s, h]``.
            per_token_scale: ``[b, s]``, multiplies what each expert gives, biases included.

        Returns:
            ``[b, s, h]``, and the bias that the caller must add: the shared expert's, where neither a gate nor a scale
            multiplies it; the experts' are added here.
        """
        mixed = self._mixture(hidden_states, per_token_scale)
        if self.shared_expert is None:
            return mixed, None
        shared, bias = self.shared_expert(hidden_states)
        if self.shared_expert_gate is None and per_token_scale is None:
            return mixed + shared, bias
        shared = shared if bias is None else shared + bias.to(shared.dtype)
        if self.shared_expert_gate is not None:
            shared = shared * self.shared_expert_gate(hidden_states)
        if per_token_scale is not None:
            shared = (shared * per_token_scale.unsqueeze(-1)).to(mixed.dtype)
        return mixed + shared, None

    def backward_dw(self) -> None:
        """Add the weights' gradients that backward put off."""
        if self.shared_expert is not None:
            self.shared_expert.backward_dw()
        self.experts.backward_dw()

    def _mixture(self, hidden_states: Tensor, per_token_scale: Tensor | None) -> Tensor:
        x = self.place.enter(hidden_states)  # [b, s, h]
        tokens = x.flatten(0, -2)  # [t, h]
        weights, chosen = self.router(tokens)  # [t, k]
        if per_token_scale is not None:
            weights = weights * self.place.enter(per_token_scale.unsqueeze(-1)).flatten(0, -2)
        order = Order.of(chosen, self.num_experts)
        rows = order.sorted(self.place.lend(tokens), self.top_k)  # [t·k, h], expert by expert
        rows = order.unsorted(self.place.compute(self.experts, rows, order.counts))
        weighed = torch.unflatten(rows, 0, (len(tokens), self.top_k)) * self.place.lend(weights).unsqueeze(
            -1
        )  # [t, k, h]
        return self.place.leave(weighed.sum(1).to(rows.dtype).view(*x.shape[:-1], rows.shape[-1]))


def _planned(request: MLPRequest, options: MoEOptions) -> Iterator[tuple[str, MLPRequest]]:
    """Give each expert's path, and what it must serve."""
    width = options.expert_ffn_hidden_size or request.ffn_hidden_size or request.config.ffn_hidden_size
    request = replace(request, after_norm=False)
    expert = replace(_as_placed(request, options), is_expert=True, ffn_hidden_size=width)
    for number in range(options.num_experts):
        yield f"experts.{number}", expert
    if options.shared_expert_ffn_hidden_size is not None:
        yield "shared_expert", replace(request, ffn_hidden_size=options.shared_expert_ffn_hidden_size)


def _as_placed(request: MLPRequest, options: MoEOptions) -> MLPRequest:
    """Give what an expert must serve: one that is whole on its rank knows of no other."""
    if not options.expert_parallel:
        return request
    return replace(
        request, config=_of_one_rank(request.config), context=replace(request.context, tensor_parallel_size=1)
    )


def _of_one_rank(config: TransformerConfig) -> TransformerConfig:
    if config.tensor_model_parallel_size == 1:
        return config
    return config.replace(tensor_model_parallel_size=1, sequence_parallel=False)


def _experts(
    config: TransformerConfig,
    submodules: MoESubmodules,
    options: MoEOptions,
    widths: tuple[int | None, int | None],
    ranks: Ranks,
    tp_group: ProcessGroup | None,
) -> dict[int, MLP]:
    """Make this rank's experts; the others' are made too and dropped, so that all draw as one process does."""
    width, inner = widths
    inner = options.expert_ffn_hidden_size or inner or config.ffn_hidden_size
    own = range(options.num_experts)
    if options.expert_parallel:
        config, tp_group = _of_one_rank(config), None
        share = options.num_experts // ranks.size
        own = own[ranks.rank * share : (ranks.rank + 1) * share]
    made = ((i, MLP(config, submodules.of(i), True, width, inner, tp_group)) for i in range(options.num_experts))
    return {number: expert for number, expert in made if number in own}


def _shared_expert(
    config: TransformerConfig,
    submodules: MoESubmodules,
    options: MoEOptions,
    input_size: int | None,
    tp_group: ProcessGroup | None,
) -> MLP | None:
    width = options.shared_expert_ffn_hidden_size
    if width is None:
        return None
    return MLP(config, submodules.of(options.num_experts), False, input_size, width, tp_group)


def _check(options: MoEOptions, ranks: int, *, is_expert: bool = False, compiles: bool = False) -> None:
    if is_expert:
        raise _config_error("a mixture is no expert of another.", "is_expert", True)
    if compiles and options.compute == "sequential":
        raise _config_error("a compiled model cannot run experts one after another.", "compute", "sequential")
    if not options.expert_parallel or ranks == 1:
        return
    if compiles:
        raise _config_error("a compiled model cannot have its experts on several ranks.", "expert_parallel", True)
    if options.num_experts % ranks:
        raise ParallelError(
            f"{options.num_experts} experts cannot be spread evenly over {ranks} ranks.",
            asked_by="options.mlp.expert_parallel",
            hint=f"num_experts: a multiple of {ranks}, or fewer tensor-parallel ranks",
            experts=options.num_experts,
            ranks=ranks,
        )


def _config_error(what: str, field: str, value: object) -> ConfigError:
    hint = {
        "is_expert": "use: mlp",
        "compute": "compute: auto",
        "expert_parallel": "expert_parallel: false",
    }
    return ConfigError(
        what, hint=hint[field], field=field, value=value, path=f"options.mlp.{field}", file=None, line=None
    )


def _as_is(x: Tensor) -> Tensor:
    return x


def _mean_over_ranks(x: Tensor, *, ranks: Ranks) -> Tensor:
    return sum_over_ranks(x, ranks) / ranks.size


if TYPE_CHECKING:
    _builder: Callable[..., MLPInterface] = MoE
    _as_asked: MLPBuilder = MoE
