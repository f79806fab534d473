"""The product: values and gradients by a formula in float64, who makes it, and where torch makes it after all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transom_onednn_linear import product
from transom_onednn_linear.product import linear, missing

ONEDNNS, GRAPHS = "mkldnn._linear_pointwise.default", "transom_onednn_linear.product.default"

pytestmark = pytest.mark.skipif(missing() is not None, reason="this torch was built without oneDNN")


class Called(TorchDispatchMode):
    """Notes the operators that multiply, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(word in str(func) for word in ("linear", "mm", "product")):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", [(4,), (7, 4), (2, 3, 4), (2, 1, 3, 4), (0, 4), (1, 1, 4)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_are_those_of_the_formula(shape, has_bias) -> None:
    x, weight, bias = drawn(*shape), drawn(5, 4), drawn(5)
    leaves = (x, weight, *([bias] if has_bias else []))
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = torch.einsum("...i,oi->...o", wide[0], wide[1]) + (wide[2] if has_bias else 0.0)
    cotangent = torch.randn(expected.shape, dtype=torch.float64)

    found = linear(*leaves)

    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(found, leaves, cotangent.float())
    theirs = torch.autograd.grad(expected, wide, cotangent)
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-5)


def test_onednn_makes_the_output_and_the_inputs_gradient_and_torch_the_weights() -> None:
    x, weight = drawn(6, 4), drawn(5, 4)
    with Called() as forward:
        out = linear(x, weight)
    with Called() as backward:
        out.sum().backward()
    assert forward.names == [ONEDNNS]
    assert backward.names == [ONEDNNS, "aten.mm.default"]


def test_nothing_is_multiplied_for_gradients_that_nobody_needs() -> None:
    x, weight = drawn(6, 4), drawn(5, 4)
    for leaf, expected in ((x, [ONEDNNS]), (weight, ["aten.mm.default"])):
        out = linear(x if leaf is x else x.detach(), weight if leaf is weight else weight.detach())
        with Called() as backward:
            out.sum().backward()
        assert backward.names == expected


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_onednn_makes_it_where_nothing_is_differentiated(mode) -> None:
    with mode(), Called() as called:
        linear(drawn(6, 4), drawn(5, 4))
    assert called.names == [ONEDNNS]


def test_gradients_of_gradients_are_those_of_the_formula() -> None:
    x, weight = drawn(3, 4), drawn(5, 4)
    found = []
    for multiply in (linear, F.linear):
        (first,) = torch.autograd.grad(multiply(x, weight).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), (x, weight)))
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


def test_inputs_and_weights_may_lie_in_memory_as_they_like() -> None:
    x, weight = drawn(4, 6).t(), drawn(5, 8)[:, ::2]
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    torch.testing.assert_close(linear(x, weight[:1].expand(5, 4)), F.linear(x, weight[:1].expand(5, 4)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_torch_makes_it_in_other_dtypes(dtype) -> None:
    x, weight = drawn(6, 4, dtype=dtype), drawn(5, 4, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_torch_makes_it_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(drawn(6, 4), drawn(5, 4))
    assert out.dtype == torch.bfloat16


def test_torch_makes_it_on_meta_devices() -> None:
    assert linear(torch.empty(6, 4, device="meta"), torch.empty(5, 4, device="meta")).shape == (6, 5)


def test_transforms_of_functions_go_through() -> None:
    x, weight = drawn(6, 4).detach(), drawn(5, 4).detach()
    mapped = torch.func.vmap(linear, in_dims=(0, None))(x, weight)
    torch.testing.assert_close(mapped, F.linear(x, weight))
    gradient = torch.func.grad(lambda each: linear(each, weight).sum())(x)
    torch.testing.assert_close(gradient, weight.sum(0).expand(6, 4))


def test_sizes_that_do_not_fit_are_refused_in_torchs_words() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        linear(drawn(6, 3), drawn(5, 4))


def test_bias_that_does_not_fit_is_refused_in_torchs_words() -> None:
    with pytest.raises(RuntimeError, match="must match"):
        linear(drawn(6, 4), drawn(5, 4), drawn(3))


def test_inputs_without_features_give_the_bias() -> None:
    out = linear(torch.empty(2, 0), torch.empty(3, 0), torch.tensor([1.0, 2.0, 3.0]))
    assert out.tolist() == [[1.0, 2.0, 3.0]] * 2


def test_floating_operations_are_counted_as_those_of_torch() -> None:
    totals = []
    for multiply in (linear, F.linear):
        x, weight = drawn(2, 3, 4), drawn(5, 4)
        with FlopCounterMode(display=False) as counter:
            multiply(x, weight).sum().backward()
        totals.append(counter.get_total_flops())
    assert totals == [3 * 2 * 6 * 4 * 5] * 2


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_compiling_makes_one_graph_with_all_products() -> None:
    seen: list[str] = []

    def noted(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=noted)
    torch.compiler.reset()
    x, weight, bias = drawn(6, 4), drawn(5, 4), drawn(5)
    compiled = torch.compile(linear, fullgraph=True, backend=backend)(x, weight, bias)
    gradients = torch.autograd.grad(compiled.square().sum(), (x, weight, bias))
    assert [name for name in seen if name == GRAPHS] == [GRAPHS] * 3  # the weight's gradient too
    eager = linear(x, weight, bias)
    torch.testing.assert_close(compiled, eager)
    for mine, wanted in zip(gradients, torch.autograd.grad(eager.square().sum(), (x, weight, bias)), strict=True):
        torch.testing.assert_close(mine, wanted)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_compiled_gradients_are_zeros_where_there_are_no_tokens() -> None:
    torch.compiler.reset()
    compiled = torch.compile(linear, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 0):
        x, weight = drawn(rows, 4), drawn(5, 4)
        compiled(x, weight).sum().backward()
        torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(5, 4))
    torch.compiler.reset()


def test_a_single_row_is_left_to_the_compiler() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(linear, fullgraph=True, backend=backend)(drawn(1, 1, 4), drawn(5, 4))
    (graph,) = graphs
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [torch._C._nn.linear]
    torch.compiler.reset()


def test_the_operator_for_graphs_passes_torchs_own_check() -> None:
    x, weight, bias = (leaf.detach() for leaf in (drawn(6, 4), drawn(5, 4), drawn(5)))
    torch.library.opcheck(torch.ops.transom_onednn_linear.product.default, (x, weight, bias))
    torch.library.opcheck(torch.ops.transom_onednn_linear.product.default, (x, weight.t().contiguous().t(), None))


def test_missing_says_why_where_torch_has_no_onednn(monkeypatch) -> None:
    monkeypatch.setattr(product, "_pointwise", None)
    assert missing() == "this torch was built without oneDNN"
