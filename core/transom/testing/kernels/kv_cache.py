"""Cases of the key/value cache slot: attention over a cache sees what was written, in whatever form it is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from transom.errors import CacheError
from transom.slots.kv_cache import KVCacheRequest
from transom.slots.request import BuildContext
from transom.testing.case import Case, CaseSkipped, ConformanceError
from transom.testing.closeness import TOLERANCES, assert_close
from transom.testing.requests import plain_request
from transom.testing.subject import Subject, config_for
from transom.transformer.attention_mask import AttentionMask, Window

__all__ = ["cases"]

_N, _G, _D, _NARROW = 4, 2, 16, 8
_ROUNDED = 0.05
"""What rounding each number to 1/254 of the largest of its head may do to an output."""

Positions = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""Of the tokens of a step: those of all rows, or of each."""


@dataclass(frozen=True)
class _Scenario:
    """What is done with a cache, one after another.

    Args:
        name: of the case.
        shows: what is shown when all steps see what they should.
        does: ``("run", positions)``, ``("abandon", positions)`` (a step without its commit), ``("reset",)``,
            ``("rewind", length)`` or ``("reorder", rows)``.
        windows: of the layers; a wide one serves caches that keep windows alone too.
        causal: whether queries see no later keys.
        batch_size: rows that there is room for; each step has two.
        value_head_size: of values.
        principal: is tried in every dtype that is declared.
    """

    name: str
    shows: str
    does: tuple[tuple[Any, ...], ...]
    windows: tuple[Window | None, ...] = ((8, None), None)
    causal: bool = True
    batch_size: int = 2
    value_head_size: int = _D
    principal: bool = False

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"value_head_size"} if self.value_head_size != _D else ())


def _runs(*steps: Positions) -> tuple[tuple[Any, ...], ...]:
    return tuple(("run", positions) for positions in steps)


