"""What the linears tell Transformer Engine: FP8, delayed gradients, parameters that were replaced, ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transom import BuildContext, TransformerConfig
from transom.errors import ParallelError, SpecError
from transom.slots.linear import LinearRequest
from transom_te_linear.linear import TeColumnLinear, TeRowLinear
from transom_te_linear.options import TeOptions

H100 = BuildContext(device="cuda", dtype="bfloat16", compute_capability=(9, 0))


def config(**fields) -> TransformerConfig:
    return TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=4, **fields)


def column(*, bias: bool = True, skip: bool = False, options: TeOptions | None = None, group=None, **fields):
    rest = {key: fields.pop(key) for key in ("gather_output", "stride") if key in fields}
    return TeColumnLinear(
        16, 32, config=config(**fields), init_method=nn.init.normal_, bias=bias, skip_bias_add=skip, is_expert=False,
        tp_comm_buffer_name="qkv", tp_group=group, options=options, **({"gather_output": False} | rest),
    )  # fmt: skip


def row(*, options: TeOptions | None = None, group=None, parallel: bool = True, **fields):
    return TeRowLinear(
        16, 32, config=config(**fields), init_method=nn.init.normal_, bias=True, input_is_parallel=parallel,
        skip_bias_add=False, is_expert=False, tp_comm_buffer_name="proj", tp_group=group, options=options,
    )  # fmt: skip


class Group:
    """Two ranks, of which this is the second."""

    group_name = "two"

    def size(self) -> int:
        return 2

    def rank(self) -> int:
        return 1


@pytest.mark.parametrize("made", [column, row])
@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        (TeOptions(), None),
        (TeOptions(recipe="current"), "Float8CurrentScaling()"),
        (TeOptions(recipe="block"), "Float8BlockScaling()"),
        (
            TeOptions(recipe="delayed", margin=1, amax="most_recent", amax_history=16),
            "DelayedScaling(margin=1, amax_history_len=16, amax_compute_algo='most_recent')",
        ),
    ],
    ids=["none", "current", "block", "delayed"],
)
def test_forward_computes_with_the_recipe_of_the_options(made, options, recipe, install):
    install()
    from transformer_engine.pytorch import modules

    linear = made(options=options)
    modules.seen.clear()
    linear(torch.randn(2, 16))
    assert [None if each is None else repr(each) for each in modules.seen] == [recipe]
    assert modules.active == []


def test_forward_leaves_the_programs_own_recipe_alone(install):
    install()
    from transformer_engine.pytorch import autocast, modules

    linear = column()
    with autocast(recipe="the program's"):
        linear(torch.randn(2, 16))
    assert modules.seen[-1] == "the program's"


@pytest.mark.parametrize("made", [column, row])
def test_weight_gradients_of_several_passes_add_up_when_they_are_asked_for(made, install):
    install()
    linear = made(delay_wgrad_compute=True)
    linear.weight.grad = torch.ones_like(linear.weight)
    xs = [torch.randn(3, 16) for _ in range(3)]
    for x in xs:
        linear(x)[0].sum().backward()
    assert torch.equal(linear.weight.grad, torch.ones_like(linear.weight))
    assert torch.equal(linear.bias.grad, torch.full((32,), 9.0))
    linear.backward_dw()
    wanted = 1 + sum(x.sum(0) for x in xs).expand(32, 16)
    torch.testing.assert_close(linear.weight.grad, wanted)
    linear.backward_dw()
    torch.testing.assert_close(linear.weight.grad, wanted)


def test_parameters_that_were_replaced_are_computed_with(install):
    install()
    linear = column()
    linear.weight = nn.Parameter(torch.zeros(32, 16))
    linear.bias = nn.Parameter(torch.full((32,), 2.0))
    assert torch.equal(linear(torch.randn(2, 16))[0], torch.full((2, 32), 2.0))


def test_linear_is_made_on_meta_then_filled(install):
    install()
    with torch.device("meta"):
        linear = column()
    assert linear.weight.is_meta
    linear.to_empty(device="cpu")
    linear.reset_parameters()
    assert linear(torch.randn(2, 16))[0].isfinite().all()
    assert not linear.bias.any()


def test_state_has_no_extra_state_and_asks_for_none(install):
    install()
    linear = column()
    assert sorted(linear.state_dict()) == ["bias", "weight"]
    linear.load_state_dict({"weight": torch.zeros(32, 16), "bias": torch.zeros(32)})


def test_first_microbatch_is_told_once_a_step(install):
    install()
    linear, told = column(), []
    linear.__dict__["_inner"].forward = lambda x, is_first_microbatch: told.append(is_first_microbatch) or x
    linear(torch.randn(2, 16))
    linear.is_first_microbatch = True
    for _ in range(2):
        linear(torch.randn(2, 16))
    assert told == [None, True, False]


@pytest.mark.parametrize("made", [column, row])
def test_widths_that_do_not_divide_are_refused(made, install):
    install()
    size = {column: "output_size", row: "input_size"}[made]
    request = LinearRequest(context=BuildContext(tensor_parallel_size=5), input_size=16, output_size=32, bias=True)
    builder = {column: TeColumnLinear, row: TeRowLinear}[made]
    (reason,) = builder.supports(request)
    assert reason.startswith(size)


def test_ranks_refuse_what_transformer_engine_does_not_do(install):
    install()
    with pytest.raises(ParallelError, match=r"^column linear 16 -> 32 cannot be split: its width 32 does not divide"):
        column(group=Group(), stride=3)
    with pytest.raises(ParallelError, match=r"^column linear 16 -> 32 gathers its output, which te_linear does not do"):
        column(group=Group(), gather_output=True)
    with pytest.raises(ParallelError, match=r"^row linear 16 -> 32 scatters its input, which te_linear does not do"):
        row(group=Group(), parallel=False)


def _request(context: BuildContext, **sizes: int) -> LinearRequest:
    return LinearRequest(context=context, bias=True, **({"input_size": 16, "output_size": 32} | sizes))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (None, ""),
        (TeOptions(), ""),
        (TeOptions(recipe="current"), "FP8, current scaling"),
        (TeOptions(recipe="delayed", margin=2), "FP8, delayed scaling (max of 1024, margin 2)"),
    ],
)
def test_describe_says_the_precision(options, said):
    assert TeColumnLinear.describe(_request(H100), options) == said
    assert TeRowLinear.describe(_request(H100), options) == said


@pytest.mark.parametrize(
    ("recipe", "capability", "sizes", "what"),
    [
        ("delayed", (8, 0), {}, "recipe 'delayed' needs compute capability 8.9, this device has 8.0."),
        ("block", (8, 9), {}, "recipe 'block' needs compute capability 9.0, this device has 8.9."),
        ("current", (9, 0), {"output_size": 40}, "FP8 needs sizes that are multiples of 16, not 40."),
    ],
)
def test_describe_refuses_a_recipe_that_cannot_be(recipe, capability, sizes, what):
    context = BuildContext(device="cuda", dtype="bfloat16", compute_capability=capability)
    with pytest.raises(SpecError) as caught:
        TeColumnLinear.describe(_request(context, **sizes), TeOptions(recipe=recipe))
    assert caught.value.what == what


def test_linear_says_what_it_is(install):
    install()
    assert str(column(options=TeOptions(recipe="current"))) == (
        "TeColumnLinear(16, 32, bias=True, FP8, current scaling)"
    )
