"""The mixture against its formula, against those of transformers, and in models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from torch import Tensor, nn
from transom import BuildContext, TransformerConfig
from transom.costs import measure
from transom.errors import ConfigError, ParallelError, SpecError
from transom.slots.mlp import MLPRequest
from transom.specs.shares import split
from transom.specs.world import World
from transom.training.run import train
from transom.transformer.auxiliary_loss import auxiliary_losses
from transom.transformer.linear import ColumnLinear, RowLinear
from transom.transformer.mlp import MLP, MLPSubmodules
from transom_moe.moe import MoE, MoESubmodules
from transom_moe.options import MoEOptions
from transom_moe.router import load_balancing_loss, router_z_loss

SPEC = Path(__file__).parents[1] / "tiny-moe.yaml"
B, S, H, F = 2, 5, 12, 8
GATED = {"gated_linear_unit": True, "activation_func": "silu", "add_bias_linear": False}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def spec(options: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    fields = {"num_layers": 1, "hidden_size": H, "num_attention_heads": 2, "ffn_hidden_size": F, **changes}
    chosen = {"num_experts": 4, "top_k": 2, **(options or {})}
    return {
        "vocab_size": 32,
        "max_sequence_length": 16,
        "config": {"attention_dropout": 0.0, "hidden_dropout": 0.0, **fields},
        "use": {"mlp": "moe"},
        "options": {"mlp": chosen},
    }


def shaken(module: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def moe(options: dict[str, Any] | None = None, dtype: str = "float64", **changes: Any) -> MoE:
    return shaken(transom.build(spec(options, **changes), dtype=dtype, seed=0).layers[0].mlp)


def whole(module: nn.Module, x: Tensor, scale: Tensor | None = None) -> Tensor:
    out, bias = module(x, scale)
    return out if bias is None else out + bias


def expert(x: Tensor, mlp: MLP) -> Tensor:
    """One MLP by its formula."""
    weights = dict(mlp.named_parameters())
    inner = x @ weights["linear_fc1.weight"].T + weights.get("linear_fc1.bias", 0)
    if mlp.config.gated_linear_unit:
        gate, up = inner.chunk(2, dim=-1)
        inner = gate * gate.sigmoid() * up
    else:
        inner = nn.functional.gelu(inner)
    return inner @ weights["linear_fc2.weight"].T + weights.get("linear_fc2.bias", 0)


def formula(module: MoE, x: Tensor, scale: Tensor, *, sigmoid: bool, normalizes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Every expert on every token, of which all but k count nothing; and both losses."""
    logits = x.flatten(0, 1) @ module.router.weight.T
    scores = logits.sigmoid() if sigmoid else logits.exp() / logits.exp().sum(-1, keepdim=True)
    best = scores.topk(module.top_k).indices
    kept = torch.zeros_like(scores).scatter_(1, best, 1.0)
    weights = scores * kept
    if normalizes:
        weights = weights / weights.sum(-1, keepdim=True)
    weights = weights * scale.flatten()[:, None]
    outputs = torch.stack([expert(x.flatten(0, 1), each) for each in module.experts.children()], dim=1)
    mixed = (outputs * weights[..., None]).sum(1).view_as(x)
    shares = scores / scores.sum(-1, keepdim=True)
    balance = module.num_experts * (kept.sum(0) / kept.sum() * shares.mean(0)).sum()
    return mixed, balance, logits.exp().sum(-1).log().square().mean()


@pytest.mark.parametrize("compute", ["sequential", "grouped"])
@pytest.mark.parametrize("gated", [False, True], ids=["biases", "gated"])
@pytest.mark.parametrize("normalizes", [False, True], ids=["as_they_are", "normalized"])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_moe_equals_its_formula(score: str, normalizes: bool, gated: bool, compute: str) -> None:
    losses = {"aux_loss_coeff": 0.2, "z_loss_coeff": 0.03}
    options = {"score_function": score, "normalize_weights": normalizes, "compute": compute, **losses}
    module = moe(options, **(GATED if gated else {}))
    x = torch.randn(B, S, H, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(B, S, dtype=torch.float64, requires_grad=True)
    out, bias = module(x, scale)
    assert bias is None
    exact, balance, z = formula(module, x, scale, sigmoid=score == "sigmoid", normalizes=normalizes)
    torch.testing.assert_close(out, exact, atol=1e-12, rtol=1e-10)
    reported = {"load_balancing_loss": balance.detach(), "router_z_loss": z.detach()}
    torch.testing.assert_close(auxiliary_losses(module), reported)
    direction = torch.randn_like(out)
    leaves = [x, scale, *module.parameters()]
    found = torch.autograd.grad((out * direction).sum(), leaves)
    wanted = torch.autograd.grad((exact * direction).sum() + 0.2 * balance + 0.03 * z, leaves)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("gated", [False, True], ids=["biases", "gated"])
def test_moe_of_one_expert_is_the_reference_mlp(gated: bool) -> None:
    module = moe({"num_experts": 1, "top_k": 1, "aux_loss_coeff": 0.0}, **(GATED if gated else {}))
    plain = MLP(module.config, MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear))
    plain.load_state_dict({name: module.state_dict()[f"experts.0.{name}"] for name in plain.state_dict()})
    x = torch.randn(B, S, H, dtype=torch.float64, requires_grad=True)
    out, exact = whole(module, x), whole(plain, x)
    torch.testing.assert_close(out, exact)
    torch.testing.assert_close(*(torch.autograd.grad(each.sin().sum(), x) for each in (out, exact)))