_LEFT_PADDED = ((0, 1, 2, 3), (-1, -1, 0, 1))
_SCENARIOS = (
    _Scenario("tokens", "a prompt, then token by token", _runs((0, 1, 2), (3,), (4,), (5,)), principal=True),
    _Scenario("chunks", "several tokens at a time", _runs((0, 1, 2), (3, 4), (5, 6, 7))),
    _Scenario("rows", "rows of different lengths, with padding", _runs(_LEFT_PADDED, ((4,), (2,)), ((5,), (3,)))),
    _Scenario("rows_right", "padding behind the tokens", _runs(((0, 1, 2, 3), (0, 1, -1, -1)), ((4,), (2,)))),
    _Scenario(
        "everyone", "without causality, what is held is seen and nothing else", _runs((0, 1), (2,)), causal=False
    ),
    _Scenario("fewer_rows", "fewer rows than there is room for", _runs((0, 1, 2), (3,)), batch_size=3),
    _Scenario("again", "positions that are in use are written anew", _runs((0, 1, 2, 3), (1, 2), (3,))),
    _Scenario("reset", "what is forgotten is not seen", (*_runs((0, 1, 2)), ("reset",), *_runs((0, 1), (2,)))),
    _Scenario("rewind", "as is what is behind", (*_runs((0, 1, 2, 3)), ("rewind", 2), *_runs((2,), (3,)))),
    _Scenario("reorder", "rows go on from others", (*_runs(_LEFT_PADDED), ("reorder", (1, 1)), *_runs((2,), (3,)))),
    _Scenario(
        "abandoned",
        "a step without its commit has not happened",
        (*_runs((0, 1)), ("abandon", (2, 3)), *_runs((2,), (3,))),
    ),
    _Scenario(
        "windows",
        "layers with windows, past their ends",
        _runs((0, 1, 2, 3), (4,), (5,), (6, 7), (8,)),
        windows=((2, 0), None, (3, None)),
        principal=True,
    ),
    _Scenario("window", "a window that is longer than a prompt", _runs((0, 1), (2,), (3,)), windows=((6, 0),)),
    _Scenario(
        "window_rows",
        "windows of rows of different lengths",
        _runs(_LEFT_PADDED, ((4,), (2,)), ((5,), (3,)), ((6,), (4,))),
        windows=((2, 0), (2, 0)),
    ),
    _Scenario("values", "values with another head size", _runs((0, 1, 2), (3,)), value_head_size=_NARROW),
)
_CAPACITY = 12


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a key/value cache."""
    for scenario in (each for each in _SCENARIOS if each.features <= subject.features):
        for dtype in subject.dtypes if scenario.principal else subject.dtypes[:1]:
            agrees = partial(_check, subject, scenario, dtype)
            yield Case("agreement", scenario.name, scenario.shows, agrees, dtype, subject.device)
    for name, shows, check in (
        ("full", "what does not fit is refused before anything is written", _check_full),
        ("wider", "keys come back in the dtype in which they were given, whatever they are kept in", _check_wider),
        ("alone", "the entry of a layer that is used alone takes each update for a step", _check_alone),
    ):
        yield Case("contract", name, shows, partial(check, subject), subject.dtype, subject.device)
    if subject.card.compiles:
        shows = "a step compiles in one graph, which serves all positions"
        yield Case("module", "compile", shows, partial(_check_compile, subject), subject.dtype, subject.device)


@dataclass
class _Plain:
    """What every row of every layer should hold, by position, in float64."""

    rows: list[list[dict[int, tuple[Tensor, Tensor]]]] = field(default_factory=list)

    def write(self, layer: int, positions: Tensor, key: Tensor, value: Tensor) -> None:
        for row, at in enumerate(positions.tolist()):
            held = self.rows[layer][row]
            first = min((p for p in at if p >= 0), default=_CAPACITY)
            self.rows[layer][row] = {p: kept for p, kept in held.items() if p < first} | {
                p: (key[row, i], value[row, i]) for i, p in enumerate(at) if p >= 0
            }

    def attend(self, layer: int, positions: Tensor, query: Tensor, scenario: _Scenario) -> Tensor:
        """Compute ``[b, s, n, dv]``, one query at a time."""
        rows = []
        for row, at in enumerate(positions.tolist()):
            held = self.rows[layer][row]
            rows.append(torch.stack([_one(query[row, i], p, held, scenario, layer) for i, p in enumerate(at)]))
        return torch.stack(rows)

    def cut(self, length: int) -> None:
        self.rows = [[{p: k for p, k in row.items() if p < length} for row in layer] for layer in self.rows]

    def reorder(self, rows: tuple[int, ...]) -> None:
        self.rows = [[copy.copy(layer[row]) for row in rows] + layer[len(rows) :] for layer in self.rows]

    def lengths(self) -> list[int]:
        return [max(row, default=-1) + 1 for row in self.rows[0]]


def _one(
    query: Tensor, position: int, held: dict[int, tuple[Tensor, Tensor]], scenario: _Scenario, layer: int
) -> Tensor:
    left, right = scenario.windows[layer] or (None, None)
    seen = [
        kept
        for p, kept in held.items()
        if position >= 0
        and (p <= position or not scenario.causal)
        and (left is None or p >= position - left)
        and (right is None or p <= position + right)
    ]
    if not seen:
        return query.new_zeros(_N, scenario.value_head_size)
    keys, values = (torch.stack(each).repeat_interleave(_N // _G, dim=1) for each in zip(*seen, strict=True))
    weights = (torch.einsum("hd,thd->ht", query, keys) / math.sqrt(_D)).softmax(dim=-1)
    return torch.einsum("ht,thd->hd", weights, values)


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    """Attend over what a cache gives, ``[b, s, n, dv]``; a query that sees nothing gives zeros."""
    key, value = (each.repeat_interleave(_N // _G, dim=2) for each in (key, value))
    scores = torch.einsum("bsnd,btnd->bnst", query, key) / math.sqrt(_D)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return torch.einsum("bnst,btnd->bsnd", scores.softmax(dim=-1).nan_to_num(), value)


def _request(scenario: _Scenario, context: BuildContext) -> KVCacheRequest:
    return KVCacheRequest(
        context=context,
        features=scenario.features,
        windows=scenario.windows,
        num_query_groups=_G,
        head_size=_D,
        value_head_size=scenario.value_head_size,
    )


def _make(
    scenario: _Scenario, subject: Subject, dtype: str, *, capacity: int = _CAPACITY, kept: torch.dtype | None = None
) -> Any:
    config = config_for(num_query_groups=_G, kv_channels=_D, num_layers=len(scenario.windows), params_dtype=dtype)
    return subject.build(
        _request(scenario, subject.context(dtype)),
        config,
        request=_request(scenario, subject.context(dtype)),
        batch_size=scenario.batch_size,
        capacity=capacity,
        dtype=kept,
        device=torch.device(subject.device),
    )


def _plain(scenario: _Scenario) -> _Plain:
    return _Plain([[{} for _ in range(scenario.batch_size)] for _ in scenario.windows])


def _check(subject: Subject, scenario: _Scenario, dtype: str) -> None:
    cache, plain = _make(scenario, subject, dtype), _plain(scenario)
    for verb, *arguments in scenario.does:
        if verb == "run":
            _step(subject, scenario, cache, plain, dtype, *arguments)
        elif verb == "abandon":
            _step(subject, scenario, cache, copy.deepcopy(plain), dtype, *arguments, commits=False)
        elif verb == "reorder":
            cache.reorder(torch.tensor(arguments[0], device=subject.device))
            plain.reorder(*arguments)
        else:
            getattr(cache, verb)(*arguments)
            plain.cut(arguments[0] if arguments else 0)
        _expect_lengths(cache.lengths, plain.lengths(), f"its lengths after {verb}")


def _step(
    subject: Subject,
    scenario: _Scenario,
    cache: Any,
    plain: _Plain,
    dtype: str,
    positions: Positions,
    *,
    commits: bool = True,
) -> None:
    """Run a step of a model of two rows; one that is abandoned fails after its first layer."""
    at = torch.tensor(positions)
    given = at.to(subject.device)
    rows = at if at.dim() == 2 else at.expand(2, -1)
    step = cache.begin(given, 2)
    for layer in range(len(scenario.windows) if commits else 1):
        query, key, value = (each.to(getattr(torch, dtype)) for each in _tensors(rows, scenario))
        plain.write(layer, rows, key.double(), value.double())
        sent = [each.to(subject.device) for each in (key, value)]
        keys, values, lengths = step.layer(layer).update(*sent, given)
        mask = step.mask(AttentionMask(causal=True) if scenario.causal else None, layer)
        _compare(subject, scenario, layer, dtype, (query, keys, values, mask), plain.attend, rows)
        if layer == 0:
            _expect_lengths(lengths, plain.lengths()[:2], "the lengths that update() gives")
    if commits:
        step.commit()


def _tensors(rows: Tensor, scenario: _Scenario) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((_N, _D), (_G, _D), (_G, scenario.value_head_size))
    query, key, value = (torch.randn(*rows.shape, *shape, dtype=torch.float64) for shape in shapes)
    return query, key, value


def _compare(
    subject: Subject, scenario: _Scenario, layer: int, dtype: str, found: Any, attend: Any, rows: Tensor
) -> None:
    query, keys, values, mask = found
    for name, tensor in (("keys", keys), ("values", values)):
        if tensor.dtype is not query.dtype:
            raise ConformanceError(f"its {name} come back in {tensor.dtype}, expected {query.dtype}")
    s, t = rows.shape[1], keys.shape[1]
    visible = mask.as_bool(s, t, device=keys.device, window=scenario.windows[layer])
    output = _attend(query.to(keys.device).double(), keys.double(), values.double(), visible)
    floor = _ROUNDED if "rounded" in subject.features else 0.0
    where = f"what the query at {rows.tolist()} sees in layer {layer}"
    expected = attend(layer, rows, query.double(), scenario)
    assert_close(output, expected, max(floor, TOLERANCES[dtype].outputs), where)


def _expect_lengths(found: Tensor, wanted: list[int], what: str) -> None:
    if found.tolist() != wanted:
        raise ConformanceError(f"{what} are {found.tolist()}, expected {wanted}")


def _check_full(subject: Subject) -> None:
    scenario = _SCENARIOS[0]
    cache, plain = _make(scenario, subject, subject.dtype, capacity=6), _plain(scenario)
    _step(subject, scenario, cache, plain, subject.dtype, (0, 1, 2, 3, 4))
    for what, positions, rows in (("two positions where one is left", (5, 6), 2), ("three rows for two", (5,), 3)):
        try:
            cache.begin(torch.tensor(positions, device=subject.device), rows)
        except CacheError:
            _expect_lengths(cache.lengths, [5, 5], "after a refusal its lengths")
        else:
            raise ConformanceError(f"it does not refuse {what} with a CacheError")
    _step(subject, scenario, cache, plain, subject.dtype, (5,))


def _check_wider(subject: Subject) -> None:
    narrow = next((dtype for dtype in ("bfloat16", "float16") if dtype in subject.dtypes), None)
    if narrow is None:
        raise CaseSkipped("it declares no dtype that is narrower than float32")
    scenario = _SCENARIOS[0]
    cache, plain = _make(scenario, subject, narrow, kept=torch.float32), _plain(scenario)
    for positions in ((0, 1, 2), (3,)):
        _step(subject, scenario, cache, plain, narrow, positions)


def _check_alone(subject: Subject) -> None:
    scenario = replace(_SCENARIOS[0], windows=((8, 0),))
    cache, plain = _make(scenario, subject, subject.dtype), _plain(scenario)
    entry = cache.layer(0)
    for positions in ((0, 1, 2), (3,)):
        at = torch.tensor(positions)
        rows = at.expand(2, -1)
        query, key, value = (each.to(getattr(torch, subject.dtype)) for each in _tensors(rows, scenario))
        plain.write(0, rows, key.double(), value.double())
        keys, values, _ = entry.update(key.to(subject.device), value.to(subject.device), at.to(subject.device))
        found = query, keys, values, entry.mask(AttentionMask(causal=True))
        _compare(subject, scenario, 0, subject.dtype, found, plain.attend, rows)
        _expect_lengths(cache.lengths, plain.lengths(), "its lengths after an update alone")


def _check_compile(subject: Subject) -> None:
    subject.require(plain_request(subject.slot.name, subject.context(compile=True)))
    scenario = replace(_SCENARIOS[0], windows=((3, 0),))
    cache, plain = _make(scenario, subject, subject.dtype), _plain(scenario)
    cache.reserve(2, _CAPACITY)
    _step(subject, scenario, cache, plain, subject.dtype, (0, 1, 2))

    def decode(query: Tensor, key: Tensor, value: Tensor, positions: Tensor) -> Tensor:
        step = cache.begin(positions, 2)
        keys, values, _ = step.layer(0).update(key, value, positions)
        visible = step.mask(AttentionMask(causal=True), 0).as_bool(
            1, keys.shape[1], device=key.device, window=scenario.windows[0]
        )
        step.commit()
        return _attend(query, keys, values, visible)

    torch.compiler.reset()
    compiled = torch.compile(decode, fullgraph=True, backend="eager")
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            for position in range(3, 7):
                _compare_decoded(subject, scenario, compiled, plain, position)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise ConformanceError(f"it does not compile in one graph: {error}") from error
    finally:
        torch.compiler.reset()


def _compare_decoded(subject: Subject, scenario: _Scenario, decode: Any, plain: _Plain, position: int) -> None:
    rows = torch.tensor([[position], [position]])
    tensors = [each.to(getattr(torch, subject.dtype)) for each in _tensors(rows, scenario)]
    query, key, value = tensors
    plain.write(0, rows, key.double(), value.double())
    with torch.no_grad():
        output = decode(*(each.to(subject.device) for each in tensors), rows[0].to(subject.device))
    floor = _ROUNDED if "rounded" in subject.features else 0.0
    expected = plain.attend(0, rows, query.double(), scenario)
    assert_close(output, expected, max(floor, TOLERANCES[subject.dtype].outputs), f"what position {position} sees")
