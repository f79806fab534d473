"""What the module tells the kernels, with stand-ins of plain matrices in their place, against the reference."""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace

import pytest
import torch
import transom
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.errors import ParallelError, SpecError
from transom.slots.core_attention import CoreAttentionRequest
from transom.slots.kv_cache import Pages
from transom.transformer.dot_product_attention import DotProductAttention
from transom_flash_attention import attention as module
from transom_flash_attention import operators
from transom_flash_attention.attention import FlashAttention
from transom_flash_attention.options import FlashOptions

B, N, G, S, D = 2, 4, 2, 6, 32
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])


def made(
    *,
    mode: str = "train",
    deterministic: bool = False,
    options: FlashOptions | None = None,
    config: dict | None = None,
    **fields: object,
):
    """Make the module and the reference for one request."""
    request = CoreAttentionRequest(
        context=BuildContext(mode=mode, deterministic=deterministic),
        num_attention_heads=N,
        num_query_groups=G,
        head_size=D,
        value_head_size=D,
        **fields,
    )
    settings = TransformerConfig(
        num_layers=1,
        hidden_size=N * D,
        num_attention_heads=N,
        num_query_groups=G,
        attention_dropout=0.0,
        **(config or {}),
    )
    ours = FlashAttention(settings, request=request, layer_number=1, options=options)
    return ours, DotProductAttention(settings, request=request, layer_number=1)


def inputs(s: int = S, t: int = S, *, grad: bool = False) -> list[Tensor]:
    shapes = ((s, N), (t, G), (t, G))
    return [torch.randn(B, *shape, D, requires_grad=grad) for shape in shapes]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def told(monkeypatch) -> list[tuple]:
    """What the operator is told, call by call, behind queries, keys and values."""
    calls = []
    real = operators.attend

    def spy(query, key, value, *rest):
        calls.append(rest)
        return real(query, key, value, *rest)

    monkeypatch.setattr(module, "attend", spy)
    return calls


PACKED = torch.tensor([[0, 0, 0, 1, 1, 1], [4, 4, 7, 7, -1, -1]])


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize(
    ("mask", "s"),
    [
        (lambda: None, S),
        (lambda: AttentionMask(causal=True), S),
        (lambda: AttentionMask(causal=True), 3),
        (lambda: AttentionMask(query_segments=PACKED, causal=True), S),
        (lambda: AttentionMask(causal=True, query_positions=torch.tensor([[2], [4]])), 1),
        (lambda: AttentionMask(causal=True, query_positions=torch.tensor([3])), 1),
        (lambda: AttentionMask(causal=True, query_positions=torch.tensor([[-1], [5]])), 1),
    ],
    ids=["everyone", "causal", "bottom_right", "packed", "step_of_rows", "step", "step_of_padding"],
)
@pytest.mark.parametrize("softmax", ["vanilla", "off-by-one"])
def test_every_version_tells_its_kernels_the_mask(version, mask, s, softmax, install, told):
    install(version)
    feature = {"vanilla": set(), "off-by-one": {"sink_off_by_one"}}[softmax]
    ours, reference = made(mode="infer", features=frozenset(feature), config={"softmax_type": softmax})
    query, key, value = inputs(s)
    with torch.no_grad():
        out = ours(query, key, value, mask=mask())
    torch.testing.assert_close(out, reference(query, key, value, mask=mask()), rtol=1e-5, atol=1e-5)
    assert len(told) == 1
    assert told[0][-1] == ours.version == version


@pytest.mark.parametrize("version", [2, 4])
def test_windows_of_mask_and_layer_are_told_as_one(version, install, told):
    install(version)
    ours, reference = made(window=(4, 1), features=frozenset({"window"}))
    given = inputs()
    mask = AttentionMask(window=(2, None))
    torch.testing.assert_close(ours(*given, mask=mask), reference(*given, mask=mask), rtol=1e-5, atol=1e-5)
    assert told[0][11:13] == (2, 1)


def test_window_counts_from_the_position_of_a_step(install, told):
    install(2)
    ours, reference = made(window=(1, 0), mode="infer", features=frozenset({"window", "positions", "causal"}))
    query, key, value = inputs(1)
    mask = AttentionMask(causal=True, query_positions=torch.tensor([[2], [4]]), alibi_slopes=SLOPES)
    torch.testing.assert_close(ours(query, key, value, mask=mask), reference(query, key, value, mask=mask))
    assert told[0][3].tolist() == [3, 5]


