"""register: names, chains and what becomes of them in transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
import transom
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transom.errors import InputError, UnknownImplementationError
from transom.registry.registry import default_registry
from transom.transformer.dot_product_attention import DotProductAttention
from transom_hf_attention import register

TOKENS = torch.arange(9)[None] + 2
made: list[nn.Module] = []


def noting(config: Any, *, request: Any, layer_number: int, **others: Any) -> nn.Module:
    made.append(DotProductAttention(config, request=request, layer_number=layer_number, **others))
    made[-1].noted = (request, layer_number)
    return made[-1]


@pytest.fixture(autouse=True)
def _empty() -> None:
    made.clear()


def test_register_takes_every_name_there_is() -> None:
    names = register()
    assert len(set(names)) == len(names)
    for each in default_registry().implementations("core_attention"):
        assert f"transom:{each.ref.replace('flash', 'Flash')}" in names
    assert {"transom:dot_product", "transom:torch_dot_product"} <= set(names)
    assert set(names) <= set(AttentionInterface._global_mapping)
    assert set(names) <= set(AttentionMaskInterface._global_mapping)


def test_register_gives_the_names_to_pass() -> None:
    assert register("dot_product", "transom/dot_product") == ("transom:dot_product", "transom:transom/dot_product")


def test_register_refuses_a_name_that_nothing_has() -> None:
    with pytest.raises(UnknownImplementationError, match="no core_attention is named 'dot_produkt'") as caught:
        register("dot_product | dot_produkt")
    assert caught.value.asked_by == "register(...)"


def test_register_imports_nothing(model: Callable[..., Any]) -> None:
    with transom.override("core_attention", "noting", noting):
        (name,) = register("noting")
        one = model("llama", name)
        assert made == []
        one(TOKENS)
    assert [core.noted[1] for core in made] == [1, 2, 3]


def test_a_core_attention_is_told_what_the_call_needs(model: Callable[..., Any]) -> None:
    with transom.override("core_attention", "noting", noting):
        (name,) = register("noting")
        one = model("gemma2", name)
        one(TOKENS, attention_mask=torch.tensor([[0] + [1] * 8]))
    request = made[0].noted[0]
    assert request.features == {"causal", "gqa", "padding", "softcap", "window"}
    assert (request.num_attention_heads, request.num_query_groups, request.head_size) == (4, 2, 8)
    assert (request.softcap, made[0].softmax_scale) == (2.0, 5**-0.5)
    assert (request.context.mode, request.context.dtype) == ("train", "float32")
    assert made[1].noted[0].features == {"causal", "gqa", "padding", "softcap"}


def test_each_kind_of_call_has_a_module_of_its_own(model: Callable[..., Any]) -> None:
    with transom.override("core_attention", "noting", noting):
        (name,) = register("noting")
        one = model("llama", name)
        one(TOKENS)
        one(TOKENS)
        assert len(made) == 3
        with torch.no_grad():
            one.generate(TOKENS, max_new_tokens=4, do_sample=False)
        assert {core.noted[0].context.mode for core in made[3:]} == {"infer"}
        register("noting")
        one(TOKENS)
    assert made[-1] is not made[2]


def test_a_chain_takes_the_first_that_can(model: Callable[..., Any]) -> None:
    (name,) = register("torch_dot_product | dot_product")
    assert name == "transom:torch_dot_product | dot_product"
    torch.testing.assert_close(model("gemma2", name)(TOKENS).logits, model("gemma2")(TOKENS).logits)


@pytest.mark.parametrize(
    ("own", "theirs"),
    [("flash_attention", "Flash_attention"), ("my_sdpa", "my_Sdpa"), ("a_flex_attention", "a_Flex_attention")],
)
def test_a_name_that_transformers_takes_for_its_own_is_written_with_a_capital(
    model: Callable[..., Any], own: str, theirs: str
) -> None:
    with transom.override("core_attention", own, noting):
        (name,) = register(own)
        assert name == f"transom:{theirs}"
        one = model("llama")
        wanted = one(TOKENS).logits
        one.set_attn_implementation(name)
        torch.testing.assert_close(one(TOKENS).logits, wanted)
    assert made


def test_a_folder_is_loaded_with_a_core_attention(model: Callable[..., Any], tmp_path: Any) -> None:
    one = model("llama")
    one.save_pretrained(tmp_path)
    (name,) = register("torch_dot_product")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
    torch.testing.assert_close(other(TOKENS).logits, one(TOKENS).logits)


class Attention(nn.Module):
    """An attention of a model, as far as a core attention can see it."""

    is_causal = True
    layer_idx = 0


@pytest.mark.parametrize(
    ("name", "what"),
    [("head_mask", "a mask of heads"), ("cache", "a paged cache"), ("block_indices", "a choice of blocks")],
)
def test_what_would_be_lost_is_refused(name: str, what: str) -> None:
    attend = AttentionInterface()["transom:dot_product"]
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(InputError, match=f"the model gives its attention {what}") as caught:
        attend(Attention(), x, x, x, None, **{name: torch.ones(1)})
    assert caught.value.asked_by == 'attn_implementation="transom:dot_product", Attention'
    attend(Attention(), x, x, x, None, **{name: None})


def test_a_learned_position_bias_gets_its_gradient() -> None:
    attend = AttentionInterface()["transom:torch_dot_product"]
    query, key, value = (torch.randn(2, 4, 5, 8, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    out, weights = attend(Attention(), query.requires_grad_(), key, value, None, position_bias=bias)
    assert weights is None
    hidden = torch.ones(5, 5).triu(1).bool()
    scores = (query @ key.mT / 8**0.5 + bias).masked_fill(hidden, -torch.inf)
    exact = (scores.softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(out, exact)
    (mine,), (theirs,) = (torch.autograd.grad(each.square().sum(), [bias]) for each in (out, exact))
    torch.testing.assert_close(mine, theirs)
