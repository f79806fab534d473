"""The case of architectures whose ranks share every sequence."""

from __future__ import annotations

import pytest
from transom.registry.implementation import Implementation
from transom.registry.registry import default_registry
from transom.testing import ConformanceError, cases_for
from transom.testing.context import context_cases
from transom.testing.ranks import ranks
from transom.testing.subject import Subject

ATTENTIONS = '''
from transom.transformer.attention import SelfAttention


class Faithful(SelfAttention):
    """Core's."""


class Forgetful(SelfAttention):
    """Forgets where its tokens are."""

    def forward(self, hidden_states, *, mask=None, positions=None, cache=None):
        return super().forward(hidden_states, mask=mask)
'''


@pytest.fixture
def attention(site, make_card):
    """Give a function that makes the implementation of one of two self-attentions, which ranks can import."""
    card = make_card("self_attention.Faithful", "self_attention.Forgetful", features=["context_parallel"])
    points = {"self_attention": {"Faithful": "Faithful", "Forgetful": "Forgetful"}}
    site.install("acme-attentions", points, code=ATTENTIONS, card=card)
    yield lambda name: Implementation("self_attention", name, "acme-attentions", "1.0", f"acme_attentions.parts:{name}")
    ranks().close()


@pytest.mark.multiprocess
def test_case_finds_an_attention_that_forgets_where_tokens_are(attention):
    (case,) = context_cases(Subject(attention("Faithful")))
    assert (case.area, case.name) == ("parallel", "context_parallel")
    case.run()
    (case,) = context_cases(Subject(attention("Forgetful")))
    with pytest.raises(ConformanceError, match="the output on rank 0"):
        case.run()


@pytest.mark.parametrize(("slot", "name", "count"), [("model", "decoder", 1), ("layer", "transformer_layer", 1)])
def test_cases_are_made_of_what_is_declared(slot, name, count):
    made = cases_for(default_registry().get(slot, name))
    assert len([case for case in made if case.id.startswith("parallel/context_parallel")]) == count


@pytest.mark.parametrize(("slot", "name"), [("model", "t5"), ("mlp", "mlp"), ("core_attention", "dot_product")])
def test_no_case_is_made_of_what_is_not_declared_or_has_its_own(slot, name):
    assert list(context_cases(Subject(default_registry().get(slot, name)))) == []