@pytest.mark.parametrize(
    "fields",
    [
        {"query_segments": torch.tensor([[0, 1, 0, 1, 0, 1]] * B)},
        {"query_positions": torch.arange(S), "causal": True},
        {"query_positions": torch.tensor([7]), "key_positions": torch.tensor([4, 5, 6, 7, 2, 3]), "causal": True},
    ],
    ids=["scattered", "positions", "ring"],
)
def test_masks_without_a_word_for_them_are_right_and_told_once(fields, install, told, caplog):
    install(2)
    module._tell.cache_clear()
    ours, reference = made(mode="infer")
    given = inputs(len(fields["query_positions"]) if "query_positions" in fields else S)
    with caplog.at_level(logging.WARNING, "transom"):
        for _ in range(2):
            out = ours(*given, mask=AttentionMask(**fields))
    torch.testing.assert_close(out, reference(*given, mask=AttentionMask(**fields)), rtol=1e-5, atol=1e-5)
    assert told == []
    (record,) = caplog.records
    assert "from a dense matrix: FlashAttention cannot be told them" in record.getMessage()


@pytest.mark.parametrize("softmax", ["vanilla", "off-by-one", "learnable"])
@pytest.mark.parametrize("version", [2, 4])
def test_tokens_of_no_sequence_get_zeros_and_give_none(version, softmax, install):
    install(version)
    ours, reference = made(config={"softmax_type": softmax})
    query, key, value = (x[:1] for x in inputs())
    leaves = [x.detach().clone().requires_grad_() for x in (query, key, value)]
    others = [x.detach().clone().requires_grad_() for x in (query, key, value)]

    def mask():
        return AttentionMask.from_cumulative_lengths(torch.tensor([0, 2, 4]), S, causal=True)

    direction = torch.randn(1, S, N, D)
    out, wanted = ours(*leaves, mask=mask()), reference(*others, mask=mask())
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    (out * direction).sum().backward()
    (wanted * direction).sum().backward()
    for leaf, other in zip([*leaves, *ours.parameters()], [*others, *reference.parameters()], strict=True):
        torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", [2, 4])
def test_packed_attention_compiles_in_one_graph(version, install):
    install(version)
    ours, _ = made(features=frozenset({"packed", "causal"}))
    query, key, value = (x[:1].detach().requires_grad_() for x in inputs())
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")

    def mask():
        return AttentionMask.from_cumulative_lengths(torch.tensor([0, 2, 6]), S, causal=True)

    out = compiled(query, key, value, mask=mask())
    torch.testing.assert_close(out, ours(query, key, value, mask=mask()))
    out.sum().backward()
    assert query.grad is not None


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("form", ["rows", "packed", "sink"])
def test_operators_keep_the_promises_of_torch(version, form, install):
    install(version)
    query, key, value = (x.detach().requires_grad_() for x in inputs())
    starts = torch.tensor([0, 6, 12], dtype=torch.int32) if form == "packed" else None
    sink = torch.zeros(N, requires_grad=True) if form == "sink" else None
    if form == "packed":
        query, key, value = (x.detach().flatten(0, 1).requires_grad_() for x in (query, key, value))
    longest = S if form == "packed" else 0
    told = (starts, starts, None, None, None, None, sink, longest, longest, 0.2, True, -1, -1, 0.0, 0.0, False, version)
    torch.library.opcheck(operators.attend, (query, key, value, *told))


def test_attention_gives_shapes_of_fake_tensors(install):
    install(4)
    ours, _ = made(features=frozenset({"causal"}))
    with FakeTensorMode():
        query, key, value = (torch.empty(B, S, h, D, dtype=torch.bfloat16, device="cuda") for h in (N, G, G))
        out = ours(query, key, value, mask=AttentionMask(causal=True))
    assert (out.shape, out.dtype, out.device.type) == ((B, S, N, D), torch.bfloat16, "cuda")


def test_attention_is_made_on_meta(install):
    install(2)
    with torch.device("meta"):
        ours, _ = made(config={"softmax_type": "learnable"})
    assert ours.softmax_offset.is_meta


