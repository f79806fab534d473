"""Agreement with a float64 reference, outputs and gradients: what conformance means in a kernel slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from transom.checkpoint.module_layout import to_canonical
from transom.registry.card import alternatives
from transom.registry.verdict import unmet_requirements
from transom.slots.request import BuildContext, Request
from transom.testing.case import Case, CaseSkipped, ConformanceError
from transom.testing.closeness import TOLERANCES, Tolerance, assert_close
from transom.testing.requests import plain_request
from transom.testing.subject import Subject

__all__ = ["Agreement", "Tensors", "agreement_cases", "cast", "check_agreement", "fill_parameters", "shake_parameters"]

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Agreement:
    """One way to call an implementation, and what must come out.

    Args:
        name: of the case.
        shows: what agreement shows, a sentence.
        request: makes the request from a context.
        make: makes the module of a subject for the request.
        inputs: makes named tensors on the CPU, floating ones in float64; the same at every call.
        run: calls the module with the inputs.
        expected: computes the same in float64, from the module's state and the inputs.
        features: what the request asks for.
        constant: inputs that need no gradient.
        principal: is tried in every dtype that is declared, not only in the first.
        dtypes: of inputs that have another dtype than the module, by name.
        result_dtypes: of outputs that have another dtype than the module, by name.
        wide: outputs that are in float32 where the module is in a narrower dtype.
        floor: no smaller tolerance is asked for, where rounding of what is prescribed costs as much.
    """

    name: str
    shows: str
    request: Callable[[BuildContext], Request]
    make: Callable[[Subject, Request], nn.Module]
    inputs: Callable[[], Tensors]
    run: Callable[[nn.Module, Tensors], Tensors]
    expected: Callable[[Tensors, Tensors], Tensors]
    features: frozenset[str] = frozenset()
    constant: frozenset[str] = frozenset()
    principal: bool = False
    dtypes: Mapping[str, str] = field(default_factory=dict)
    result_dtypes: Mapping[str, str] = field(default_factory=dict)
    wide: frozenset[str] = frozenset()
    floor: float = 0.0


def agreement_cases(subject: Subject, agreements: tuple[Agreement, ...]) -> Iterator[Case]:
    """Make the cases of what a subject declares, and one for each declared feature: that it is ever served.

    Args:
        subject: what is tested.
        agreements: all that its slot knows.
    """
    declared = tuple(each for each in agreements if each.features <= subject.features)
    for agreement in declared:
        for dtype in subject.dtypes if agreement.principal else subject.dtypes[:1]:
            check = partial(check_agreement, subject, agreement, dtype)
            yield Case("agreement", agreement.name, agreement.shows, check, dtype, subject.device)
    for feature in sorted(subject.features):
        tried = tuple(each for each in declared if feature in each.features)
        if tried:
            shows = f"a request for {feature} is served"
            check = partial(_check_served, subject, feature, tried)
            yield Case("declared", feature, shows, check, device=subject.device)


def check_agreement(subject: Subject, agreement: Agreement, dtype: str) -> None:
    """Run the implementation and the float64 reference on the same numbers, and compare.

    Raises:
        ConformanceError: outputs, gradients, dtypes or shapes differ, or an input was written to.
        CaseSkipped: the implementation's own ``supports()`` refuses the request.
    """
    module = agreement.make(subject, agreement.request(subject.context(dtype)))
    fill_parameters(module)
    given = cast(agreement.inputs(), dtype, "cpu", agreement.dtypes)
    inputs = {name: tensor.to(subject.device).clone() for name, tensor in given.items()}
    if subject.trains:
        _require_gradients(inputs, agreement.constant)
    with torch.set_grad_enabled(subject.trains):
        outputs = agreement.run(module, inputs)
    _expect_unwritten(inputs, given)
    own = {name: tensor.detach().to("cpu", torch.float64) for name, tensor in module.named_parameters()}
    state = {name: tensor.clone() for name, tensor in to_canonical(module, own).items()}
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor.clone() for name, tensor in given.items()}
    _require_gradients(wide, agreement.constant)
    _require_gradients(state, frozenset())
    expected = agreement.expected(state, wide)
    tolerance = Tolerance(*(max(agreement.floor, allowed) for allowed in TOLERANCES[dtype]))
    at_least = dict.fromkeys(agreement.wide, dtype if dtype == "float64" else "float32")
    dtypes = {**dict.fromkeys(expected, dtype), **at_least, **agreement.result_dtypes}
    _compare_outputs(outputs, expected, dtypes, tolerance)
    if subject.trains:
        _compare_gradients(outputs, expected, partial(_gradients, module, inputs), wide | state, tolerance)
    _expect_unwritten(inputs, given)


def _expect_unwritten(inputs: Tensors, given: Tensors) -> None:
    for name, tensor in inputs.items():
        if not torch.equal(tensor.detach().cpu(), given[name]):
            raise ConformanceError(f"it wrote to its input {name!r}")


def fill_parameters(module: nn.Module) -> None:
    """Fill all parameters with random numbers, so that no scale is one and no bias is zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) / 2)


