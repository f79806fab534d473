"""The conformance kit over each version's interface, by plain matrices: everything but the kernels themselves."""

from __future__ import annotations

import msgspec
import pytest
from transom.registry.implementation import Implementation
from transom.testing import CaseSkipped, cases_for


def _on_the_cpu() -> Implementation:
    """The implementation with a card that declares the CPU and float32, where the stand-ins run."""
    value = "transom_flash_attention.attention:FlashAttention"
    found = Implementation("core_attention", "flash_attention", "transom-flash-attention", "0.1.0", value)
    dtypes = ("float32", "bfloat16", "float16")
    card = msgspec.structs.replace(found.card, devices=("cpu",), min_compute_capability=None, dtypes=dtypes)
    found.__dict__["_card"] = (card, None)
    return found


CASES = [case for case in cases_for(_on_the_cpu()) if case.area not in ("import", "parallel")]
OF_ANOTHER_VERSION = "what one version declares, another refuses"


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_attention_conforms_but_for_its_kernels(case, version, install):
    if case.area == "declared":
        pytest.skip(OF_ANOTHER_VERSION)
    install(version)
    try:
        case.run()
    except CaseSkipped as reason:
        pytest.skip(str(reason))


def test_features_that_one_version_lacks_are_served_by_another(install):
    install(2, 4)
    served = []
    for case in (case for case in CASES if case.area == "declared"):
        case.run()
        served.append(case.name)
    assert {"alibi", "value_head_size"} <= set(served) <= set(_on_the_cpu().card.features)