@pytest.mark.parametrize("kind", ["static", "paged"])
@pytest.mark.parametrize("version", [2, 4])
def test_model_with_a_cache_decodes_what_it_gives_for_whole_sequences(kind, version, install, told):
    install(version)
    spec = {
        "name": "tiny",
        "vocab_size": 32,
        "max_sequence_length": 16,
        "config": {"num_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "num_query_groups": 2,
                   "position_embedding_type": "rope", "attention_dropout": 0.0, "hidden_dropout": 0.0},
    }  # fmt: skip
    with transom.override("core_attention", "flash_here", FlashAttention):
        use = {"core_attention": "flash_here", "kv_cache": kind}
        model = transom.build(spec, use=use, mode="infer", seed=0)
        reference = transom.build(spec, use={"core_attention": "dot_product"}, mode="infer", seed=0)
    tokens = torch.randint(32, (2, 8))
    whole = reference(tokens)
    model.setup_caches(2)
    torch.testing.assert_close(model(tokens[:, :5], input_pos=torch.arange(5)), whole[:, :5], rtol=1e-4, atol=1e-4)
    prefilled = len(told)
    for step in range(5, 8):
        out = model(tokens[:, step : step + 1], input_pos=torch.tensor([step]))
        torch.testing.assert_close(out, whole[:, step : step + 1], rtol=1e-4, atol=1e-4)
    assert len(told) == prefilled + 2 * 3


def pages_of(size: int, lengths: list[int], dtype: torch.dtype = torch.float32) -> tuple[Pages, Tensor, Tensor]:
    """Make pages of random keys and values in a table of no order; give what they hold, too."""
    table = torch.tensor([[5, 2], [1, 4]])
    pools = [torch.randn(6, size, G, D) for _ in range(2)]
    extent = max(lengths)
    key, value = (pool[table].flatten(1, 2)[:, :extent] for pool in pools)
    held = Pages(*(pool.to(dtype) for pool in pools), table, torch.tensor(lengths), extent, torch.float32)
    return held, key, value


STEPS = {
    "aligned": (AttentionMask(causal=True), [300, 300]),
    "rows": (AttentionMask(causal=True, query_positions=torch.tensor([[2], [299]])), [3, 300]),
    "window": (AttentionMask(causal=True, window=(7, 0), query_positions=torch.tensor([[2], [260]])), [3, 261]),
    "padding": (AttentionMask(causal=True, query_positions=torch.tensor([[-1], [5]])), [0, 6]),
}


@pytest.mark.parametrize(("version", "size"), [(2, 256), (2, 512), (4, 128), (2, 16), (4, 256), (3, 256)])
@pytest.mark.parametrize("step", list(STEPS))
def test_a_step_reads_pages_in_place_where_their_size_suits(version, size, step, install, told):
    install(version)
    mask, lengths = STEPS[step]
    lengths = [min(length, 2 * size) for length in lengths]
    mask = (
        mask
        if mask.query_positions is None
        else replace(mask, query_positions=mask.query_positions.clamp(max=2 * size - 1))
    )
    in_place = (version, size) in [(2, 256), (2, 512), (4, 128)]
    features = frozenset({"window"} if step == "window" and version != 3 else ())
    ours, reference = made(mode="infer", features=features)
    query = inputs(1)[0]
    pages, key, value = pages_of(size, lengths)
    with torch.no_grad():
        out, wanted = ours.attend_pages(query, pages, mask=mask), reference(query, key, value, mask=mask)
    if version != 3 or step != "window":
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    assert (told[0][4] is not None) is in_place
    if in_place:
        assert told[0][3].dtype is told[0][4].dtype is torch.int32


@pytest.mark.parametrize("case", ["several queries", "another mask", "another dtype", "no mask"])
def test_pages_are_gathered_for_what_no_kernel_reads_in_place(case, install, told):
    install(2)
    ours, reference = made(mode="infer")
    query = inputs(3 if case == "several queries" else 1)[0]
    pages, key, value = pages_of(256, [300, 300], torch.bfloat16 if case == "another dtype" else torch.float32)
    mask = AttentionMask(causal=True) if case != "no mask" else None
    if case == "another mask":
        mask = AttentionMask(causal=True, key_padding=torch.arange(300)[None] > 3)
    if case == "another dtype":
        key, value = key.bfloat16().float(), value.bfloat16().float()
    with torch.no_grad():
        out = ours.attend_pages(query, pages, mask=mask)
    torch.testing.assert_close(out, reference(query, key, value, mask=mask), rtol=1e-5, atol=1e-5)
    assert not told or told[0][4] is None


