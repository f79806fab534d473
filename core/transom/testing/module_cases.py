"""What every implementation's module must survive: meta devices, state, pickling, recomputation, inference."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from transom.testing.agreement import Tensors
from transom.testing.case import Case, ConformanceError
from transom.testing.closeness import TOLERANCES, assert_close, assert_same
from transom.testing.compile_cases import compile_cases
from transom.testing.exercise import Exercise, inputs_of, total
from transom.testing.subject import Subject, asking_for_determinism

__all__ = ["module_cases"]

Check = Callable[[Subject, Exercise], None]


def module_cases(subject: Subject, exercise: Exercise) -> Iterator[Case]:
    """Make the cases that hold in every slot.

    Args:
        subject: what is tested.
        exercise: how it is built and called.
    """

    def case(name: str, shows: str, check: Check) -> Case:
        return Case("module", name, shows, partial(check, subject, exercise), subject.dtype, subject.device)

    yield case("meta", "it is built on the meta device, then filled, and computes the same", _check_meta)
    yield case("reset_parameters", "reset_parameters() fills what was allocated empty", _check_reset)
    yield case("state", "a state dict goes from one module to another, outputs included", _check_state)
    yield case("pickle", "pickled and copied modules compute the same", _check_pickle)
    yield case("eval", "in evaluation the same inputs give the same bits, whatever came between", _check_eval)
    yield case("inference_mode", "inference changes no result, and can be followed by training", _check_inference)
    if subject.card.deterministic:
        yield case("deterministic", "the same inputs give the same bits, gradients included", _check_deterministic)
    if subject.declares_training:
        yield case(
            "optimizer",
            "training goes on bit for bit from saved model and optimizer states",
            subject.in_training(_check_optimizer),
        )
        yield case(
            "recompute", "activation recomputation changes no bit of a gradient", subject.in_training(_check_recompute)
        )
        yield case(
            "frozen", "frozen parameters get no gradient, and inputs still do", subject.in_training(_check_frozen)
        )
    yield from compile_cases(subject, exercise)


def _check_meta(subject: Subject, exercise: Exercise) -> None:
    module, meta = exercise.filled(), exercise.make(1, device="meta")
    allocated = [name for name, tensor in meta.state_dict(keep_vars=True).items() if not tensor.is_meta]
    if allocated:
        raise ConformanceError(f"built on the meta device, it allocated {', '.join(allocated)}")
    meta.to_empty(device=subject.device)
    meta.load_state_dict(module.state_dict())
    _expect_same_outputs(exercise, subject, module, meta.train(subject.trains), "the output after to_empty()")


def _check_reset(subject: Subject, exercise: Exercise) -> None:
    module = exercise.make(1, device="meta").to_empty(device=subject.device)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
    for name, child in module.named_modules():
        if not any(True for _ in child.parameters(recurse=False)):
            continue
        if not callable(getattr(child, "reset_parameters", None)):
            raise ConformanceError(f"{name or 'the module'} has parameters and no reset_parameters()")
        child.reset_parameters()
    empty = [name for name, parameter in module.named_parameters() if not bool(parameter.isfinite().all())]
    if empty:
        raise ConformanceError(f"reset_parameters() leaves {', '.join(empty)} unfilled")


def _check_state(subject: Subject, exercise: Exercise) -> None:
    first, second = exercise.filled(), exercise.filled()
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    kept = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
    try:
        second.load_state_dict(kept)
    except RuntimeError as error:
        raise ConformanceError(f"its own state does not load: {error}") from error
    _expect_same_outputs(exercise, subject, first, second, "the output with a loaded state")


def _check_pickle(subject: Subject, exercise: Exercise) -> None:
    module = exercise.filled()
    exercise.run(module, inputs_of(exercise, subject))  # what a call leaves behind must be picklable too
    module.zero_grad()
    _expect_same_outputs(
        exercise, subject, module, pickle.loads(pickle.dumps(module)), "the output of a pickled module"
    )
    _expect_same_outputs(exercise, subject, module, copy.deepcopy(module), "the output of a copied module")


def _check_eval(subject: Subject, exercise: Exercise) -> None:
    module = exercise.filled().eval()
    inputs = inputs_of(exercise, subject)
    with torch.no_grad():
        before = _copies(exercise.run(module, inputs))
        exercise.run(module, inputs_of(exercise, subject))  # other numbers
        after = exercise.run(module, inputs)
    for name, output in before.items():
        assert_same(after[name], output, f"{name} after another call")


def _check_inference(subject: Subject, exercise: Exercise) -> None:
    module = exercise.filled().eval()
    inputs = inputs_of(exercise, subject)
    with torch.inference_mode():
        inferred = _copies(exercise.run(module, inputs))
    with torch.set_grad_enabled(subject.trains):
        outputs = exercise.run(module, inputs)
    for name, output in inferred.items():
        assert_same(outputs[name], output, f"{name} under inference_mode()")
    if subject.trains:
        _backward(total(outputs))


def _check_deterministic(subject: Subject, exercise: Exercise) -> None:
    with asking_for_determinism():
        module = exercise.filled()
    first, second = (_results(subject, exercise, module) for _ in range(2))
    for name, tensor in first.items():
        assert_same(second[name], tensor, f"{name} of a second run")


def _check_optimizer(subject: Subject, exercise: Exercise) -> None:
    module = exercise.filled()
    if not list(module.parameters()):
        return
    inputs = inputs_of(exercise, subject)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    _step(exercise, module, optimizer, inputs)
    other = exercise.filled()
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    resumed = torch.optim.AdamW(other.parameters(), lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _step(exercise, module, optimizer, inputs)
    _step(exercise, other, resumed, inputs)
    for (name, parameter), continued in zip(module.named_parameters(), other.parameters(), strict=True):
        _expect_repeated(subject, continued, parameter, f"{name} after a step from saved states")


def _check_recompute(subject: Subject, exercise: Exercise) -> None:
    module = exercise.filled()
    plain = _results(subject, exercise, module)
    recomputed = _results(subject, exercise, module, recompute=True)
    for name, tensor in plain.items():
        _expect_repeated(subject, recomputed[name], tensor, f"{name} under recomputation")


def _expect_repeated(subject: Subject, found: Tensor, wanted: Tensor, what: str) -> None:
    """Expect the same bits; on a GPU, whose backward passes add up in any order, the same but for rounding."""
    if subject.device == "cpu":
        assert_same(found, wanted, what)
    else:
        assert_close(found, wanted.detach().to("cpu", torch.float64), TOLERANCES[subject.dtype].gradients, what)


def _check_frozen(subject: Subject, exercise: Exercise) -> None:
    module = exercise.filled().requires_grad_(False)
    inputs = inputs_of(exercise, subject)
    outputs = exercise.run(module, inputs)
    if not any(tensor.requires_grad for tensor in inputs.values()):
        return
    _backward(total(outputs))
    unreached = [name for name, tensor in inputs.items() if tensor.requires_grad and tensor.grad is None]
    if unreached:
        raise ConformanceError(f"with frozen parameters no gradient reaches {', '.join(unreached)}")
    if any(parameter.grad is not None for parameter in module.parameters()):
        raise ConformanceError("a frozen parameter got a gradient")


def _results(subject: Subject, exercise: Exercise, module: nn.Module, *, recompute: bool = False) -> Tensors:
    """Run forward, and backward where there are gradients, from the same random state; give all that came out."""
    torch.manual_seed(5)
    inputs = inputs_of(exercise, subject)
    module.zero_grad()
    with torch.set_grad_enabled(subject.trains):
        if recompute:
            outputs: Tensors = checkpoint(partial(exercise.run, module), inputs, use_reentrant=False)
        else:
            outputs = exercise.run(module, inputs)
    results = _copies(outputs)
    if subject.trains and total(outputs).requires_grad:
        _backward(total(outputs))
        leaves = inputs | dict(module.named_parameters())
        results |= {
            f"the gradient of {name}": leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None
        }
    return results


def _step(exercise: Exercise, module: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensors) -> None:
    torch.manual_seed(5)
    optimizer.zero_grad()
    _backward(total(exercise.run(module, inputs)))
    optimizer.step()


def _expect_same_outputs(exercise: Exercise, subject: Subject, one: nn.Module, other: nn.Module, what: str) -> None:
    inputs = inputs_of(exercise, subject)
    with torch.no_grad():
        outputs, others = exercise.run(one.eval(), inputs), exercise.run(other.eval(), inputs)
    for name, output in outputs.items():
        assert_same(others[name], output, f"{what} ({name})")


def _copies(outputs: Tensors) -> Tensors:
    return {name: output.detach().clone() for name, output in outputs.items()}


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
