"""Rotary embedding against rotations of complex numbers, and measured vectors."""

from __future__ import annotations

import cmath
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transom.slots import BuildContext
from transom.slots.rotary import RotaryRequest
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.rope_scaling import RopeScaling
from transom.transformer.rotary import RotaryEmbedding, rotary_frequencies


@pytest.fixture
def rotary(make_config: Any) -> Any:
    """Give a function that makes a rotary embedding of d components, of which some rotate."""

    def make(d: int = 8, dim: int | None = None, **config: Any) -> RotaryEmbedding:
        request = RotaryRequest(context=BuildContext(), head_size=d, rotary_dim=d if dim is None else dim)
        fields = {"position_embedding_type": "rope", "params_dtype": "float64", "hidden_size": 2 * d, **config}
        return RotaryEmbedding(make_config(**fields), request=request)

    return make


def turned(
    x: Tensor, position: int, frequencies: list[float], *, interleaved: bool, amplitude: float = 1.0, power: float = 0.0
) -> list[float]:
    """One head of d components at a position, each pair a complex number times a unit one."""
    out, dim = x.tolist(), 2 * len(frequencies)
    for i, frequency in enumerate(frequencies):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + dim // 2)
        decay = ((2 * i + 0.4 * dim) / (1.4 * dim)) ** (power * position)
        z = complex(out[a], out[b]) * cmath.exp(1j * position * frequency) * amplitude * decay
        out[a], out[b] = z.real, z.imag
    return out


def naive(x: Tensor, positions: Tensor, frequencies: list[float], **options: Any) -> Tensor:
    b, s, n, _ = x.shape
    where = positions.expand(b, s)
    rows = [
        [[turned(x[k, i, h], int(where[k, i]), frequencies, **options) for h in range(n)] for i in range(s)]
        for k in range(b)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "pairs"])
@pytest.mark.parametrize("name", ["", "_1d", "_2d"], ids=["no positions", "[s]", "[b, s]"])
def test_rotary_agrees_with_measured_vectors(interleaved: bool, name: str, case: Any, rotary: Any) -> None:
    data = case("torchtune/h2_rope_vectors")
    module = rotary(16, rotary_interleaved=interleaved, params_dtype="float32", hidden_size=48, num_attention_heads=3)
    positions = data[f"pos{name}"] if name else None
    query, key = module(data["x"], data["x"][:, :, :2], positions)
    expected = data[f"{'inter' if interleaved else 'half'}{name}"]
    torch.testing.assert_close(query, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(key, expected[:, :, :2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "pairs"])
@pytest.mark.parametrize("dim", [8, 4, 2])
@pytest.mark.parametrize("where", [None, torch.tensor([3, 0, 70]), torch.tensor([[5, 6, 7], [900, 901, 902]])], ids=str)
def test_rotary_turns_pairs_when_given_positions(interleaved: bool, dim: int, where: Any, rotary: Any) -> None:
    x = torch.randn(2, 3, 2, 8, dtype=torch.float64)
    module = rotary(8, dim, rotary_interleaved=interleaved, rotary_base=500.0)
    query, key = module(x, x[:, :, :1], where)
    expected = naive(
        x,
        torch.arange(3) if where is None else where,
        [500.0 ** (-2 * i / dim) for i in range(dim // 2)],
        interleaved=interleaved,
    )
    close(query, expected)
    close(key, expected[:, :, :1])
    assert torch.equal(query[..., dim:], x[..., dim:])


@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "pairs"])
def test_scores_depend_on_distance_alone_when_rotated(interleaved: bool, rotary: Any) -> None:
    module = rotary(8, rotary_interleaved=interleaved)
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    scores = []
    for start in (0, 17, 1000):
        q, _ = module(query, query, torch.tensor([start + 5]))
        _, k = module(key, key, torch.tensor([start]))
        scores.append(float((q * k).sum()))
    assert max(scores) - min(scores) < 1e-9


@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "pairs"])
def test_gradients_are_right_when_a_head_rotates_partly(interleaved: bool, rotary: Any) -> None:
    module = rotary(6, 4, rotary_interleaved=interleaved)
    x, y = (torch.randn(1, 3, n, 6, dtype=torch.float64, requires_grad=True) for n in (2, 1))
    assert torch.autograd.gradcheck(module, (x, y, None))
    assert torch.autograd.gradcheck(module, (x, y, torch.tensor([4, 9, 2])))