@pytest.mark.parametrize(("version", "size"), [(2, 256), (4, 128)])
def test_model_decodes_from_pages_in_place(version, size, install, told):
    install(version)
    config = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "position_embedding_type": "rope"}
    spec = {"name": "tiny", "vocab_size": 32, "max_sequence_length": 300, "config": config}
    with transom.override("core_attention", "flash_here", FlashAttention):
        use = {"core_attention": "flash_here", "kv_cache": "paged"}
        options = {"kv_cache": {"block_size": size}}
        model = transom.build(spec, use=use, options=options, mode="infer", seed=0)
        reference = transom.build(spec, use={"core_attention": "dot_product"}, mode="infer", seed=0)
    tokens = torch.randint(32, (2, 270))
    whole = reference(tokens)
    model.setup_caches(2)
    model(tokens[:, :268], input_pos=torch.arange(268))
    told.clear()
    for step in (268, 269):
        out = model(tokens[:, step : step + 1], input_pos=torch.tensor([step]))
        torch.testing.assert_close(out, whole[:, step : step + 1], rtol=1e-4, atol=1e-4)
    assert [call[4] is not None for call in told] == [True] * 4


@pytest.mark.parametrize("form", ["rows", "packed"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_backward_is_deterministic_where_that_is_asked_for(form, deterministic, install):
    install(2)
    ours, _ = made(deterministic=deterministic)
    query, key, value = (x[:1].requires_grad_() for x in inputs())
    packed = AttentionMask.from_cumulative_lengths(torch.tensor([0, 2, 6]), S, causal=True)
    ours(query, key, value, mask=packed if form == "packed" else AttentionMask(causal=True)).sum().backward()
    assert importlib.import_module("flash_attn.flash_attn_interface").asked == [deterministic]


def test_rows_of_different_lengths_decode_by_the_kernel(install, told):
    install(2)
    ours, reference = made(mode="infer", features=frozenset({"positions", "causal"}))
    query, key, value = inputs(1)
    mask = AttentionMask(causal=True).for_cache(torch.tensor([[2], [5]]), torch.tensor([3, 6]), S)
    torch.testing.assert_close(ours(query, key, value, mask=mask), reference(query, key, value, mask=mask))
    assert told[0][3].tolist() == [3, 6]
    assert told[0][3].dtype is torch.int32


def test_options_choose_the_version(install):
    install(2, 4)
    assert made()[0].version == 4
    assert made(options=FlashOptions(version=2))[0].version == 2
    with pytest.raises(SpecError) as caught:
        made(options=FlashOptions(version=3))
    assert caught.value.what == "flash_attention with version: 3 cannot serve."
    assert caught.value.available == ("version: 4", "version: 2")
    assert caught.value.failed == ("FlashAttention 3: fa3-fwd is not installed",)


def test_sinks_are_split_like_the_heads(install):
    install(2)
    config = {"softmax_type": "learnable"}
    request = CoreAttentionRequest(
        context=BuildContext(), num_attention_heads=2, num_query_groups=1, head_size=D, value_head_size=D
    )
    settings = TransformerConfig(num_layers=1, hidden_size=N * D, num_attention_heads=N, num_query_groups=G, **config)
    ours = FlashAttention(settings, request=request, layer_number=1)
    (shard,) = ours.sharded_state_dict("a.", metadata={"tensor_parallel_rank": 1}).values()
    assert (shard.global_shape, shard.global_offset) == ((4,), (2,))
    with pytest.raises(ParallelError, match=r"^a\.softmax_offset: which of 2 parts this is, is not known\."):
        ours.sharded_state_dict("a.")
    assert made()[0].sharded_state_dict("a.") == {}
    whole = made(config=config)[0].sharded_state_dict("a.")["a.softmax_offset"]
    assert (whole.global_shape, whole.global_offset) == ((4,), (0,))


def test_module_says_which_version_it_runs(install):
    install(4)
    assert str(made()[0]) == "FlashAttention(FlashAttention 4)"
