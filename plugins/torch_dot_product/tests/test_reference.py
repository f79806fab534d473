"""TorchDotProductAttention gives what core's reference gives, for what its card declares, and is refused the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transom
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.errors import ResolutionError
from transom.registry.resolve import resolve
from transom.slots.core_attention import CORE_ATTENTION, CoreAttentionRequest
from transom.transformer.dot_product_attention import DotProductAttention
from transom_torch_dot_product.attention import TorchDotProductAttention

N, D = 4, 8
LACKS = {"softcap", "sink_off_by_one", "sink_learnable"}


def request(features: frozenset[str] = frozenset(), **fields: Any) -> CoreAttentionRequest:
    sizes = {"num_attention_heads": N, "num_query_groups": N, "head_size": D, "value_head_size": D}
    return CoreAttentionRequest(context=BuildContext(), features=features, **(sizes | fields))


@st.composite
def masks(draw: st.DrawFn, b: int, s: int, t: int) -> AttentionMask:
    """Any mask over b rows of s queries and t keys, floating fields left to the seed."""

    def integers(shape: tuple[int, ...], low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape)

    causal = draw(st.booleans())
    fields: dict[str, Any] = {
        "window": draw(st.none() | st.tuples(st.none() | st.integers(0, 6), st.none() | st.integers(0, 6))),
        "key_padding": integers((b, t), 0, 2).bool(),
        "query_segments": integers((b, s), -1, 3),
        "key_segments": integers((b, t), -1, 3),
        "prefix_lengths": integers((b,), 0, t) if causal else None,
        "query_positions": integers((b, s), -1, t),
        "key_positions": integers((t,), -1, t),
        "keep": torch.rand(b, draw(st.sampled_from([1, N])), s, t) < 0.7,
        "bias": torch.randn(draw(st.sampled_from([1, b])), N, s, t, dtype=torch.float64, requires_grad=True),
        "alibi_slopes": torch.rand(N),
    }
    named = draw(st.sets(st.sampled_from(sorted(fields)), max_size=4))
    named |= {"query_segments"} if "key_segments" in named else set()
    named |= {"key_segments"} if "query_segments" in named else set()
    return AttentionMask(causal=causal, **{name: fields[name] for name in named})


@given(data=st.data(), seed=st.integers(0, 2**16))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_attention_gives_what_the_reference_gives(data: st.DataObject, seed: int) -> None:
    torch.manual_seed(seed)
    b, s, t = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)))
    g, dv = data.draw(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([4, 8, 12])))
    window = data.draw(st.none() | st.tuples(st.integers(0, 5), st.none() | st.integers(0, 5)))
    scale = data.draw(st.none() | st.floats(0.1, 2.0))
    mask = data.draw(st.none() | masks(b, s, t))
    shapes = ((b, s, N, D), (b, t, g, D), (b, t, g, dv))
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    learned = [] if mask is None or mask.bias is None else [mask.bias]

    wanted = request(num_query_groups=g, value_head_size=dv, window=window)
    config = TransformerConfig(num_layers=2, hidden_size=N * D, num_attention_heads=N, num_query_groups=g)
    seen = []
    for cls in (TorchDotProductAttention, DotProductAttention):
        out = cls(config, request=wanted, layer_number=2, softmax_scale=scale)(*leaves, mask=mask)
        seen.append((out, torch.autograd.grad(out.sin().sum(), [*leaves, *learned])))
    torch.testing.assert_close(seen[0], seen[1], atol=1e-12, rtol=1e-10)


def test_card_declares_all_that_is_tested() -> None:
    (listed,) = [i for i in transom.list_implementations("core_attention") if i.name == "torch_dot_product"]
    assert listed.card is not None
    assert set(listed.card.features) == set(CORE_ATTENTION.features) - LACKS


@pytest.mark.parametrize("feature", sorted(LACKS))
def test_attention_is_refused_with_a_reason_when_it_lacks_a_feature(feature: str) -> None:
    with pytest.raises(ResolutionError, match=f"its card does not declare {feature}") as caught:
        resolve("core_attention", "torch_dot_product", request(frozenset({feature, "causal"})))
    (verdict,) = caught.value.resolution.verdicts
    assert verdict.stage == "features"
    assert CORE_ATTENTION.features[feature] in f"{verdict.reason} {verdict.hint}"


def test_attention_is_chosen_before_the_next_in_a_chain_unless_it_lacks_something() -> None:
    chain = "torch_dot_product | dot_product"
    plain, capped = (resolve("core_attention", chain, request(frozenset(f))) for f in ({"causal"}, {"softcap"}))
    assert (plain.chosen.name, capped.chosen.name) == ("torch_dot_product", "dot_product")
