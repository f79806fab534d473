"""Cases of the core_attention slot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transom.slots.core_attention import CoreAttentionRequest
from transom.slots.request import BuildContext, Request
from transom.testing.agreement import Agreement, Tensors, agreement_cases
from transom.testing.case import Case
from transom.testing.exercise import Exercise
from transom.testing.kernels.attention_dropout import attention_dropout_cases
from transom.testing.kernels.attention_pages import attention_pages_cases
from transom.testing.kernels.combined_scenario import combined
from transom.testing.kernels.context_scenarios import CONTEXT_SCENARIOS
from transom.testing.kernels.data_scenarios import DATA_SCENARIOS
from transom.testing.kernels.distance_scenarios import DISTANCE_SCENARIOS
from transom.testing.kernels.scenario import Scenario
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject, config_for
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.collectives import Ranks
from transom.transformer.context_parallel import ContextShare, attend_in_share

__all__ = ["cases"]

_LAYOUTS = {
    "sequence_first": "inputs whose batch dimension is not the outermost in memory",
    "fused_projection": "inputs that are slices of one fused projection",
    "head_first": "inputs whose heads lie before their tokens in memory",
}


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a core attention."""
    scenarios = (*DISTANCE_SCENARIOS, *DATA_SCENARIOS, combined(subject.features), *CONTEXT_SCENARIOS)
    agreements = tuple(_agreement(scenario) for scenario in scenarios)
    plain = scenarios[0]
    laid_out = tuple(_agreement(plain, name=name, shows=shows, layout=name) for name, shows in _LAYOUTS.items())
    yield from agreement_cases(subject, agreements + laid_out)
    yield from attention_dropout_cases(subject)
    yield from attention_pages_cases(subject)
    yield from module_cases(subject, _exercise(subject))


def _agreement(scenario: Scenario, *, name: str = "", shows: str = "", layout: str = "") -> Agreement:
    learned = "bias_grad" in scenario.features
    return Agreement(
        name=name or scenario.name,
        shows=shows or scenario.shows,
        request=partial(_request, scenario),
        make=partial(_make, scenario),
        inputs=partial(_inputs, scenario),
        run=partial(_run, scenario, layout),
        expected=partial(_expected, scenario),
        features=scenario.asked,
        constant=frozenset() if learned else frozenset({"bias"}),
        principal=scenario.principal,
    )


def _request(scenario: Scenario, context: BuildContext) -> CoreAttentionRequest:
    n, g = scenario.heads
    d, dv = scenario.head_sizes
    return CoreAttentionRequest(
        context=context,
        features=scenario.asked,
        num_attention_heads=n,
        num_query_groups=g,
        head_size=d,
        value_head_size=dv,
        window=scenario.window,
        softcap=scenario.config.get("attn_logit_softcapping"),
    )


def _make(
    scenario: Scenario, subject: Subject, request: Request, *, layer_number: int = 3, on: str | None = None
) -> nn.Module:
    n, g = scenario.heads
    config = config_for(
        hidden_size=n * scenario.head_sizes[0],
        num_attention_heads=n,
        num_query_groups=g,
        params_dtype=request.context.dtype,
        **scenario.config,
    )
    scale = scenario.scale
    return subject.build(request, config, on=on, request=request, layer_number=layer_number, softmax_scale=scale)


def _inputs(scenario: Scenario) -> Tensors:
    """Make query ``[b, s, n, d]``, key ``[b, t, g, d]``, value ``[b, t, g, dv]``, and the bias if there is one."""
    b, s, t = scenario.sizes
    (n, g), (d, dv) = scenario.heads, scenario.head_sizes
    made = {
        "query": torch.randn(b, s, n, d, dtype=torch.float64) * scenario.magnitude,
        "key": torch.randn(b, t, g, d, dtype=torch.float64) * scenario.magnitude,
        "value": torch.randn(b, t, g, dv, dtype=torch.float64),
    }
    if scenario.bias_shape is not None:
        made["bias"] = torch.randn(*scenario.bias_shape, s, t, dtype=torch.float64)
    return made


def _run(scenario: Scenario, layout: str, module: nn.Module, inputs: Tensors) -> Tensors:
    query, key, value = (_lay_out(inputs[name], layout) for name in ("query", "key", "value"))
    mask = _mask(scenario, inputs.get("bias"), query.device)
    if scenario.shares > 1:
        return {"output": _in_shares(scenario, module, (query, key, value), mask)}
    return {"output": module(query, key, value, mask=mask)}