def shake_parameters(module: nn.Module) -> None:
    """Add small random numbers to all parameters, so that no scale is one, no bias is zero, and nothing explodes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_((torch.randn(parameter.shape, dtype=torch.float64) / 10).to(parameter))


def cast(inputs: Tensors, dtype: str, device: str, others: Mapping[str, str] | None = None) -> Tensors:
    """Bring inputs into a dtype (integers and booleans stay) and onto a device."""
    own = {name: (others or {}).get(name, dtype) for name in inputs}
    return {
        name: tensor.to(device, getattr(torch, own[name])) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in inputs.items()
    }


def _require_gradients(tensors: Tensors, constant: frozenset[str]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and name not in constant:
            tensor.requires_grad_()


def _compare_outputs(outputs: Tensors, expected: Tensors, dtypes: Mapping[str, str], tolerance: Tolerance) -> None:
    if outputs.keys() != expected.keys():
        raise ConformanceError(f"it gives {', '.join(outputs) or 'nothing'}; expected {', '.join(expected)}")
    for name, reference in expected.items():
        wanted = getattr(torch, dtypes[name])
        if outputs[name].dtype is not wanted:
            raise ConformanceError(f"{name} is {outputs[name].dtype}, expected {wanted}")
        assert_close(outputs[name], reference, tolerance.outputs, name)


def _compare_gradients(
    outputs: Tensors, expected: Tensors, gradients: Callable[[], Tensors], references: Tensors, tolerance: Tolerance
) -> None:
    """Send the same random gradient back through both, and compare what arrives at every input and parameter."""
    directions = {name: torch.randn_like(reference) for name, reference in expected.items()}
    if not any(output.requires_grad for output in outputs.values()):
        raise ConformanceError("no gradient can go back: the outputs do not require one")
    ours = sum((out.double() * directions[name].to(out.device)).sum() for name, out in outputs.items())
    theirs = sum((out * directions[name]).sum() for name, out in expected.items())
    assert isinstance(ours, Tensor)
    assert isinstance(theirs, Tensor)
    ours.backward()  # type: ignore[no-untyped-call]
    theirs.backward()  # type: ignore[no-untyped-call]
    found = gradients()
    for name, reference in references.items():
        if reference.grad is None:
            continue
        if name not in found:
            raise ConformanceError(f"no gradient reaches {name}")
        assert_close(found[name], reference.grad, tolerance.gradients, f"the gradient of {name}")


def _gradients(module: nn.Module, inputs: Tensors) -> Tensors:
    """Give the gradients of inputs and parameters, of these by their canonical names."""
    own = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    reached = {name: tensor.grad for name, tensor in inputs.items() if tensor.grad is not None}
    return reached | dict(to_canonical(module, own, moments=True))


def _check_served(subject: Subject, feature: str, tried: tuple[Agreement, ...]) -> None:
    refusals = []
    for agreement in tried:
        verdict = subject.verdict(agreement.request(subject.context()))
        if verdict.ok:
            return
        refusals.append(f"{agreement.name}: {verdict.reason}")
    said = f"its card declares {feature}, and it refuses every request for it: {'; '.join(refusals)}"
    if _may_lack_what_it_needs(subject):
        raise CaseSkipped(said)
    raise ConformanceError(said)


def _may_lack_what_it_needs(subject: Subject) -> bool:
    """Whether a package, or a device that fits, may be all that is missing: nothing then disproves what a card says."""
    requires = subject.card.requires
    if any(unmet_requirements((each,)) for requirement in requires for each in alternatives(requirement)):
        return True
    stage = subject.verdict(plain_request(subject.slot.name, subject.context())).stage
    return stage == "hardware" or (stage == "supports" and bool(requires))
