from __future__ import annotations

import pytest
from transom.slots import SLOTS, BuildContext
from transom.testing.requests import plain_request


@pytest.mark.parametrize("slot", SLOTS)
def test_plain_request_is_the_slots_own(slot):
    context = BuildContext(dtype="bfloat16")
    request = plain_request(slot, context, frozenset({"moon"}))
    assert type(request) is SLOTS[slot].request
    assert request.context is context
    assert request.features == {"moon"}
    assert getattr(request, "config", None) is None or request.config.params_dtype == "bfloat16"
    assert hash(request) == hash(plain_request(slot, context, frozenset({"moon"})))
