"""How a hook is named."""

from __future__ import annotations

import msgspec
import pytest
from transom.registry.hook_use import HookUse


def test_of_gives_a_name_and_a_name_with_options_one_form():
    assert HookUse.of("lora") == HookUse(hook="lora")
    with_options = HookUse(hook="acme/lora", options={"rank": 8})
    assert HookUse.of(with_options) is with_options


def test_entry_is_written_as_it_is_read():
    entries = ["lora", {"hook": "acme/lora", "options": {"rank": 8}}]
    read = msgspec.convert(entries, list[str | HookUse])
    assert read == ["lora", HookUse(hook="acme/lora", options={"rank": 8})]
    assert msgspec.to_builtins(read) == entries


@pytest.mark.parametrize("entry", [{}, {"hook": 3}, {"hook": "a", "option": {}}, {"hook": "a", "options": [1]}])
def test_entry_that_is_no_hook_is_refused(entry):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(entry, HookUse)