def _in_shares(
    scenario: Scenario, module: Any, inputs: tuple[Tensor, Tensor, Tensor], mask: AttentionMask | None
) -> Tensor:
    """Ask for one share of the queries after another, and put the answers in the order of the whole."""
    query, key, value = inputs
    shares = [ContextShare(Ranks("", scenario.shares, rank)) for rank in range(scenario.shares)]
    windowed = scenario.window is not None
    asked = [attend_in_share(module, share.of(query), key, value, mask, share, windowed=windowed) for share in shares]
    early, late = zip(*(answer.chunk(2, dim=1) for answer in asked), strict=True)
    return torch.cat([*early, *reversed(late)], dim=1)


def _mask(scenario: Scenario, bias: Tensor | None, device: torch.device) -> AttentionMask | None:
    if scenario.mask is None:
        return None
    fields: dict[str, Any] = {
        name: torch.as_tensor(value).to(device) if isinstance(value, list | Tensor) else value
        for name, value in scenario.mask.items()
    }
    return AttentionMask(**fields) if bias is None else AttentionMask(**fields, bias=bias)


def _lay_out(x: Tensor, layout: str) -> Tensor:
    """Give the same numbers with other strides; gradients flow through."""
    if layout == "sequence_first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "head_first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "fused_projection":
        return torch.cat([x, x.detach() + 1, x.detach() - 1], dim=-1).chunk(3, dim=-1)[0]
    return x


def _expected(scenario: Scenario, state: Tensors, inputs: Tensors) -> Tensors:
    """Attend by the definition: one term after the other, over all pairs of a query and a key."""
    query, key, value = inputs["query"], inputs["key"], inputs["value"]
    (b, s, n, d), (t, g) = query.shape, key.shape[1:3]
    heads = torch.arange(n) // (n // g)  # head i reads group i // (n // g)
    key, value = key[:, :, heads], value[:, :, heads]
    scale = 1 / math.sqrt(d) if scenario.scale is None else scenario.scale
    scores = torch.einsum("bsnd,btnd->bnst", query, key) * scale
    if "attn_logit_softcapping" in scenario.config:
        cap = scenario.config["attn_logit_softcapping"]
        scores = cap * torch.tanh(scores / cap)
    index = (
        torch.arange(b)[:, None, None, None],
        torch.arange(n)[:, None, None],
        torch.arange(s)[:, None],
        torch.arange(t),
    )
    if scenario.adds is not None:
        scores = scores + scenario.adds(*index)
    if "bias" in inputs:
        scores = scores + inputs["bias"]
    visible = torch.ones(b, n, s, t, dtype=torch.bool)
    if scenario.sees is not None:
        visible = scenario.sees(*index).expand(b, n, s, t)
    weights = _weights(scores, visible, _sink(scenario, state))
    return {"output": torch.einsum("bnst,btnd->bsnd", weights, value)}


def _sink(scenario: Scenario, state: Tensors) -> Tensor | None:
    """Give the sink's logit, ``[n, 1, 1]``."""
    kind = scenario.config.get("softmax_type")
    if kind == "learnable":
        return state["softmax_offset"][:, None, None]
    return torch.zeros(1, 1, 1, dtype=torch.float64) if kind == "off-by-one" else None


def _weights(scores: Tensor, visible: Tensor, sink: Tensor | None) -> Tensor:
    """Compute the softmax over the keys that are visible; a query without any gets no weight at all."""
    seeing = visible.any(dim=-1, keepdim=True)
    logits = scores.masked_fill(~visible & seeing, -torch.inf)
    if sink is not None:
        logits = torch.cat([logits, sink.expand(*logits.shape[:-1], 1)], dim=-1)
    weights = logits.softmax(dim=-1)[..., : scores.shape[-1]]
    return weights * seeing


def _exercise(subject: Subject) -> Exercise:
    """Attend causally if that is declared, else to everything."""
    name = "causal" if "causal" in subject.features else "everyone"
    scenario = next(each for each in DISTANCE_SCENARIOS if each.name == name)

    def make(layer_number: int, device: str | None = None) -> nn.Module:
        request = _request(scenario, subject.context())
        return _make(scenario, subject, request, layer_number=layer_number, on=device)

    return Exercise(make, partial(_inputs, scenario), partial(_run, scenario, ""))