def test_moe_with_a_shared_expert_adds_it_and_returns_its_bias() -> None:
    module = moe({"shared_expert_ffn_hidden_size": 6})
    x = torch.randn(B, S, H, dtype=torch.float64)
    out, bias = module(x)
    assert bias is module.shared_expert.linear_fc2.bias
    routed = formula(module, x, torch.ones(B, S, dtype=x.dtype), sigmoid=False, normalizes=True)[0]
    shared = expert(x, module.shared_expert)
    torch.testing.assert_close(out + bias, routed + shared)
    scale = torch.rand(B, S, dtype=torch.float64)
    torch.testing.assert_close(module(x, scale), ((routed + shared) * scale[..., None], None))


def test_moe_drops_no_token_when_all_go_to_one_expert() -> None:
    module = moe({"top_k": 1})
    with torch.no_grad():
        module.router.weight.zero_()[2, 0] = 1.0
    x = torch.randn(B, S, H, dtype=torch.float64).abs()
    torch.testing.assert_close(whole(module, x), expert(x, module.experts.get_submodule("2")))
    out, _ = module(x.requires_grad_())
    out.sum().backward()
    idle = module.experts.get_submodule("0").linear_fc1.weight
    assert idle.grad is not None
    assert not idle.grad.any()


def copied(module: MoE, theirs: Any) -> None:
    with torch.no_grad():
        theirs.gate.weight.copy_(module.router.weight)
        for i, each in enumerate(module.experts.children()):
            theirs.experts.gate_up_proj[i].copy_(each.linear_fc1.weight)
            theirs.experts.down_proj[i].copy_(each.linear_fc2.weight)


def compared(module: MoE, theirs: nn.Module, x: Tensor) -> None:
    """Theirs routes in float32, whatever the model is in."""
    out, exact = whole(module, x), theirs(x)
    torch.testing.assert_close(out, exact, atol=1e-6, rtol=1e-5)
    direction = torch.randn_like(out)
    found, wanted = (torch.autograd.grad((each * direction).sum(), x, retain_graph=True) for each in (out, exact))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    weights = torch.autograd.grad((out * direction).sum(), list(module.experts.parameters()))
    stacked = [theirs.get_submodule("experts").gate_up_proj, theirs.get_submodule("experts").down_proj]
    up, down = torch.autograd.grad((exact * direction).sum(), stacked)
    torch.testing.assert_close(torch.stack(weights[::2]), up, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(weights[1::2]), down, atol=1e-5, rtol=1e-5)


def test_moe_equals_that_of_mixtral() -> None:
    modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    config = modeling.MixtralConfig(
        hidden_size=H, intermediate_size=F, num_local_experts=4, num_experts_per_tok=2, num_attention_heads=2
    )
    module, theirs = moe({"aux_loss_coeff": 0.0}, **GATED), modeling.MixtralSparseMoeBlock(config).double()
    copied(module, theirs)
    x = torch.randn(B, S, H, dtype=torch.float64, requires_grad=True)
    compared(module, theirs, x)
    balance = auxiliary_losses(module)["load_balancing_loss"]
    logits = theirs.gate(x.flatten(0, 1))[0]
    # Theirs is k for experts that are used alike, ours 1.
    exact = modeling.load_balancing_loss_func((logits,), 4, 2).detach() / 2
    torch.testing.assert_close(balance, exact, check_dtype=False)