def test_table_grows_exactly_when_a_sequence_is_longer(rotary: Any) -> None:
    module = rotary(4, hidden_size=8)
    before = module.table.shape[1]
    s = before + 3
    x = torch.randn(1, s, 1, 4, dtype=torch.float64)
    query, _ = module(x, x)
    assert module.table.shape[1] >= s
    last = torch.arange(s - 3, s)
    close(query[:, -3:], naive(x[:, -3:], last, [1.0, 0.01], interleaved=False))
    assert torch.equal(module(x, x, torch.arange(s))[0], query), "computed and looked up are the same numbers"
    assert not module.state_dict()


def test_table_serves_training_when_it_grew_in_inference_mode(rotary: Any) -> None:
    module = rotary(4, hidden_size=8)
    x = torch.randn(1, module.table.shape[1] + 1, 1, 4, dtype=torch.float64)
    with torch.inference_mode():
        module(x, x)
    leaf = x.clone().requires_grad_()
    module(leaf, leaf)[0].sum().backward()
    assert leaf.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_table_stays_in_float32_when_the_model_is_cast(dtype: torch.dtype, rotary: Any) -> None:
    module = rotary(8, params_dtype="float32")
    exact = module.table.clone()
    module.to(dtype)
    assert module.table.dtype is torch.float32
    assert torch.equal(module.table, exact)
    x = torch.randn(1, 5, 2, 8).to(dtype)
    query, _ = module(x, x)
    expected = naive(x.double(), torch.arange(5), [10000.0 ** (-i / 4) for i in range(4)], interleaved=False)
    assert query.dtype is dtype
    assert torch.equal(query, expected.to(dtype)) or (query.double() - expected).abs().max() < 2e-2


def test_table_is_float64_when_the_model_becomes_so(rotary: Any) -> None:
    module = rotary(8, params_dtype="float32").double()
    assert torch.equal(module.table, rotary(8).table)
    assert module.float().table.dtype is torch.float32


def test_table_is_made_when_a_meta_module_materialises(rotary: Any) -> None:
    with torch.device("meta"):
        module = rotary(8)
    assert module.table.is_meta
    assert torch.equal(module.to_empty(device="cpu").table, rotary(8).table)


def test_frequencies_are_divided_when_scaling_is_linear(rotary: Any) -> None:
    plain = rotary_frequencies(8, 10000.0)
    assert plain == [10000.0 ** (-i / 4) for i in range(4)]
    scaled = rotary_frequencies(8, 10000.0, RopeScaling(type="linear", factor=4.0))
    assert scaled == [f / 4 for f in plain]
    x = torch.randn(1, 2, 1, 8, dtype=torch.float64)
    query, _ = rotary(8, seq_len_interpolation_factor=4.0)(x, x, torch.tensor([8, 12]))
    close(query, rotary(8)(x, x, torch.tensor([2, 3]))[0])


def test_frequencies_follow_llama_31_when_scaling_is_llama3() -> None:
    """The wavelength decides: short ones are kept, long ones divided, those between mixed by the number of turns."""
    scaling = RopeScaling(
        type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    got = rotary_frequencies(128, 500000.0, scaling)
    kinds = set()
    for i, frequency in enumerate(got):
        plain = 500000.0 ** (-2 * i / 128)
        wavelength = 2 * math.pi / plain
        if wavelength < 8192 / 4:
            expected, kind = plain, "kept"
        elif wavelength > 8192 / 1:
            expected, kind = plain / 8, "divided"
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected, kind = (1 - smooth) * plain / 8 + smooth * plain, "between"
        kinds.add(kind)
        assert math.isclose(frequency, expected, rel_tol=1e-12)
    assert kinds == {"kept", "divided", "between"}


def test_frequencies_follow_the_paper_when_scaling_is_yarn() -> None:
    """Dimensions below that of 32 turns over the original context are kept, those above that of one turn divided."""
    scaling = RopeScaling(type="yarn", factor=16.0, original_max_position_embeddings=4096)
    got = rotary_frequencies(128, 10000.0, scaling)
    plain = rotary_frequencies(128, 10000.0)
    turns = [4096 * f / (2 * math.pi) for f in plain]
    first = max(i for i, n in enumerate(turns) if n >= 32)
    last = min(i for i, n in enumerate(turns) if n <= 1)
    assert got[: first + 1] == plain[: first + 1]
    assert [f * 16 for f in got[last:]] == pytest.approx(plain[last:])
    share = [(g / p - 1 / 16) / (1 - 1 / 16) for g, p in zip(got, plain, strict=True)][first : last + 1]
    steps = [a - b for a, b in pairwise(share)]
    assert steps == pytest.approx([1 / (last - first)] * len(steps))


@pytest.mark.parametrize(
    ("options", "amplitude"),
    [
        ({}, 0.1 * math.log(16) + 1),
        ({"attention_factor": 0.8}, 0.8),
        ({"mscale": 0.7}, 0.07 * math.log(16) + 1),
        ({"mscale": 0.7, "mscale_all_dim": 0.5}, (0.07 * math.log(16) + 1) / (0.05 * math.log(16) + 1)),
    ],
    ids=["default", "attention_factor", "mscale", "both mscales"],
)
def test_yarn_amplifies_when_the_context_is_longer(options: dict[str, float], amplitude: float, rotary: Any) -> None:
    scaling = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64, **options}
    module = rotary(8, rope_scaling=scaling)
    x = torch.randn(1, 3, 1, 8, dtype=torch.float64)
    frequencies = rotary_frequencies(8, 10000.0, RopeScaling(**scaling))
    for positions in (None, torch.arange(3)):
        query, _ = module(x, x, positions)
        close(query, naive(x, torch.arange(3), frequencies, interleaved=False, amplitude=amplitude))


