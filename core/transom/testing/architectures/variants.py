"""The configs that architecture implementations are tried with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from transom.slots.request import ArchitectureRequest
from transom.testing.case import Case, CaseSkipped
from transom.testing.subject import Subject, config_for
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["VARIANTS", "contract_case", "serving", "variant"]

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        "num_query_groups": 2,
        "position_embedding_type": "rope",
    },
    "gpt": {"position_embedding_type": "learned_absolute"},
}
"""By name: one in the manner of Llama, one in that of GPT-2."""


def variant(name: str, dtype: str, **changes: Any) -> TransformerConfig:
    """Make the config of a variant.

    Args:
        name: of the variant.
        dtype: of parameters.
        changes: other fields.
    """
    return config_for(**{**VARIANTS[name], "params_dtype": dtype, **changes})


def serving(subject: Subject, request_of: Callable[[str], ArchitectureRequest]) -> ArchitectureRequest:
    """Give the request of the first variant that the subject's own ``supports()`` accepts.

    Args:
        subject: what is tested.
        request_of: makes the request of a variant.

    Raises:
        CaseSkipped: it accepts none.
    """
    reasons = []
    for name in VARIANTS:
        request = request_of(name)
        try:
            subject.require(request)
        except CaseSkipped as reason:
            reasons.append(f"{name}: {reason}")
        else:
            return request
    raise CaseSkipped("; ".join(reasons))


Check = Callable[..., None]


def contract_case(
    subject: Subject, name: str, shows: str, check: Check, *arguments: object, dtypes: bool = False
) -> Iterator[Case]:
    """Make a case for every variant, and for every dtype if wanted.

    Args:
        subject: what is tested.
        name: of the case, to which the variant's is added.
        shows: what it shows.
        check: called with the subject, the variant's name, the dtype and the arguments.
        arguments: for the check.
        dtypes: run it in every dtype that is declared.
    """
    for kind in VARIANTS:
        for dtype in subject.dtypes if dtypes else subject.dtypes[:1]:
            bound = partial(check, subject, kind, dtype, *arguments)
            yield Case("contract", f"{name}_{kind}", shows, bound, dtype, subject.device)
