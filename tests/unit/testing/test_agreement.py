from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from transom import LayoutMap
from transom.checkpoint.layout_map import Rule
from transom.checkpoint.layout_operations import Concat
from transom.slots.norm import NormRequest
from transom.testing import CaseSkipped, ConformanceError
from transom.testing.agreement import (
    Agreement,
    agreement_cases,
    cast,
    check_agreement,
    fill_parameters,
    shake_parameters,
)
from transom.testing.subject import Subject

from .conftest import NORM


class Scale(nn.Module):
    """Multiplies by a parameter."""

    def __init__(self, dtype: str):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=getattr(torch, dtype)))

    def forward(self, x):
        return x * self.weight


def _agreement(run=None, expected=None, **fields) -> Agreement:
    return Agreement(
        name="scale",
        shows="it scales",
        request=lambda context: NormRequest(
            context=context, features=fields.get("features", frozenset()), hidden_size=3, eps=0.0
        ),
        make=lambda subject, request: Scale(request.context.dtype),
        inputs=lambda: {"x": torch.randn(2, 3, dtype=torch.float64)},
        run=run or (lambda module, inputs: {"output": module(inputs["x"])}),
        expected=expected or (lambda state, inputs: {"output": inputs["x"] * state["weight"]}),
        **fields,
    )


@pytest.fixture
def subject(norm):
    return Subject(norm())


class Parted(nn.Module):
    """Keeps its parameter in two parts, and says so."""

    def __init__(self, dtype: str, order: tuple[str, str]):
        super().__init__()
        dtype = getattr(torch, dtype)
        self.head, self.tail = nn.Parameter(torch.ones(1, dtype=dtype)), nn.Parameter(torch.ones(2, dtype=dtype))
        self.order = order

    def layout_map(self):
        return LayoutMap([Rule(self.order, "weight", Concat((1, 2) if self.order[0] == "head" else (2, 1)))])

    def forward(self, x):
        return x * torch.cat([self.head, self.tail])


def test_check_agreement_sees_parameters_in_the_canonical_layout(subject):
    agreement = _agreement()
    right = replace(agreement, make=lambda subject, request: Parted(request.context.dtype, ("head", "tail")))
    check_agreement(subject, right, "float32")
    wrong = replace(agreement, make=lambda subject, request: Parted(request.context.dtype, ("tail", "head")))
    with pytest.raises(ConformanceError, match="output"):
        check_agreement(subject, wrong, "float32")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_check_agreement_passes_when_all_agrees(subject, dtype):
    check_agreement(subject, _agreement(), dtype)


def _write(module, inputs):
    output = module(inputs["x"]) * 1
    inputs["x"].data.add_(1)
    return {"output": output}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda module, inputs: {"output": 2 * module(inputs["x"])}, r"^output: "),
        (lambda module, inputs: {"output": module(inputs["x"])[:1]}, r"^output: shape \[1, 3\], expected \[2, 3\]$"),
        (
            lambda module, inputs: {"output": module(inputs["x"]).double()},
            r"^output is torch.float64, expected torch.float32$",
        ),
        (lambda module, inputs: {"result": module(inputs["x"])}, r"^it gives result; expected output$"),
        (lambda module, inputs: {}, r"^it gives nothing; expected output$"),
        (lambda module, inputs: {"output": module(inputs["x"]).detach()}, r"^no gradient can go back"),
        (lambda module, inputs: {"output": module(inputs["x"].detach())}, r"^no gradient reaches x$"),
        (lambda module, inputs: {"output": inputs["x"] * module.weight.detach()}, r"^no gradient reaches weight$"),
        (
            lambda module, inputs: {"output": module(inputs["x"] / 2 + inputs["x"].detach() / 2)},
            r"^the gradient of x: ",
        ),
        (_write, r"^it wrote to its input 'x'$"),
    ],
    ids=["value", "shape", "dtype", "name", "nothing", "detached", "input", "parameter", "gradient", "written"],
)
def test_check_agreement_tells_what_differs(subject, run, said):
    with pytest.raises(ConformanceError, match=said):
        check_agreement(subject, _agreement(run), "float32")


def test_check_agreement_asks_no_gradient_of_what_only_infers(norm):
    subject = Subject(norm(modes=["infer"]))
    check_agreement(subject, _agreement(lambda module, inputs: {"output": module(inputs["x"]).detach()}), "float32")


def test_check_agreement_never_asks_for_less_than_the_floor(subject):
    def nearly(module, inputs):
        return {"output": module(inputs["x"]) * 1.001}

    check_agreement(subject, _agreement(nearly, floor=1e-2), "float32")
    with pytest.raises(ConformanceError):
        check_agreement(subject, _agreement(nearly), "float32")


def test_agreement_cases_leave_out_what_is_not_declared(subject):
    agreements = (
        _agreement(),
        _agreement(features=frozenset({"layernorm"})),
        _agreement(features=frozenset({"rmsnorm"})),
    )
    cases = list(agreement_cases(subject, agreements))
    assert [case.id for case in cases] == ["agreement/scale[cpu-float32]"] * 2 + ["declared/rmsnorm[cpu]"]
    cases[-1].run()


def test_cast_brings_floats_into_the_dtype_and_leaves_the_rest():
    given = {
        "x": torch.ones(2, dtype=torch.float64),
        "y": torch.ones(2, dtype=torch.float64),
        "ids": torch.ones(2).long(),
    }
    found = cast(given, "bfloat16", "cpu", {"y": "float32"})
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "x": torch.bfloat16,
        "y": torch.float32,
        "ids": torch.int64,
    }


@pytest.mark.parametrize("fill", [fill_parameters, shake_parameters])
def test_filling_leaves_no_parameter_as_it_was(fill):
    module = nn.Linear(4, 4)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    fill(module)
    assert all(bool((parameter != old).all()) for parameter, old in zip(module.parameters(), before, strict=True))


REFUSING = """
    @classmethod
    def supports(cls, request):
        if {condition}:
            yield "{reason}"
"""


def _declared(norm, condition: str, reason: str, **fields):
    """The case that a norm serves RMSNorm, of one whose supports() refuses."""
    code = NORM + REFUSING.format(condition=condition, reason=reason)
    subject = Subject(norm("Slow", code=code, **fields))
    agreement = _agreement(features=frozenset({"rmsnorm"}))
    (case,) = (each for each in agreement_cases(subject, (agreement,)) if each.area == "declared")
    return case


def test_agreement_cases_show_a_false_claim_when_all_that_is_needed_is_here(norm):
    case = _declared(norm, "request.features", "no kernel", requires=["torch>=2"])
    said = "its card declares rmsnorm, and it refuses every request for it: scale: no kernel"
    with pytest.raises(ConformanceError, match=f"^{said}(\n|$)"):
        case.run()


@pytest.mark.parametrize(
    ("condition", "reason", "requires", "said"),
    [
        ("False", "", ["no-such-kernels>=2"], "it requires no-such-kernels>=2, which is not installed"),
        ("request.features", "the other has it", ["torch>=2 | no-such-kernels>=2"], "the other has it"),
        ("True", "libacme.so is missing", ["torch>=2"], "libacme.so is missing"),
    ],
)
def test_agreement_cases_leave_a_claim_open_when_what_is_needed_may_be_missing(norm, condition, reason, requires, said):
    case = _declared(norm, condition, reason, requires=requires)
    claim = "its card declares rmsnorm, and it refuses every request for it: scale: "
    with pytest.raises(CaseSkipped, match=f"^{re.escape(claim + said)}"):
        case.run()
