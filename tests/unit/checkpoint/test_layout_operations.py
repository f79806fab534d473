"""Every operation can be undone, bit for bit, and puts numbers where its description says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transom.checkpoint.layout_operations import (
    Add,
    Concat,
    Fills,
    Interleave,
    Operation,
    Reverse,
    RotaryPermute,
    Split,
    Stack,
    Transpose,
)

SIZES = st.integers(1, 4)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64])


@st.composite
def operations(draw: st.DrawFn) -> tuple[Operation, list[torch.Size]]:
    """Give an operation and shapes that it takes."""
    a, b, c, d = (draw(SIZES) for _ in range(4))
    kind = draw(st.sampled_from(["concat", "parts", "split", "stack", "interleave", "transpose", "rotary", "partial"]))
    made: dict[str, tuple[Operation, list[tuple[int, ...]]]] = {
        "concat": (Concat(a), [(b, c)] * a),
        "parts": (Concat((a, b), dim=1), [(c, a), (c, b)]),
        "split": (Split(a), [(a * b, c)]),
        "stack": (Stack(a, dim=1), [(b, c)] * a),
        "interleave": (Interleave(a, (b, 1, 1)), [(a * b * c, d), (a * c, d), (a * c, d)]),
        "transpose": (Transpose(), [(a, b), (c, d)]),
        "rotary": (RotaryPermute(2 * a), [(2 * a * b, c), (2 * a * d,)]),
        "partial": (RotaryPermute(2 * a + b, rotary_dim=2 * a, count=1), [((2 * a + b) * c, d), (1, d)]),
    }
    operation, shapes = made[kind]
    return operation, [torch.Size(shape) for shape in shapes]


def numbers(shapes: list[torch.Size], dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randint(-100, 100, shape).to(dtype) for shape in shapes]


@settings(deadline=None, max_examples=200)
@given(operations(), DTYPES)
def test_operation_is_undone_bit_for_bit(drawn: tuple[Operation, list[torch.Size]], dtype: torch.dtype) -> None:
    operation, shapes = drawn
    before = numbers(shapes, dtype)
    after = operation.forward(before)
    assert all(torch.equal(x, y) for x, y in zip(operation.backward(after), before, strict=True))
    reverse = Reverse(operation)
    assert all(torch.equal(x, y) for x, y in zip(reverse.forward(after), before, strict=True))
    assert sorted(torch.cat([x.flatten() for x in after]).tolist()) == sorted(
        torch.cat([x.flatten() for x in before]).tolist()
    )


@settings(deadline=None, max_examples=100)
@given(operations(), DTYPES)
def test_operation_fills_a_place_with_what_it_makes(
    drawn: tuple[Operation, list[torch.Size]], dtype: torch.dtype
) -> None:
    operation, shapes = drawn
    if not isinstance(operation, Fills):
        return
    tensors = numbers(shapes, dtype)
    (expected,) = operation.forward(tensors)
    place = torch.full_like(expected, 101, dtype=torch.float64)
    assert operation.fill(place, tensors) == [place]
    assert torch.equal(place, expected.double())


def test_operations_that_join_fill_places() -> None:
    joining = (Concat(2), Stack(2), Interleave(1, (1, 1)))
    others = (Split(2), Transpose(), RotaryPermute(2), Add(1))
    assert [isinstance(each, Fills) for each in (*joining, *others)] == [True] * 3 + [False] * 4


@settings(deadline=None, max_examples=50)
@given(operations())
def test_operation_runs_without_numbers(drawn: tuple[Operation, list[torch.Size]]) -> None:
    operation, shapes = drawn
    outlines = operation.forward([torch.empty(shape, device="meta") for shape in shapes])
    assert [x.shape for x in outlines] == [x.shape for x in operation.forward(numbers(shapes, torch.float32))]


@given(st.lists(st.integers(-1000, 1000), min_size=1))
def test_add_is_undone_where_sums_can_be_represented(eighths: list[int]) -> None:
    tensor = torch.tensor(eighths) / 8
    (sum_,) = Add(1).forward([tensor])
    assert sum_.tolist() == [x / 8 + 1 for x in eighths]
    assert torch.equal(Add(1).backward([sum_])[0], tensor)


def test_interleave_lays_queries_keys_and_values_out_by_group() -> None:
    query, key, value = torch.arange(8).view(8, 1), torch.arange(10, 14).view(4, 1), torch.arange(20, 24).view(4, 1)
    (fused,) = Interleave(2, (2, 1, 1)).forward([query, key, value])
    assert fused.flatten().tolist() == [0, 1, 2, 3, 10, 11, 20, 21, 4, 5, 6, 7, 12, 13, 22, 23]


def test_rotary_permute_turns_pairs_into_halves_and_leaves_the_rest_of_a_head() -> None:
    heads = torch.arange(12)
    assert RotaryPermute(6, rotary_dim=4).forward([heads])[0].tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


def test_rotary_permute_makes_rope_of_halves_compute_what_rope_of_pairs_did() -> None:
    d, angles = 6, torch.tensor([0.3, 0.7, 1.9])
    weight, x = torch.randn(2 * d, 5), torch.randn(5)

    def scores(q: torch.Tensor, k: torch.Tensor, pairs: bool) -> torch.Tensor:
        def turned(v: torch.Tensor) -> torch.Tensor:
            first, second = (v[0::2], v[1::2]) if pairs else v.chunk(2)
            return torch.cat(
                [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()]
            )

        return turned(q) @ turned(k)

    (halves,) = RotaryPermute(d).forward([weight])
    expected = scores(*(weight @ x).chunk(2), pairs=True)
    torch.testing.assert_close(scores(*(halves @ x).chunk(2), pairs=False), expected)


@pytest.mark.parametrize(
    ("operation", "shapes", "message"),
    [
        (Concat(3), [(2, 2)] * 2, "3 tensors are needed, and there are 2"),
        (Split(2), [(3, 2)], "3 rows cannot be divided into 2 equal parts"),
        (Stack(2), [(2, 2)], "2 tensors are needed, and there are 1"),
        (Reverse(Stack(2)), [(3, 2)], "2 tensors are needed, and there are 3"),
        (Interleave(1, (1, 1)), [(2, 2)], "2 tensors are needed, and there are 1"),
        (Reverse(Interleave(1, (2, 1))), [(4, 2)], "4 rows cannot be divided into 3 equal parts"),
    ],
    ids=str,
)
def test_operation_refuses_what_it_cannot_turn(
    operation: Operation, shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        operation.forward([torch.zeros(shape) for shape in shapes])
