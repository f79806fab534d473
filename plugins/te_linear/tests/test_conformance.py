"""The conformance kit, with a Transformer Engine of plain torch: everything but the kernels themselves."""

from __future__ import annotations

import msgspec
import pytest
from transom.registry.implementation import Implementation
from transom.testing import CaseSkipped, cases_for

PLACES = {
    "column_linear": ("te_linear", "linear:TeColumnLinear"),
    "row_linear": ("te_linear", "linear:TeRowLinear"),
    "norm": ("te_norm", "norm:TeNorm"),
    "activation": ("te_activation", "activation:TeActivation"),
    "core_attention": ("te_attention", "attention:TeAttention"),
    "layer": ("te_layer", "layer:TeLayer"),
}


def _on_the_cpu(slot: str) -> Implementation:
    """An implementation with a card that declares the CPU and float32, where the stand-in runs."""
    name, value = PLACES[slot]
    found = Implementation(slot, name, "transom-te-linear", "0.1.0", f"transom_te_linear.{value}")
    dtypes = ("float32", *(dtype for dtype in found.card.dtypes if dtype != "float32"))
    card = msgspec.structs.replace(found.card, devices=("cpu",), min_compute_capability=None, dtypes=dtypes)
    found.__dict__["_card"] = (card, None)
    return found


CASES = [
    (slot, case) for slot in PLACES for case in cases_for(_on_the_cpu(slot)) if case.area not in ("import", "parallel")
]


@pytest.mark.parametrize(("slot", "case"), CASES, ids=[f"{slot}-{case.id}" for slot, case in CASES])
def test_implementation_conforms_but_for_its_kernels(slot, case, install):
    install()
    try:
        case.run()
    except CaseSkipped as reason:
        pytest.skip(str(reason))
