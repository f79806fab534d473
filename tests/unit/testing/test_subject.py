from __future__ import annotations

import pytest
import torch
from torch import nn
from transom.registry.card import CardSection
from transom.registry.implementation import Implementation
from transom.registry.registry import default_registry
from transom.testing import CaseSkipped, ConformanceError
from transom.testing.requests import plain_request
from transom.testing.subject import Subject, asking_for_determinism, config_for, devices_of


def _card(*devices: str) -> CardSection:
    return CardSection(api="1.0", devices=devices, dtypes=("any",), modes=("train",))


@pytest.mark.parametrize(
    ("devices", "has_cuda", "expected"),
    [
        (("any",), False, {"cpu": True}),
        (("any",), True, {"cpu": True, "cuda": True}),
        (("cpu", "cuda"), False, {"cpu": True, "cuda": False}),
        (("cuda",), False, {"cuda": False}),
        (("xpu",), True, {"xpu": False}),
    ],
    ids=["any", "any with cuda", "both", "cuda alone", "unknown"],
)
def test_devices_of_says_which_can_be_used_here(monkeypatch, devices, has_cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    found = devices_of(_card(*devices))
    assert {device: reason is None for device, reason in found.items()} == expected
    for device, reason in found.items():
        assert reason is None or reason == f"it needs {device}, and this machine has none that torch can use"


def test_devices_of_tries_what_declares_nothing_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices_of(None) == {"cpu": None}


def test_subject_runs_every_case_in_the_first_dtype_that_is_declared(norm):
    subject = Subject(norm(dtypes=["bfloat16", "float64", "int8"]))
    assert subject.dtypes == ("float64", "bfloat16")
    assert subject.dtype == "float64"
    assert subject.context().dtype == "float64"


def test_subject_that_only_infers_is_asked_for_inference(norm):
    subject = Subject(norm(modes=["infer"]))
    assert not subject.trains
    assert subject.context().mode == "infer"


def test_require_goes_on_when_the_request_is_served(norm):
    subject = Subject(norm())
    subject.require(plain_request("norm", subject.context(), frozenset({"rmsnorm"})))


def test_require_fails_when_what_is_declared_is_refused(norm):
    subject = Subject(norm())
    said = r"^cannot serve what its card declares \(features\): its card does not declare layernorm"
    with pytest.raises(ConformanceError, match=said):
        subject.require(plain_request("norm", subject.context(), frozenset({"layernorm"})))


def test_require_skips_when_a_requirement_is_not_installed(norm):
    subject = Subject(norm(requires=["no-such-package>=3"]))
    with pytest.raises(CaseSkipped, match=r"^requires: it requires no-such-package>=3, which is not installed$"):
        subject.require(plain_request("norm", subject.context()))


def test_require_skips_what_supports_refuses(norm):
    code = "class Fast:\n    @classmethod\n    def supports(cls, request):\n        return ['not today']\n"
    code += "    def __init__(self, config, hidden_size, eps): pass\n    def forward(self, x, /): pass\n"
    subject = Subject(norm(code=code))
    with pytest.raises(CaseSkipped, match=r"^supports: not today$"):
        subject.require(plain_request("norm", subject.context()))


def test_build_makes_the_module_on_the_device_that_is_asked_for(norm):
    subject = Subject(norm())
    request = plain_request("norm", subject.context())
    module = subject.build(request, config_for(), on="meta", hidden_size=4, eps=0.0)
    assert isinstance(module, nn.Module)
    assert module.weight.is_meta
    assert module.training


def test_build_refuses_what_is_no_module(norm):
    code = "class Fast:\n    def __init__(self, config, hidden_size, eps): pass\n    def forward(self, x, /): pass\n"
    subject = Subject(norm(code=code))
    with pytest.raises(ConformanceError, match=r"^the builder made a Fast, not a torch\.nn\.Module$"):
        subject.build(plain_request("norm", subject.context()), config_for(), hidden_size=4, eps=0.0)


def test_subject_ignores_the_environments_policy(norm, monkeypatch):
    monkeypatch.setenv("TRANSOM_PLUGINS_DENY", "*")
    subject = Subject(norm())
    assert subject.verdict(plain_request("norm", subject.context())).ok


def test_subject_without_a_card_declares_no_feature():
    implementation = Implementation("norm", "Fast", "acme-norm", "1.0", "no_such_package.parts:Fast")
    assert Subject(implementation).features == frozenset()


def test_training_is_skipped_where_supports_takes_it_back(norm):
    code = "class Fast:\n    @classmethod\n    def supports(cls, request):\n"
    code += "        return ['it has no backward pass here'] if request.context.mode == 'train' else []\n"
    code += "    def __init__(self, config, hidden_size, eps): pass\n    def forward(self, x, /): pass\n"
    subject = Subject(norm(code=code))
    assert (subject.declares_training, subject.trains, subject.context().mode) == (True, False, "infer")
    with pytest.raises(CaseSkipped, match=r"^supports: it has no backward pass here$"):
        subject.in_training(lambda: None)()


def test_training_is_checked_where_it_is_served(norm):
    checked = []
    Subject(norm()).in_training(checked.append)("x")
    assert checked == ["x"]


def test_contexts_ask_for_determinism_inside_the_block_alone():
    subject = Subject(default_registry().get("norm", "torch_norm"))
    with asking_for_determinism():
        assert subject.context().deterministic
    assert not subject.context().deterministic
