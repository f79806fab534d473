"""Whether a builder accepts what callers pass."""

from __future__ import annotations

import functools
import inspect
from inspect import Parameter, Signature
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transom.registry.signatures import builder_mismatches, mismatches, module_mismatches
from transom.slots import SLOTS
from transom.slots.norm import Norm, NormBuilder


def _signature(text: str) -> Signature:
    scope: dict = {}
    exec(f"def f({text}): ...", scope)
    return inspect.signature(scope["f"])


@pytest.mark.parametrize(
    ("candidate", "contract", "expected"),
    [
        ("a, b", "a, b", ()),
        ("x, y, /", "a, b, /", ()),
        ("a, b=1, *, c=2", "a", ()),
        ("*args, **kwargs", "a, /, b, *, c=1", ()),
        ("a, b", "a, *, b", ()),
        ("a, *, b=1", "a, *, b=1", ()),
        ("a", "a, b, /", ("takes no argument number 2 (`b`)",)),
        ("a", "a, b", ("does not accept `b`",)),
        ("a", "a, *, b", ("does not accept `b`",)),
        ("a, b, /", "a, b", ("does not accept `a` by keyword", "does not accept `b` by keyword")),
        ("a, *, b", "a, b", ("does not accept `b` by position",)),
        ("a, **kwargs", "a, b", ("does not accept `b` by position",)),
        ("b, a", "a, b", ("has `a` as argument 2, where callers pass number 1",
                          "has `b` as argument 1, where callers pass number 2")),
        ("a, b", "a, b=1", ("requires `b`, which callers may leave out",)),
        ("a, *, b", "a, *, b=1", ("requires `b`, which callers may leave out",)),
        ("x, y, /", "a, b=1, /", ("requires `b`, which callers may leave out",)),
        ("a, b", "a", ("requires `b`, which callers do not pass",)),
        ("a=None", "b=None, /, *, a", ("takes `a` for two arguments",)),
        ("a=None, *args, **kwargs", "b", ("takes argument number 1 as `a`, where callers pass `b`",)),
        ("a, *, b", "a", ("requires `b`, which callers do not pass",)),
    ],
)  # fmt: skip
def test_mismatches_names_the_parameter(candidate, contract, expected):
    assert mismatches(_signature(candidate), _signature(contract)) == expected


def test_mismatches_asks_for_further_keywords():
    assert mismatches(_signature("a, *, options"), _signature("a"), keywords=("options",)) == ()
    assert mismatches(_signature("a"), _signature("a"), keywords=("options",)) == ("does not accept `options`",)


_KINDS = [Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY]


@st.composite
def _signatures(draw):
    names = draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=4))
    kinds = sorted(draw(st.sampled_from(_KINDS)) for _ in names)
    positional = sum(kind is not Parameter.KEYWORD_ONLY for kind in kinds)
    first_default = draw(st.integers(0, positional))
    has_default = [i >= first_default if i < positional else draw(st.booleans()) for i in range(len(names))]
    parameters = [
        Parameter(name, kind, default=None if default else Parameter.empty)
        for name, kind, default in zip(names, kinds, has_default, strict=True)
    ]
    if draw(st.booleans()):
        parameters.insert(positional, Parameter("args", Parameter.VAR_POSITIONAL))
    if draw(st.booleans()):
        parameters.append(Parameter("kwargs", Parameter.VAR_KEYWORD))
    return Signature(parameters)


def _calls(contract: Signature):
    """Yield every call that the contract allows, as positional and keyword arguments."""
    parameters = [p for p in contract.parameters.values() if p.kind in _KINDS]
    by_position = [p for p in parameters if p.kind is not Parameter.KEYWORD_ONLY]
    least = sum(p.kind is Parameter.POSITIONAL_ONLY and p.default is Parameter.empty for p in parameters)
    for count in range(least, len(by_position) + 1):
        rest = [p for p in parameters if p not in by_position[:count] and p.kind is not Parameter.POSITIONAL_ONLY]
        required = [p.name for p in rest if p.default is Parameter.empty]
        yield count, required
        yield count, [p.name for p in rest]