def test_moe_equals_that_of_qwen2() -> None:
    modeling = pytest.importorskip("transformers.models.qwen2_moe.modeling_qwen2_moe")
    config = modeling.Qwen2MoeConfig(
        hidden_size=H, moe_intermediate_size=F, shared_expert_intermediate_size=6, num_experts=6, num_experts_per_tok=3,
        norm_topk_prob=False, num_attention_heads=2,
    )  # fmt: skip
    options = {
        "num_experts": 6, "top_k": 3, "normalize_weights": False, "shared_expert_ffn_hidden_size": 6,
        "shared_expert_gate": True, "aux_loss_coeff": 0.0,
    }  # fmt: skip
    module, theirs = moe(options, **GATED), modeling.Qwen2MoeSparseMoeBlock(config).double()
    copied(module, theirs)
    with torch.no_grad():
        theirs.shared_expert_gate.weight.copy_(module.shared_expert_gate.weight)
        gate, up = module.shared_expert.linear_fc1.weight.chunk(2)
        theirs.shared_expert.gate_proj.weight.copy_(gate)
        theirs.shared_expert.up_proj.weight.copy_(up)
        theirs.shared_expert.down_proj.weight.copy_(module.shared_expert.linear_fc2.weight)
    compared(module, theirs, torch.randn(B, S, H, dtype=torch.float64, requires_grad=True))


def test_losses_are_least_when_experts_are_used_alike() -> None:
    even, chosen = torch.full((8, 4), 0.25), torch.arange(16).view(8, 2) % 4
    assert float(load_balancing_loss(even, chosen)) == pytest.approx(1.0)
    all_to_two = torch.zeros(8, 4).index_fill_(1, torch.tensor([0, 1]), 0.5)
    assert float(load_balancing_loss(all_to_two, torch.tensor([[0, 1]]).expand(8, 2))) == pytest.approx(2.0)
    assert float(router_z_loss(torch.full((3, 4), 2.0))) == pytest.approx((2 + torch.tensor(4.0).log().item()) ** 2)


@pytest.mark.parametrize("compute", ["sequential", "grouped"])
def test_moe_gives_the_same_bits_twice(compute: str) -> None:
    module = moe({"compute": compute}, dtype="float32")
    x = torch.randn(4, 64, H, requires_grad=True)
    runs = []
    for _ in range(2):
        out = whole(module, x)
        runs.append([out, *torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])])
    assert all(torch.equal(*each) for each in zip(*runs, strict=True))


@pytest.mark.parametrize("compute", ["sequential", "grouped"])
def test_moe_follows_autocast_and_routes_in_float32(compute: str) -> None:
    module = moe({"compute": compute}, dtype="float32", **GATED)
    x = torch.randn(B, S, H)
    plain = whole(module, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.router(x.flatten(0, 1))[0].dtype is torch.float32
        out = whole(module, x)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), plain, atol=0.05, rtol=0.05)


def test_experts_put_weight_gradients_off_when_asked() -> None:
    grads = []
    for delayed in (False, True):
        torch.manual_seed(3)
        module = transom.build(spec({"shared_expert_ffn_hidden_size": 6}, delay_wgrad_compute=delayed)).layers[0].mlp
        module(torch.randn(1, 6, H))[0].square().sum().backward()
        if delayed:
            assert module.experts.get_submodule("0").linear_fc1.weight.grad is None
            module.backward_dw()
        grads.append({name: parameter.grad for name, parameter in module.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1])


def test_compute_that_linears_do_not_allow_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"these are ColumnLinear, RowLinear, with delay_wgrad_compute True"
    ) as caught:
        transom.build(spec({"compute": "grouped"}, delay_wgrad_compute=True))
    assert (caught.value.field, caught.value.value) == ("compute", "grouped")