@pytest.mark.parametrize("factor", [None, 1.25])
def test_longrope_divides_each_frequency_by_its_own_number(factor: float | None, rotary: Any) -> None:
    divisors = (1.0, 1.5, 2.0, 8.0)
    module = rotary(8, rope_scaling={"type": "longrope", "frequency_divisors": divisors, "attention_factor": factor})
    x = torch.randn(1, 3, 1, 8, dtype=torch.float64)
    frequencies = [10000.0 ** (-i / 4) / divisor for i, divisor in enumerate(divisors)]
    for positions in (None, torch.arange(3)):
        query, _ = module(x, x, positions)
        close(query, naive(x, torch.arange(3), frequencies, interleaved=False, amplitude=factor or 1.0))


@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "pairs"])
def test_xpos_lets_queries_grow_and_keys_fall_when_positions_grow(interleaved: bool, rotary: Any) -> None:
    module = rotary(8, rotary_interleaved=interleaved, rope_scaling={"type": "xpos", "scale_base": 16.0})
    x = torch.randn(1, 4, 2, 8, dtype=torch.float64)
    frequencies = rotary_frequencies(8, 10000.0)
    for positions in (None, torch.tensor([0, 1, 2, 3])):
        query, key = module(x, x, positions)
        close(query, naive(x, torch.arange(4), frequencies, interleaved=interleaved, power=1 / 16))
        close(key, naive(x, torch.arange(4), frequencies, interleaved=interleaved, power=-1 / 16))


def test_rotary_computes_instead_of_growing_when_compiling(rotary: Any) -> None:
    module = rotary(4, hidden_size=8, params_dtype="float32")
    before = module.table
    x = torch.randn(1, before.shape[1] + 5, 1, 4)
    got, _ = torch.compile(module, fullgraph=True, backend="eager")(x, x)
    assert module.table is before
    torch.testing.assert_close(got, module(x, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "pairs"])
@pytest.mark.parametrize("dim", [8, 4])
@pytest.mark.parametrize("where", [None, torch.tensor([3, 0, 70]), torch.tensor([[5, 6, 7], [900, 901, 902]])], ids=str)
def test_heads_by_group_turn_as_heads_in_a_row_do(interleaved: bool, dim: int, where: Any, rotary: Any) -> None:
    module = rotary(8, dim, rotary_interleaved=interleaved)
    mixed = torch.randn(2, 3, 2, 5, 8, dtype=torch.float64)  # three queries and one key of each of two groups, and more
    query, key = module(mixed[..., :3, :], mixed[..., 3:4, :], where)
    in_a_row = module(mixed[..., :3, :].flatten(2, 3), mixed[..., 3, :], where)
    assert torch.equal(query.view(2, 3, 6, 8), in_a_row[0])
    assert torch.equal(key.view(2, 3, 2, 8), in_a_row[1])


def test_layers_of_a_step_share_what_one_of_them_computed(rotary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, other, mask = rotary(8), rotary(8, rotary_base=500.0), AttentionMask(causal=True)
    x, positions = torch.randn(1, 2, 1, 8, dtype=torch.float64), torch.tensor([4, 5])
    first = module(x, x, positions, mask=mask)[0]
    plain = other(x, x, positions)[0]
    assert torch.equal(other(x, x, positions, mask=mask)[0], plain)
    monkeypatch.setattr(module, "_turns_at", None)
    assert torch.equal(module(x, x, positions, mask=mask)[0], first)
    with pytest.raises(TypeError, match="not callable"):
        module(x, x, positions.clone(), mask=mask)