@given(_signatures(), _signatures())
def test_mismatches_finds_none_only_if_every_allowed_call_binds(candidate, contract):
    plain = contract.replace(parameters=[p for p in contract.parameters.values() if p.kind in _KINDS])
    if mismatches(candidate, plain):
        return
    for count, names in _calls(plain):
        candidate.bind(*range(count), **dict.fromkeys(names))


class _Good:
    def __init__(self, config, hidden_size, eps): ...

    def forward(self, x, /): ...


class _WrongForward:
    def __init__(self, config, hidden_size, eps): ...

    def forward(self, x, scale): ...


class _StaticForward:
    def __init__(self, config, hidden_size, eps): ...

    @staticmethod
    def forward(x): ...


class _WithOptions:
    class Options: ...

    def __init__(self, config, hidden_size, eps): ...


def _function(config, hidden_size, eps): ...


class _Unhashable:
    __hash__ = None

    def __call__(self, config, hidden_size): ...


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        (_Good, ()),
        (_StaticForward, ()),
        (_function, ()),
        (functools.partial(lambda config, hidden_size, eps, extra: None, extra=1), ()),
        (_WrongForward, ("makes a module whose forward requires `scale`, which callers do not pass",)),
        (_WithOptions, ("does not accept `options`",)),
        (
            lambda config, size, eps: None,
            ("does not accept `hidden_size`", "requires `size`, which callers do not pass"),
        ),
        (_Unhashable(), ("does not accept `eps`",)),
        (3, ("is of type int, which cannot be called",)),
        (print, ("does not accept `config`", "does not accept `hidden_size`", "does not accept `eps`")),
        (type, ("has no signature to read",)),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_builder_mismatches_reads_builder_and_forward(builder, expected):
    assert builder_mismatches(builder, NormBuilder, Norm) == expected


@pytest.mark.parametrize("slot", SLOTS.values(), ids=SLOTS.keys())
def test_mismatches_finds_none_between_a_contract_and_itself(slot):
    methods = [method for name, method in vars(slot.interface).items() if callable(method) and name[0] != "_"]
    assert methods
    for contract in (slot.builder.__call__, *methods):
        assert mismatches(inspect.signature(contract), inspect.signature(contract)) == ()


def test_builder_mismatches_reads_no_forward_that_a_slot_does_not_ask_for():
    from torch import nn
    from transom.slots.kv_cache import KVCache, KVCacheBuilder

    class Cache(nn.Module):
        def __init__(self, config, *, request, batch_size, capacity, dtype=None, device=None):
            super().__init__()

    assert builder_mismatches(Cache, KVCacheBuilder, KVCache) == ()


class _Scale(Protocol):
    def forward(self, x: float, /, *, scale: float = 1.0) -> float: ...

    def backward_dw(self) -> None: ...

    def __call__(self, x: float, /, *, scale: float = 1.0) -> float: ...


class _Fits:
    def forward(self, value, *, scale=2.0): ...

    def backward_dw(self): ...


class _Lacks:
    forward = "forward"

    def backward_dw(self, now): ...


@pytest.mark.parametrize(
    ("module", "complaints"),
    [
        (_Fits(), ()),
        (
            _Lacks(),
            (
                "has no method `forward`",
                "has a backward_dw that requires `now`, which callers do not pass",
            ),
        ),
        (None, ("has no method `forward`", "has no method `backward_dw`")),
    ],
)
def test_module_mismatches_compares_every_method_of_the_interface(module, complaints):
    assert module_mismatches(module, _Scale) == complaints


class Reader(Protocol):
    def forward(self, x): ...


class Writer(Protocol):
    def forward(self, x, y): ...


class WriterBuilder(Protocol):
    def __call__(self): ...


class Writing:
    def forward(self, x, y):
        return x


def test_one_interface_of_several_is_enough() -> None:
    assert builder_mismatches(Writing, WriterBuilder, Reader)
    assert builder_mismatches(Writing, WriterBuilder, (Reader, Writer)) == ()
    assert module_mismatches(Writing(), (Reader, Writer)) == ()


def test_of_several_interfaces_complaints_are_about_the_nearest() -> None:
    class Other:
        def forward(self, x, z): ...

    assert module_mismatches(Other(), (Writer, Reader)) == (
        "has a forward that requires `z`, which callers do not pass",
    )
