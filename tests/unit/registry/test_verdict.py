"""The ladder of questions."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from transom.registry.implementation import Implementation
from transom.registry.policy import Policy
from transom.registry.registry import Registry
from transom.registry.verdict import Verdict, asked_of_card, judge, judge_by_card, unmet_requirements
from transom.slots import SLOTS, ArchitectureRequest, BuildContext
from transom.slots.norm import NormRequest
from transom.transformer.parts import core_attention
from transom.transformer.transformer_config import TransformerConfig

NORM = SLOTS["norm"]
CUDA = BuildContext(device="cuda", compute_capability=(8, 0))


def _request(context=None, features=("rmsnorm",)):
    return NormRequest(context=context or BuildContext(), features=frozenset(features), hidden_size=64, eps=1e-5)


def _plugin(version="1.0"):
    return Implementation("norm", "fast", "acme-norm", version, "acme_norm.parts:Fast")


def _judge(request=None, policy=None, slot=NORM):
    return judge(_plugin(), slot, request or _request(), policy or Policy())


def _no(stage, reason, hint=None):
    return Verdict("norm", "acme-norm/fast", False, stage, reason, hint)


YES = Verdict("norm", "acme-norm/fast", True, "ok")


@pytest.fixture
def install(site, make_card):
    """Install a norm whose card differs from a good one in some fields."""

    def make(code=None, **fields):
        card = make_card("norm.fast", **{"features": ["rmsnorm"], **fields})
        site.install("acme-norm", {"norm": {"fast": "Fast"}}, card=card, **({} if code is None else {"code": code}))

    return make


def test_judge_says_yes_to_what_is_declared(install):
    install()
    assert _judge() == YES
    assert str(YES) == "acme-norm/fast: can serve"


def test_judge_refuses_by_policy_before_it_reads_the_card(site):
    site.install("acme-norm", card="broken")
    verdict = _judge(policy=Policy(deny=("acme-*",)))
    assert verdict == _no("policy", "the policy forbids acme-norm: TRANSOM_PLUGINS_DENY has 'acme-*'")
    assert str(verdict) == "acme-norm/fast: the policy forbids acme-norm: TRANSOM_PLUGINS_DENY has 'acme-*' (policy)"


def test_asked_of_card_tells_alike_what_judge_by_card_does(install):
    install()
    mlp = SLOTS["mlp"].request(
        context=CUDA,
        config=TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1),
        layer_number=2,
        after_norm=True,
    )
    assert asked_of_card(mlp) == asked_of_card(replace(mlp, layer_number=3)) == (CUDA, frozenset(), True)
    assert asked_of_card(_request()) == asked_of_card(replace(_request(), hidden_size=8))
    assert asked_of_card(_request()) != asked_of_card(_request(features=("layernorm",)))
    assert asked_of_card(_request()) != asked_of_card(_request(CUDA))


def test_judge_refuses_a_broken_card(site):
    site.install("acme-norm", card="card = 2")
    reason = "its card is broken: card in the card of acme-norm is of version 2."
    assert _judge() == _no("api", reason, "mend or reinstall acme-norm")


@pytest.mark.parametrize(
    ("api", "reason", "hint"),
    [
        ("1.0", None, None),
        ("1.2", None, None),
        ("1.3", "it is written for norm contract 1.3, this transom has 1.2", "upgrade transom"),
        ("1.10", "it is written for norm contract 1.10, this transom has 1.2", "upgrade transom"),
        ("2.0", "it is written for norm contract 2.0, this transom has 1.2", "upgrade transom"),
        ("0.9", "it is written for norm contract 0.9, this transom has 1.2", "upgrade acme-norm"),
    ],
)
def test_judge_compares_contract_versions(install, api, reason, hint):
    install(api=api)
    assert _judge(slot=replace(NORM, api=(1, 2))) == (YES if reason is None else _no("api", reason, hint))


@pytest.mark.parametrize(
    ("requires", "reason", "hint"),
    [
        (["transom>=0.1"], None, None),
        (["acme-lib>=2,<3"], None, None),
        (["no-such-lib; python_version < '3'"], None, None),
        (["no-such-lib"], "it requires no-such-lib, which is not installed", "pip install 'no-such-lib'"),
        (["acme-lib>=3"], "it requires acme-lib>=3, but 2.5b1 is installed", "pip install 'acme-lib>=3'"),
        (
            ["no-such-lib>=2", "transom", "acme-lib<2; python_version >= '3'"],
            "it requires no-such-lib>=2, which is not installed, and acme-lib<2, but 2.5b1 is installed",
            "pip install 'no-such-lib>=2' 'acme-lib<2'",
        ),
    ],
)
def test_judge_checks_requirements_in_metadata(site, install, requires, reason, hint):
    site.install("acme-lib", version="2.5b1", code="raise SystemExit")
    unmet_requirements.cache_clear()
    install(requires=requires)
    assert _judge() == (YES if reason is None else _no("requires", reason, hint))
    assert "acme_lib" not in sys.modules


@pytest.mark.parametrize(
    ("requires", "reason", "hint"),
    [
        ("no-such-lib | acme-lib>=2", None, None),
        (
            "acme-lib>=3 | no-such-lib",
            "it requires acme-lib>=3, but 2.5 is installed, or no-such-lib, which is not installed",
            "pip install 'acme-lib>=3'",
        ),
    ],
)
def test_judge_is_content_with_one_of_several_alternatives(site, install, requires, reason, hint):
    site.install("acme-lib", version="2.5")
    unmet_requirements.cache_clear()
    install(requires=[requires])
    assert _judge() == (YES if reason is None else _no("requires", reason, hint))


def test_judge_hints_at_the_card_s_own_install_command(install):
    install(requires=["no-such-lib"], install="pip install 'acme-norm[fast]'")
    assert _judge().hint == "pip install 'acme-norm[fast]'"


@pytest.mark.parametrize(
    ("requirement", "complaint"),
    [
        ("acme-lib[good]", None),
        ("acme-lib[bad]", "no-such-lib>=1, which is not installed"),
        ("acme-lib[all]", "no-such-lib>=1, which is not installed"),
        ("acme-lib[loop]", None),
        ("acme-lib[unknown]", None),
    ],
)
def test_unmet_requirements_follows_extras(site, requirement, complaint):
    lines = [
        "no-such-lib-of-its-own",
        "no-such-windows-lib; extra == 'good' and sys_platform == 'win32'",
        "transom; extra == 'good'",
        "no-such-lib>=1; extra == 'bad'",
        "acme-lib[bad,good]; extra == 'all'",
        "acme-lib[loop]; extra == 'loop'",
        "not a requirement; extra == 'loop'",
    ]
    metadata = "Name: acme-lib\nVersion: 1\n" + "".join(f"Requires-Dist: {line}\n" for line in lines)
    site.install("acme-lib", metadata=metadata)
    unmet_requirements.cache_clear()
    assert unmet_requirements((requirement,)) == (() if complaint is None else ((requirement, complaint),))


def test_unmet_requirements_refuses_a_version_that_is_none(site):
    site.install("acme-lib", metadata="Name: acme-lib\nVersion: yesterday\n")
    unmet_requirements.cache_clear()
    assert unmet_requirements(("acme-lib>=1",)) == (("acme-lib>=1", "acme-lib>=1, but yesterday is installed"),)


ELSEWHERE = "build for cuda or xpu on a machine that has it, or name another implementation"


@pytest.mark.parametrize(
    ("fields", "context", "reason", "hint"),
    [
        ({"devices": ["cpu", "cuda"]}, BuildContext(), None, None),
        ({"devices": ["cuda"]}, BuildContext(device="meta"), None, None),
        ({"devices": ["any"]}, BuildContext(device="xpu"), None, None),
        ({"devices": ["cuda", "xpu"]}, BuildContext(), "it runs on cuda, xpu, not on cpu", ELSEWHERE),
        ({"devices": ["cuda"], "min_compute_capability": "8.0"}, CUDA, None, None),
        ({"devices": ["any"], "min_compute_capability": "9.0"}, BuildContext(), None, None),
        ({"devices": ["cuda"], "min_compute_capability": "7.5"}, replace(CUDA, compute_capability=(10, 0)), None, None),
        (
            {"devices": ["cuda"], "min_compute_capability": "8.6"},
            CUDA,
            "it needs compute capability 8.6, this device has 8.0",
            None,
        ),
        (
            {"devices": ["cuda"], "min_compute_capability": "8.6"},
            replace(CUDA, compute_capability=None),
            "it needs compute capability 8.6, and which device it is for is not known",
            "plan on a machine whose torch finds a CUDA device, or say which it is for in the build context",
        ),
    ],
)
def test_judge_compares_hardware(install, fields, context, reason, hint):
    install(**fields)
    assert _judge(_request(context)) == (YES if reason is None else _no("hardware", reason, hint))


@pytest.mark.parametrize(
    ("fields", "context", "features", "reason"),
    [
        ({"features": []}, None, (), None),
        ({"features": ["rmsnorm", "layernorm"]}, None, ("rmsnorm",), None),
        (
            {"features": ["rmsnorm"]},
            None,
            ("zero_centered_gamma", "rmsnorm", "beyond"),
            "its card does not declare beyond, zero_centered_gamma (the scale is stored minus one)",
        ),
        ({"dtypes": ["bfloat16", "float16"]}, BuildContext(dtype="bfloat16"), (), None),
        ({"dtypes": ["bfloat16", "float16"]}, None, (), "it computes in bfloat16, float16, not in float32"),
        ({"modes": ["infer"]}, BuildContext(mode="infer"), (), None),
        ({"modes": ["infer"]}, None, (), "it is for infer, not for train"),
        ({"compiles": True}, BuildContext(compile=True), (), None),
        ({"compiles": False}, BuildContext(compile=False), (), None),
        ({"compiles": False}, BuildContext(compile=True), (), "it is not declared to compile in one graph"),
        ({"deterministic": True}, BuildContext(deterministic=True), (), None),
        ({}, BuildContext(deterministic=True), (), "it is not declared deterministic"),
        (
            {"features": [], "modes": ["infer"], "dtypes": ["float16"]},
            None,
            ("beyond",),
            "its card does not declare beyond; it computes in float16, not in float32; it is for infer, not for train",
        ),
    ],
)
def test_judge_refuses_what_is_not_declared(install, fields, context, features, reason):
    install(**fields)
    assert _judge(_request(context, features)) == (YES if reason is None else _no("features", reason))


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        (
            {"attention_dropout": 0.1},
            "config.attention_dropout: 0.0 (it is 0.1), or an implementation that declares dropout",
        ),
        (
            {"attention_dropout": 0.0, "window_size": (4, 0)},
            "an implementation that declares window, which config.window_size asks for",
        ),
    ],
)
def test_judge_names_the_field_of_the_config_that_asks(install, make_card, site, config, hint):
    card = make_card("core_attention.plain", features=["causal"])
    site.install("acme-plain", {"core_attention": {"plain": "Fast"}}, card=card)
    settings = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2, **config)
    part = core_attention(ArchitectureRequest(context=BuildContext(), config=settings), 1)
    verdict = judge_by_card(Registry().get("core_attention", "plain"), SLOTS["core_attention"], part.request, Policy())
    assert (verdict.stage, verdict.hint) == ("features", hint)


def test_judge_imports_only_what_all_data_allow(install):
    install(devices=["cuda"], code="raise SystemExit")
    assert _judge().stage == "hardware"
    assert judge_by_card(_plugin(), NORM, _request(CUDA), Policy()) == YES
    assert "acme_norm" not in sys.modules
    verdict = _judge(_request(CUDA))
    assert verdict == _no("broken", "it cannot be imported: SystemExit: ", "see its traceback: transom doctor")


def test_judge_calls_broken_what_does_not_fit_the_slot(install):
    install(code="def Fast(config, hidden_size): ...")
    hint = "see the contract, transom.slots.norm.NormBuilder"
    assert _judge() == _no("broken", "its builder does not accept `eps`", hint)


def _supports(body):
    return (
        "class Fast:\n    def __init__(self, config, hidden_size, eps): ...\n"
        f"    @classmethod\n    def supports(cls, request):\n        {body}\n"
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return ()", None),
        ("return []", None),
        ("return ['odd size', 'eps too small']", "odd size; eps too small"),
        ("yield f'hidden_size is {request.hidden_size}'", "hidden_size is 64"),
        ("return 'one reason'", "one reason"),
        ("return ''", None),
        ("return None", "its supports() failed: TypeError: 'NoneType' object is not iterable"),
        ("return True", "its supports() failed: TypeError: 'bool' object is not iterable"),
        ("raise KeyError('k')", "its supports() failed: KeyError: 'k'"),
        ("raise SystemExit(1)", "its supports() failed: SystemExit: 1"),
        ("yield 'a'; raise OSError('half way')", "its supports() failed: OSError: half way"),
    ],
)
def test_judge_asks_the_implementation_last(install, body, reason):
    install(code=_supports(body))
    assert _judge() == (YES if reason is None else _no("supports", reason))


def test_judge_lets_the_user_interrupt(install):
    install(code=_supports("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        _judge()


def test_judge_asks_only_supports_where_nothing_is_declared(site):
    site.install("acme-norm", code=_supports("return [] if request.context.device == 'cpu' else ['only cpu']"))
    assert _judge(_request(features=("beyond",))) == YES
    assert _judge(_request(CUDA)) == _no("supports", "only cpu")


def test_judge_does_not_apply_the_policy_to_what_the_program_registered():
    mine = Implementation("norm", "mine", "registered", "", "a:b", lambda config, hidden_size, eps: None)
    assert judge(mine, NORM, _request(), Policy(allow=("acme",), deny=("*",))).ok


@pytest.mark.parametrize(
    ("replacement", "hint"),
    [
        (None, "acme-norm/fast is deprecated: it goes in 2.0"),
        ("torch_norm", "acme-norm/fast is deprecated: it goes in 2.0; use torch_norm"),
    ],
)
def test_judge_says_what_replaces_a_deprecated_one(site, make_card, replacement, hint):
    lines = ['message = "it goes in 2.0"', *([f'replacement = "{replacement}"'] if replacement else [])]
    card = "\n".join([make_card("norm.fast", features=["rmsnorm"]), "[norm.fast.deprecated]", *lines])
    site.install("acme-norm", card=card)
    assert _judge() == replace(YES, hint=hint)
