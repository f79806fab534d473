"""Compilation in one graph, once for all layers, and the custom operators that are found on the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from transom.testing.agreement import Tensors
from transom.testing.case import Case, ConformanceError
from transom.testing.closeness import TOLERANCES, assert_close
from transom.testing.exercise import Exercise, inputs_of, total
from transom.testing.requests import plain_request
from transom.testing.subject import Subject

__all__ = ["compile_cases"]

_LAYERS = 3
_OF_TORCH = frozenset(
    {"aten", "prim", "prims", "c10d", "_c10d_functional", "_dtensor", "quantized", "inductor", "rngprims", "torch_attn"}
    | {"higher_order", "mkldnn", "mkl", "onednn"}
)


def compile_cases(subject: Subject, exercise: Exercise) -> Iterator[Case]:
    """Make the case of compilation, where it is declared, and that of custom operators."""
    dtype, device = subject.dtype, subject.device
    if subject.card.compiles:
        shows = f"torch.compile(fullgraph=True) makes one graph that serves {_LAYERS} layers"
        yield Case("module", "compile", shows, partial(_check_compile, subject, exercise), dtype, device)
    shows = "its custom operators pass torch.library.opcheck"
    yield Case("module", "custom_ops", shows, partial(_check_operators, subject, exercise), dtype, device)


def _check_compile(subject: Subject, exercise: Exercise) -> None:
    subject.require(plain_request(subject.slot.name, subject.context(compile=True)))
    modules = [exercise.filled(number) for number in range(1, _LAYERS + 1)]
    inputs = inputs_of(exercise, subject)
    graphs: list[int] = []
    backend = _counting(graphs)
    torch.compiler.reset()
    try:
        with warnings.catch_warnings():  # torch's tracer makes instances of autograd functions, and warns of itself
            warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
            for number, module in enumerate(modules, start=1):
                compiled = torch.compile(module, fullgraph=True, backend=backend)
                _compare(subject, exercise, module, compiled, inputs)
                if len(graphs) != 1:
                    raise ConformanceError(f"layer {number} was compiled anew: {len(graphs)} graphs so far, expected 1")
    except torch._dynamo.exc.TorchDynamoException as error:
        raise ConformanceError(f"it does not compile in one graph: {error}") from error
    finally:
        torch.compiler.reset()


def _counting(graphs: list[int]) -> Callable[..., Any]:
    """Give a backend that traces forward and backward, runs them as they are, and counts the graphs it is given."""
    from torch._dynamo.backends.registry import lookup_backend

    aot_eager = lookup_backend("aot_eager")

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Any:
        graphs.append(len(example_inputs))
        return aot_eager(graph, example_inputs)

    return backend


def _compare(subject: Subject, exercise: Exercise, module: Any, compiled: Any, inputs: Tensors) -> None:
    """Compare compiled and plain outputs, and in training the gradients of the inputs."""
    tolerance = TOLERANCES[subject.dtype]
    results = []
    for each in (module, compiled):
        torch.manual_seed(5)
        with torch.set_grad_enabled(subject.trains):
            outputs = exercise.run(each, inputs)
        leaves = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
        gradients: Tensors = {}
        if leaves:
            found = torch.autograd.grad(total(outputs), list(leaves.values()))
            gradients = dict(zip(leaves, found, strict=True))
        results.append((outputs, gradients))
    (plain, plain_gradients), (ours, our_gradients) = results
    for name, output in plain.items():
        assert_close(ours[name], output.detach().cpu().double(), tolerance.outputs, f"compiled {name}")
    for name, gradient in plain_gradients.items():
        wanted = gradient.cpu().double()
        assert_close(our_gradients[name], wanted, tolerance.gradients, f"the compiled gradient of {name}")


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first call of every operator that is not torch's own, with copies of its arguments."""

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Stand back where an operator compiles itself, as torch's own modes do."""
        return True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[Any, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in _OF_TORCH and func not in self.calls:
            self.calls[func] = tree_map_only(Tensor, _leaf, (tuple(args), dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.requires_grad)


def _check_operators(subject: Subject, exercise: Exercise) -> None:
    module = exercise.filled()
    inputs = inputs_of(exercise, subject)
    with _Recorder() as recorder, torch.set_grad_enabled(subject.trains):
        exercise.run(module, inputs)
    for operator, (args, kwargs) in recorder.calls.items():
        try:
            torch.library.opcheck(operator, args, kwargs)
        except Exception as error:
            raise ConformanceError(f"{operator}: {error}") from error
