"""What torch is told, and how the module behaves: dropout, compiled, copied, refused."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.slots.core_attention import CoreAttentionRequest
from transom_torch_dot_product.attention import TorchDotProductAttention

B, N, S, T, D = 2, 4, 5, 7, 8


def attention(
    layer_number: int = 1, *, g: int = N, attention_dropout: float | None = None, **fields: object
) -> TorchDotProductAttention:
    request = CoreAttentionRequest(
        context=BuildContext(), num_attention_heads=N, num_query_groups=g, head_size=D, value_head_size=D, **fields
    )  # fmt: skip
    config = TransformerConfig(num_layers=3, hidden_size=N * D, num_attention_heads=N, num_query_groups=g)
    return TorchDotProductAttention(
        config, request=request, layer_number=layer_number, attention_dropout=attention_dropout
    )


def inputs(s: int, t: int, *, g: int = N) -> list[Tensor]:
    return [torch.randn(B, *shape, D, requires_grad=True) for shape in ((s, N), (t, g), (t, g))]


def mask_of(kind: str, s: int) -> AttentionMask:
    torch.manual_seed(1)
    made = {
        "nothing": lambda: AttentionMask(),
        "causal": lambda: AttentionMask(causal=True),
        "padding": lambda: AttentionMask(causal=True, key_padding=torch.arange(T) >= torch.tensor([[2], [0]])),
        "packed": lambda: AttentionMask(
            query_segments=(torch.arange(s) > 2).long().expand(B, s),
            key_segments=(torch.arange(T) > 3).long().expand(B, T),
        ),
        "bias": lambda: AttentionMask(bias=torch.randn(1, N, s, T)),
        "bias_grad": lambda: AttentionMask(causal=True, bias=torch.randn(1, N, s, T, requires_grad=True)),
        "alibi": lambda: AttentionMask(causal=True, alibi_slopes=torch.rand(N)),
        "keep": lambda: AttentionMask(keep=torch.rand(B, 1, s, T) < 0.6),
    }
    return made[kind]()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What torch is told, call by call."""
    told: list[dict[str, object]] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, value: Tensor, **kwargs: object) -> Tensor:
        told.append({"key": key, "query": query, **kwargs})
        return kernel(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    return told


@pytest.mark.parametrize(
    ("s", "mask", "is_causal"),
    [
        (T, AttentionMask(causal=True), True),
        (T, AttentionMask(causal=True, window=(None, 3)), True),
        (1, AttentionMask(causal=True), False),
        (S, None, False),
        (S, AttentionMask(), False),
    ],
    ids=["causal", "causal within a right window", "one query", "nothing", "empty"],
)
def test_attention_draws_no_mask_when_words_will_do(
    s: int, mask: AttentionMask | None, is_causal: bool, calls: list[dict[str, object]]
) -> None:
    attention()(*inputs(s, T), mask=mask)
    assert calls[0]["attn_mask"] is None
    assert calls[0]["is_causal"] is is_causal


@pytest.mark.parametrize("kind", ["causal", "padding", "bias_grad", "alibi"])
def test_attention_never_says_causal_beside_a_mask(kind: str, calls: list[dict[str, object]]) -> None:
    for s in (1, S, T):
        attention()(*inputs(s, T), mask=mask_of(kind, s))
    assert not any(call["attn_mask"] is not None and call["is_causal"] for call in calls)


def test_attention_hands_over_views_and_does_not_repeat_heads(calls: list[dict[str, object]]) -> None:
    query, key, value = inputs(S, T, g=2)
    attention(g=2)(query, key, value)
    assert calls[0]["enable_gqa"] is True
    assert calls[0]["key"].shape == (B, 2, T, D)  # type: ignore[attr-defined]
    assert calls[0]["key"].data_ptr() == key.data_ptr()  # type: ignore[attr-defined]
    attention()(*inputs(S, T))
    assert calls[1]["enable_gqa"] is False


class Drawn(TorchDispatchMode):
    """Counts the tensors ``[.., s, t]`` that come into being, but those that torch's own kernel makes."""

    def __init__(self, s: int, t: int) -> None:
        super().__init__()
        self.shape, self.names = (s, t), list[str]()

    def __torch_dispatch__(
        self, function: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        made = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        is_new = isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given
        if is_new and made.shape[-2:] == self.shape:
            self.names.append(str(function))
        return made


KINDS_DRAWN = ["causal", "padding", "blind rows", "packed", "keep", "bias", "alibi", "everything"]


def drawn_mask(kind: str) -> AttentionMask:
    if kind == "blind rows":
        return AttentionMask(causal=True, key_padding=torch.arange(T) >= torch.tensor([[T], [3]]))
    if kind == "everything":
        padding = torch.arange(T) < torch.tensor([[2], [T]])
        bias = torch.randn(1, N, S, T).masked_fill(torch.rand(S, T) < 0.5, float("-inf"))
        return AttentionMask(causal=True, key_padding=padding, bias=bias, alibi_slopes=torch.rand(N), window=(3, 0))
    return mask_of(kind, S)


@pytest.mark.parametrize("kind", KINDS_DRAWN)
def test_attention_draws_a_mask_once_for_all_layers(kind: str, calls: list[dict[str, object]]) -> None:
    mask, layers, tensors = drawn_mask(kind), [attention(i + 1) for i in range(4)], inputs(S, T)
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # of which the scores are no tensor
        with Drawn(S, T) as first:
            layers[0](*tensors, mask=mask)
        with Drawn(S, T) as others:
            for layer in layers[1:]:
                layer(*tensors, mask=mask)
    assert first.names
    assert others.names == []
    assert calls[0]["attn_mask"] is not None
    assert all(call["attn_mask"] is calls[0]["attn_mask"] for call in calls)


def test_attention_adds_a_learned_bias_in_one_operation_a_layer() -> None:
    """It is new in every layer, so that a layer which is recomputed saves what it saved before."""
    padding = torch.arange(T) >= torch.tensor([[T], [3]])
    mask = AttentionMask(causal=True, key_padding=padding, bias=torch.randn(1, N, S, T, requires_grad=True))
    tensors = [tensor.detach() for tensor in inputs(S, T)]
    attention()(*tensors, mask=mask)
    with sdpa_kernel(SDPBackend.MATH), Drawn(S, T) as second:
        attention(2)(*tensors, mask=mask)
    before_the_scores = second.names[: next(i for i, name in enumerate(second.names) if "mm" in name)]
    assert before_the_scores == ["aten.where.self"]


def test_attention_drops_weights_in_training_only() -> None:
    """With all scores alike, a kept weight is 1/(t(1-p)): values of one keep their mean, and their spread is known."""
    t, p = 4000, 0.25
    module = attention(dropout=p)
    query, key, value = torch.zeros(1, 1, N, D), torch.zeros(1, t, N, D), torch.ones(1, t, N, D)
    assert torch.equal(module.eval()(query, key, value), module(query, key, value))
    torch.testing.assert_close(module(query, key, value), torch.ones(1, 1, N, D))
    out = torch.stack([module.train()(query, key, value)[0, 0, :, 0] for _ in range(50)])
    assert out.mean().item() == pytest.approx(1, abs=5 * math.sqrt(p / (1 - p) / t / out.numel()))
    assert out.std().item() == pytest.approx(math.sqrt(p / (1 - p) / t), rel=0.3)


def test_attention_dropout_is_the_arguments_when_it_is_given() -> None:
    module = attention(dropout=0.5, attention_dropout=0.0)
    tensors = inputs(S, T)
    assert torch.equal(module(*tensors), module(*tensors))


class Layers(torch.nn.Module):
    """Several layers that share a step's mask."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(attention(i + 1, g=2) for i in range(number))

    def forward(self, query: Tensor, key: Tensor, mask: AttentionMask) -> Tensor:
        for layer in self.layers:
            query = query + layer(query, key, key, mask=mask)
        return query


@pytest.mark.parametrize("kind", ["nothing", "causal", "padding", "packed", "bias_grad", "alibi", "keep"])
@pytest.mark.parametrize("s", [S, T])
def test_attention_compiles_in_one_graph(kind: str, s: int) -> None:
    torch.compiler.reset()
    layers = Layers(2)
    query, key, _ = inputs(s, T, g=2)
    wanted = layers(query, key, mask_of(kind, s))
    found = torch.compile(layers, fullgraph=True, backend="aot_eager")(query, key, mask_of(kind, s))
    torch.testing.assert_close(found, wanted)
    grads = [torch.autograd.grad(out.square().sum(), (query, key)) for out in (found, wanted)]
    torch.testing.assert_close(*grads)


def test_attention_is_not_compiled_again_for_another_layer() -> None:
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    layers = Layers(3)
    query, key, _ = inputs(S, S, g=2)
    for layer in layers.layers:
        layer.compile(fullgraph=True, backend=count)
        layer(query, key, key, mask=AttentionMask(causal=True))
    assert len(graphs) == 1


def test_attention_holds_no_state_and_can_be_pickled() -> None:
    with torch.device("meta"):
        module = attention(window=(3, 0))
    assert not module.state_dict()
    tensors = inputs(S, T)
    assert torch.equal(pickle.loads(pickle.dumps(module))(*tensors), module(*tensors))


def test_attention_refuses_deterministic_training_on_cuda_when_torchs_switch_is_off() -> None:
    def reasons(**context: object) -> list[str]:
        fields = {"num_attention_heads": N, "num_query_groups": N, "head_size": D, "value_head_size": D}
        request = CoreAttentionRequest(context=BuildContext(deterministic=True, **context), **fields)
        return list(TorchDotProductAttention.supports(request))

    assert reasons(device="cpu") == []
    assert reasons(device="cuda", mode="infer") == []
    (reason,) = reasons(device="cuda")
    assert "torch.use_deterministic_algorithms(True), which is off" in reason
    torch.use_deterministic_algorithms(True)
    try:
        assert reasons(device="cuda") == []
    finally:
        torch.use_deterministic_algorithms(False)
