"""TransformerBlock: measured cases, and its formula written out in float64."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transom_zeta_block
from torch import Tensor, nn
from transom.errors import ConfigError, InputError, MaskError
from transom_zeta_block import TransformerBlock

DATA = Path(__file__).parent / "data"
CASES = sorted(path.stem for path in DATA.glob("*.pt"))

B, S, DIM, D, N = 2, 7, 12, 4, 3


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def adapters(case: dict[str, Any]) -> tuple[Callable[[Tensor], Tensor], ...] | None:
    """The case's finetune weights ``[in, out]`` as modules."""
    if case["finetune_weights"] is None:
        return None
    made = []
    for weight in case["finetune_weights"]:
        linear = nn.Linear(*weight.shape, bias=False)
        linear.load_state_dict({"weight": weight.T})
        made.append(linear)
    return tuple(made)


@pytest.mark.parametrize("given_to", ["constructor", "call"])
@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize("name", CASES)
def test_block_equals_the_measured_case(name: str, flash: bool, given_to: str) -> None:
    case = torch.load(DATA / f"{name}.pt", weights_only=True)
    finetune = adapters(case)
    at_first, at_call = (finetune, None) if given_to == "constructor" else (None, finetune)
    block = TransformerBlock(**(case["config"] | {"flash_attn": flash}), finetune_modules=at_first)
    block.load_state_dict(case["state_dict"])
    out = block(case["x"], mask=case["mask"], finetune_modules=at_call)
    torch.testing.assert_close(out, case["out_documented"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_block_has_the_published_state(name: str) -> None:
    case = torch.load(DATA / f"{name}.pt", weights_only=True)
    own = TransformerBlock(**case["config"]).state_dict()
    assert {key: value.shape for key, value in own.items()} == {
        key: value.shape for key, value in case["state_dict"].items()
    }
    for constant in ("rotary_emb.inv_freq", "rotary_emb.scale"):
        torch.testing.assert_close(own[constant], case["state_dict"][constant], atol=0, rtol=2e-7)


def head(x: Tensor, position: int, power: float) -> Tensor:
    """One head ``[d]`` at a position: pairs turned, and grown by the power of the decay's base."""
    d = len(x)
    turned = torch.empty_like(x)
    for i in range(d // 2):
        angle = position / 10000 ** (2 * i / d)
        grown = ((2 * i + 0.4 * d) / (1.4 * d)) ** power
        first, second = x[i], x[i + d // 2]
        turned[i] = (first * math.cos(angle) - second * math.sin(angle)) * grown
        turned[i + d // 2] = (second * math.cos(angle) + first * math.sin(angle)) * grown
    return turned


def formula(
    block: TransformerBlock, x: Tensor, mask: Tensor | None, finetune: tuple[Any, ...], *, qk_scale: float, base: int
) -> Tensor:
    """The block by its definition: one token, one head and one key at a time."""
    weights = {name: weight for name, weight in block.named_parameters() if not name.startswith("finetune")}
    n, d = block.shape.heads, block.shape.dim_head
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normed = normed * weights["norm.g"]
    query, key, value, ff = F.linear(normed, weights["fused_attn_ff_proj.weight"]).split(
        [n * d, d, d, 2 * block.shape.ff_inner], dim=-1
    )
    query, key, value = (
        y if lora is None else y + lora(normed) for y, lora in zip((query, key, value), finetune[:3], strict=True)
    )
    query = query.unflatten(-1, (n, d))
    if block.shape.qk_rmsnorm:
        query = query / query.norm(dim=-1, keepdim=True) * weights["q_scale"]
        key = key / key.norm(dim=-1, keepdim=True) * weights["k_scale"]
    scale = qk_scale if block.shape.qk_rmsnorm else 1 / math.sqrt(d)
    rows = []
    for b, i in itertools.product(range(x.shape[0]), range(x.shape[1])):
        seen = [j for j in range(x.shape[1]) if (j <= i or not block.causal) and (mask is None or mask[b, j])]
        heads = []
        for h in range(n):
            if not seen:
                heads.append(torch.zeros(d, dtype=x.dtype))
                continue
            at = (lambda p: (p - x.shape[1] // 2) / base) if block.shape.use_xpos else (lambda p: 0.0)
            asked = head(query[b, i, h], i, at(i))
            scores = torch.stack([(asked * head(key[b, j], j, -at(j))).sum() * scale for j in seen])
            heads.append(scores.softmax(0) @ value[b, seen])
        rows.append(torch.cat(heads))
    merged = torch.stack(rows).view(*x.shape[:2], n * d)
    attended = F.linear(merged, weights["attn_out.weight"])
    attended = attended if finetune[3] is None else attended + finetune[3](merged)
    first, second = ff.chunk(2, dim=-1)
    return attended + F.linear(first * second * second.sigmoid(), weights["ff_out.2.weight"])


def make(**changes: Any) -> TransformerBlock:
    block = TransformerBlock(**({"dim": DIM, "dim_head": D, "heads": N, "ff_mult": 2} | changes)).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return block


def loras(which: str) -> tuple[nn.Module | None, ...]:
    shapes = {"q": (DIM, N * D), "k": (DIM, D), "v": (DIM, D), "o": (N * D, DIM)}
    return tuple(nn.Linear(*shapes[p], bias=False).double() if p in which else None for p in shapes)


VARIATIONS = {
    "published": {},
    "one head": {"heads": 1},
    "wide heads": {"dim_head": 10},
    "wide feed-forward": {"ff_mult": 3},
    "bidirectional": {"causal": False},
    "rotary alone": {"use_xpos": False},
    "short decay": {"xpos_scale_base": 5},
    "qk norm": {"qk_rmsnorm": True},
    "qk norm, scaled": {"qk_rmsnorm": True, "qk_scale": 3},
    "qk scale without a norm": {"qk_scale": 3},
    "all at once": {"qk_rmsnorm": True, "qk_scale": 2, "causal": False, "use_xpos": False, "heads": 2},
}
PADDINGS = {
    "no mask": None,
    "right": torch.arange(S) < torch.tensor([[4], [S]]),
    "left": torch.arange(S) >= torch.tensor([[3], [0]]),
    "everywhere": torch.arange(S) >= torch.tensor([[S], [2]]),
}


# Every variation bare and finetuned, and the principal ones with every padding.
CALLS = [
    *itertools.product(VARIATIONS, ["", "qkvo"], ["no mask"]),
    *itertools.product(["published", "bidirectional", "all at once"], ["qv"], PADDINGS),
]


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize(("variation", "which", "padding"), CALLS)
def test_block_equals_its_formula(variation: str, which: str, padding: str, flash: bool) -> None:
    changes = VARIATIONS[variation]
    finetune = loras(which) if changes.get("heads", N) == N and "dim_head" not in changes else loras("")
    block = make(**changes, flash_attn=flash, finetune_modules=finetune)
    x = torch.randn(B, S, DIM, dtype=torch.float64, requires_grad=True)
    out = block(x, mask=PADDINGS[padding])
    exact = formula(
        block, x, PADDINGS[padding], finetune,
        qk_scale=changes.get("qk_scale", 8), base=changes.get("xpos_scale_base", 512),
    )  # fmt: skip
    torch.testing.assert_close(out, exact, atol=1e-12, rtol=1e-10)
    direction = torch.randn_like(out)
    leaves = [x, *block.parameters()]
    found = torch.autograd.grad((out * direction).sum(), leaves)
    wanted = torch.autograd.grad((exact * direction).sum(), leaves)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-9)


def test_block_takes_the_calls_finetune_modules_over_the_constructors() -> None:
    first, second = loras("qkvo"), loras("kv")
    block = make(finetune_modules=first)
    x = torch.randn(B, S, DIM, dtype=torch.float64)
    exact = formula(block, x, None, second, qk_scale=8, base=512)
    torch.testing.assert_close(block(x, finetune_modules=second), exact, atol=1e-12, rtol=1e-10)


def test_block_takes_plain_functions_as_finetune_modules() -> None:
    weight = torch.randn(DIM, N * D, dtype=torch.float64)
    places = (lambda x: x @ weight, None, None, None)
    x = torch.randn(B, S, DIM, dtype=torch.float64)
    block = make(finetune_modules=places)
    torch.testing.assert_close(block(x), formula(block, x, None, places, qk_scale=8, base=512), atol=1e-12, rtol=1e-10)


def test_block_trains_and_saves_the_constructors_finetune_modules() -> None:
    block = make(finetune_modules=loras("qo"))
    names = {name for name, _ in block.named_parameters() if name.startswith("finetune")}
    assert names == {"finetune.q.weight", "finetune.o.weight"} <= block.state_dict().keys()


def test_block_keeps_its_finetune_modules_when_a_state_has_none() -> None:
    bare, tuned = make(), make(finetune_modules=loras("qkvo"))
    before = tuned.finetune.q.weight.clone()
    assert not any(tuned.load_state_dict(bare.state_dict()))
    assert torch.equal(tuned.finetune.q.weight, before)
    assert torch.equal(tuned.attn_out.weight, bare.attn_out.weight)


def test_block_misses_a_finetune_module_when_a_state_has_others() -> None:
    state = make(finetune_modules=loras("qkvo")).state_dict()
    del state["finetune.q.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*finetune\.q\.weight"):
        make(finetune_modules=loras("qkvo")).load_state_dict(state)


def test_block_loads_a_state_without_tables() -> None:
    state = {key: value for key, value in make().state_dict().items() if not key.startswith("rotary_emb")}
    assert not any(make().load_state_dict(state))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_block_is_near_its_formula_when_precision_is_low(dtype: torch.dtype) -> None:
    low = make(qk_rmsnorm=True).to(dtype)
    exact = make(qk_rmsnorm=True)
    exact.load_state_dict(low.state_dict())
    x = torch.randn(B, 40, DIM).to(dtype)
    out, wanted = low(x), exact(x.double())
    assert out.dtype is dtype
    assert low.rotary_emb.inv_freq.dtype is torch.float32
    torch.testing.assert_close(out.double(), wanted, atol=0.06, rtol=0.06)


def test_block_gives_the_same_scores_however_long_the_sequence() -> None:
    block = make(xpos_scale_base=16)
    x = torch.randn(1, 40, DIM, dtype=torch.float64)
    torch.testing.assert_close(block(x)[:, :9], block(x[:, :9]), atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
def test_block_drops_in_training_alone(flash: bool) -> None:
    for dropout in ({"attn_dropout": 0.5}, {"ff_dropout": 0.5}):
        block = make(flash_attn=flash, **dropout)
        x = torch.randn(B, S, DIM, dtype=torch.float64)
        assert not torch.equal(block(x), block(x))
        exact = formula(block, x, None, (None,) * 4, qk_scale=8, base=512)
        torch.testing.assert_close(block.eval()(x), exact, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
def test_block_compiles_in_one_graph(flash: bool) -> None:
    block = make(flash_attn=flash, finetune_modules=loras("qv"))
    x = torch.randn(B, S, DIM, dtype=torch.float64)
    mask = PADDINGS["right"]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask), block(x, mask))


def test_block_survives_copies() -> None:
    block, x = make(finetune_modules=loras("q")), torch.randn(B, S, DIM, dtype=torch.float64)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(x), block(x))
        assert other.finetune.q is not block.finetune.q


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"dim": 0}, "dim is 0; at least 1 is needed."),
        ({"heads": 0}, "heads is 0; at least 1 is needed."),
        ({"ff_mult": 0}, "ff_mult is 0; at least 1 is needed."),
        ({"dim_head": 5}, "dim_head is 5; rotary positions turn pairs: an even number is needed."),
    ],
)
def test_block_refuses_sizes_that_cannot_be(sizes: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**sizes)
    assert caught.value.what == text
    ((name, size),) = sizes.items()
    assert (caught.value.field, caught.value.value) == (name, size)
    assert caught.value.asked_by == f"TransformerBlock({name}=...)"


def test_block_refuses_another_number_of_finetune_modules() -> None:
    block, x = make(), torch.randn(B, S, DIM, dtype=torch.float64)
    for call in (lambda: make(finetune_modules=(None, None)), lambda: block(x, finetune_modules=(None, None))):
        with pytest.raises(InputError, match="2 finetune_modules are given; there are four places, q, k, v, o"):
            call()


def test_block_refuses_a_mask_of_another_dtype() -> None:
    with pytest.raises(MaskError, match="key_padding"):
        make()(torch.randn(B, S, DIM, dtype=torch.float64), mask=torch.ones(B, S))


def test_package_has_the_block_and_nothing_else() -> None:
    assert transom_zeta_block.TransformerBlock is TransformerBlock
    with pytest.raises(AttributeError, match="module 'transom_zeta_block' has no attribute 'Nothing'"):
        transom_zeta_block.Nothing  # noqa: B018