WRONG = {
    "none": ({"num_experts": 0}, "num_experts is 0; at least 1 is needed"),
    "too many": ({"top_k": 5}, r"top_k is 5; 1 to num_experts \(4\) is possible"),
    "width": ({"expert_ffn_hidden_size": 0}, "expert_ffn_hidden_size is 0; at least 1 is needed"),
    "loss": ({"z_loss_coeff": -1.0}, "z_loss_coeff is -1.0; 0 or more is needed"),
    "gate": ({"shared_expert_gate": True}, "shared_expert_ffn_hidden_size is not given: nothing to gate"),
    "score": ({"score_function": "tanh"}, "tanh"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_refused(name: str) -> None:
    options, said = WRONG[name]
    with pytest.raises(SpecError, match=said):
        transom.plan(spec(options))


def test_experts_that_cannot_be_spread_are_refused() -> None:
    data = spec({"num_experts": 3, "expert_parallel": True}, tensor_model_parallel_size=2)
    data["use"] |= {"linear": "parallel_linear", "embedding": "parallel_linear", "loss": "parallel_linear"}
    pytest.importorskip("transom_parallel_linear")
    with pytest.raises(ParallelError, match="3 experts cannot be spread evenly over 2 ranks") as caught:
        transom.plan(data)
    assert (caught.value.experts, caught.value.ranks) == (3, 2)


def test_compiled_models_refuse_what_cannot_be_traced() -> None:
    config = TransformerConfig(num_layers=1, hidden_size=H, num_attention_heads=2, tensor_model_parallel_size=2)
    request = MLPRequest(context=BuildContext(compile=True, tensor_parallel_size=2), config=config)
    with pytest.raises(ConfigError, match="cannot run experts one after another") as caught:
        MoE.parts(request, MoEOptions(compute="sequential"))
    assert (caught.value.field, caught.value.value) == ("compute", "sequential")
    with pytest.raises(ConfigError, match="cannot have its experts on several ranks"):
        MoE.parts(request, MoEOptions(expert_parallel=True))


def test_mixture_of_mixtures_is_refused() -> None:
    config = TransformerConfig(num_layers=1, hidden_size=H, num_attention_heads=2)
    request = MLPRequest(context=BuildContext(), config=config, is_expert=True, ffn_hidden_size=4)
    assert list(MoE.supports(request)) == ["a mixture is no expert of another"]
    with pytest.raises(ConfigError, match="a mixture is no expert of another"):
        MoE(config, MoESubmodules([], []), is_expert=True)


def test_plan_shows_every_expert_and_what_a_token_costs() -> None:
    plan = transom.plan(SPEC)
    paths = [node.path for node in plan.nodes() if node.path.startswith("layers.0.mlp.experts.")]
    assert len(paths) == 16
    assert {node.request.is_expert for node in plan.nodes() if node.path in paths} == {True}
    assert "2 of 8 experts" in str(plan)
    assert "experts.0 to 7.linear_fc1 (8 alike)" in str(plan)


@pytest.mark.parametrize("ranks", [1, 2])
def test_plan_counts_what_a_token_computes_on_each_rank(ranks: int) -> None:
    """As an MLP as wide as the experts that it goes to, and the router."""
    costs = []
    for data in (spec(), spec(ffn_hidden_size=2 * F) | {"use": {}, "options": {}}):
        plan = transom.plan(data)
        (stage,) = split(plan, World(tp=ranks), measure(plan))
        costs.append(stage.cost)
    assert costs[0].is_complete
    assert costs[0].flops - costs[1].flops == 2 * H * 4 // ranks
    two_more_experts = 2 * (2 * H * F + F) // ranks
    assert costs[0].parameters - costs[1].parameters == two_more_experts + 3 * H + H * 4


def test_norm_before_a_mixture_stays_a_module_of_its_own() -> None:
    data = spec({"shared_expert_ffn_hidden_size": 6}, normalization="RMSNorm")
    data["use"]["norm_linear"] = "torch_norm_linear | separate"
    layer = transom.build(data).layers[0]
    assert type(layer.mlp.shared_expert.linear_fc1) is ColumnLinear
    assert any(name.startswith("pre_mlp_layernorm.") for name, _ in layer.named_parameters())


def test_a_linear_may_be_another_in_one_expert() -> None:
    pytest.importorskip("transom_parallel_linear")
    data = spec()
    data["use"]["layers.0.mlp.experts.1.linear_fc1"] = "parallel_linear"
    module = transom.build(data).layers[0].mlp
    kinds = [type(each.linear_fc1).__name__ for each in module.experts.children()]
    assert kinds == ["ColumnLinear", "ColumnParallelLinear", "ColumnLinear", "ColumnLinear"]
    assert whole(module, torch.randn(B, S, H)).shape == (B, S, H)


def test_a_smaller_model_of_the_spec_learns_and_keeps_its_experts_busy(tmp_path: Path) -> None:
    data = transom.load_spec(SPEC).to_dict()
    data["config"] |= {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 64, "num_attention_heads": 4}
    data["max_sequence_length"] = 64
    data["options"]["mlp"]["num_experts"] = 4
    data["train"] |= {"steps": 40, "batch_size": 8, "learning_rate": 0.01, "warmup_steps": 5, "checkpoint_every": 0}
    result = train(data, out=tmp_path / "run")
    assert result.validation_loss < 0.65 * torch.tensor(256.0).log().item()
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert '"load_balancing_loss": 1.' in rows[-1]
