"""The user's config file: where it is, what it may say, and what wins over it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import msgspec
import pytest
from transom.errors import UserConfigError
from transom.registry.policy import ALLOW, DENY, STRICT, Policy
from transom.registry.user_config import CONFIG, PolicySettings, UserConfig, config_file, user_config

FULL = """
hooks = ["lora", "acme-profile/profile"]

[auto]
norm = "fast | torch_norm"
linear = ["te_linear", "acme/sparse"]

[policy]
allow = ["acme-*"]
deny = ["acme-evil"]
strict = true
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Give a function that writes the config file, and returns its path."""
    path = tmp_path / "config.toml"

    def write(text: str | bytes) -> str:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        user_config.__globals__["_read"].cache_clear()
        monkeypatch.setenv(CONFIG, str(path))
        return str(path)

    for variable in (ALLOW, DENY, STRICT):
        monkeypatch.delenv(variable, raising=False)
    yield write
    user_config.__globals__["_read"].cache_clear()


def test_user_config_reads_every_field(write):
    write(FULL)
    assert user_config() == UserConfig(
        auto={"norm": "fast | torch_norm", "linear": ("te_linear", "acme/sparse")},
        policy=PolicySettings(allow=("acme-*",), deny=("acme-evil",), strict=True),
        hooks=("lora", "acme-profile/profile"),
    )


def test_user_config_says_nothing_when_it_is_empty(write):
    write("")
    assert user_config() == UserConfig()


def test_user_config_says_nothing_when_nobody_made_one(monkeypatch, tmp_path):
    monkeypatch.delenv(CONFIG, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_config() == UserConfig()


@pytest.mark.skipif(sys.platform != "linux", reason="XDG is Linux's convention")
def test_config_file_is_where_the_platform_keeps_such_files(monkeypatch, tmp_path):
    monkeypatch.setenv(CONFIG, "")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_file() == tmp_path / "transom" / "config.toml"
    (tmp_path / "transom").mkdir()
    config_file().write_text('hooks = ["lora"]')
    assert user_config().hooks == ("lora",)


def test_user_config_is_read_once(write):
    path = Path(write('hooks = ["lora"]'))
    first = user_config()
    path.write_text('hooks = ["other"]')
    assert user_config() is first


def test_user_config_that_transom_config_names_must_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv(CONFIG, str(tmp_path / "gone.toml"))
    with pytest.raises(UserConfigError, match=r"^the user's config is not there: .*/gone\.toml\.\n") as caught:
        user_config()
    assert (caught.value.file, caught.value.path) == (str(tmp_path / "gone.toml"), "")
    assert caught.value.asked_by == "the environment variable TRANSOM_CONFIG"
    assert caught.value.hint == "make it, or unset TRANSOM_CONFIG"


def test_user_config_cannot_be_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(CONFIG, str(tmp_path))
    with pytest.raises(UserConfigError, match=r"^the user's config cannot be read: Is a directory\."):
        user_config()


NAMES = "write a name, distribution/name, or several of them: first | second"
WRONG = {
    "not toml": ("[auto", "", "the user's config is not TOML: Expected ']' at the end of a table", None),
    "not utf-8": (b"# \xff", "", "the user's config is not UTF-8: ", None),
    "too deep": ("a = " + "[" * 10_000, "", "the user's config is ", None),
    "huge number": ("a = " + "1" * 5000, "", "the user's config is not TOML: Exceeds the limit", None),
    "unknown field": ("hook = []", "", "unknown field `hook`.", "hooks?"),
    "unknown field, unlike any": ("x = 1", "", "unknown field `x`.", "the fields are auto, policy, hooks"),
    "unknown field of the policy": ("[policy]\ndenny = []", "policy", "unknown field `denny`.", "deny?"),
    "wrong type": ("hooks = 1", "hooks", "hooks in the user's config is wrong: Expected `array`, got `int`.", None),
    "a switch as text": ('[policy]\nstrict = "0"', "policy.strict", "Expected `bool`, got `str`.", None),
    "a switch as a number": ("[policy]\nstrict = 0", "policy.strict", "Expected `bool`, got `int`.", None),
    "an empty pattern": ('[policy]\nallow = [""]', "policy.allow[0]", "Expected `str` of length >= 1.", None),
    "no name": ('hooks = ["a b"]', "hooks", "'a b' is not an implementation's name in ('a b',).", NAMES),
    "a name twice": ('[auto]\nnorm = ["a", "a"]', "auto.norm", "'a' stands twice in ('a', 'a').", NAMES),
    "no names": ("[auto]\nnorm = []", "auto.norm", "is wrong: no name in ().", NAMES),
    "itself": (
        '[auto]\nnorm = ["a", "auto"]',
        "auto.norm",
        "auto.norm in the user's config has 'auto', which it defines.",
        "write the names that are meant",
    ),
}


@pytest.mark.parametrize(("text", "place", "what", "hint"), WRONG.values(), ids=WRONG)
def test_user_config_that_is_wrong_raises_with_file_and_path(write, text, place, what, hint):
    path = write(text)
    with pytest.raises(UserConfigError, match=re.escape(what)) as caught:
        user_config()
    assert (caught.value.file, caught.value.path, caught.value.hint) == (path, place, hint)
    assert caught.value.asked_by == path


def test_order_of_one_slot_wins_over_that_of_several():
    config = UserConfig(auto={"linear": "a | b", "row_linear": ("c",)})
    assert config.order("column_linear") == ("a", "b")
    assert config.order("row_linear") == ("c",)
    assert config.order("norm") == ()
    assert [config.auto_key(name) for name in ("column_linear", "row_linear", "norm")] == ["linear", "row_linear", None]


def test_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        UserConfig().hooks = ("lora",)
    assert msgspec.structs.fields(UserConfig)


def test_policy_of_the_config_holds_where_no_variable_is_set(write):
    path = write(FULL)
    policy = Policy.current()
    assert (policy.allow, policy.deny, policy.strict) == (("acme-*",), ("acme-evil",), True)
    assert policy.refusal("acme-evil") == f"policy.deny in {path} has 'acme-evil'"
    assert policy.refusal("other") == f"policy.allow in {path} does not have it"
    assert policy.idle(["other"]) == (
        f"policy.allow in {path} has 'acme-*', which matches no installed plugin",
        f"policy.deny in {path} has 'acme-evil', which matches no installed plugin",
    )


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        (ALLOW, "other", Policy(("other",), ("acme-evil",), True)),
        (DENY, "other", Policy(("acme-*",), ("other",), True)),
        (STRICT, "0", Policy(("acme-*",), ("acme-evil",), False)),
        (STRICT, "", Policy(("acme-*",), ("acme-evil",), True)),
        (DENY, "", Policy(("acme-*",), ("acme-evil",), True)),
    ],
)
def test_variable_wins_over_the_config_unless_it_is_empty(write, monkeypatch, variable, text, expected):
    write(FULL)
    monkeypatch.setenv(variable, text)
    policy = Policy.current()
    assert (policy.allow, policy.deny, policy.strict) == (expected.allow, expected.deny, expected.strict)
    if text == "other":
        assert variable in (policy.allow_from, policy.deny_from)


def test_config_is_not_read_by_importing(site):
    code = "import json, sys, transom, transom.registry.registry; print(json.dumps(['platformdirs' in sys.modules]))"
    assert site.run(code, TRANSOM_CONFIG=str(site.root / "gone.toml")) == [False]


def test_null_device_is_an_empty_config(monkeypatch):
    monkeypatch.setenv(CONFIG, os.devnull)
    assert user_config() == UserConfig()
