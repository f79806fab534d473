"""A plugin's calls against a recorded package: what fits passes, what does not is named with its line."""

from __future__ import annotations

import textwrap

import pytest
from transom.testing.call_contract import record, unmet_calls

ACME = {
    "acme": "from acme.kernels import *",
    "acme.kernels": textwrap.dedent(
        """
        from dataclasses import dataclass
        from torch.autograd import Function

        def attend(q: Tensor, k, v, causal: bool = False, *, window=(-1, -1)) -> Tensor: ...

        class Base:
            def backward_dw(self): ...
            def _hidden(self): ...

        class Linear(Base):
            def __init__(self, size, *, bias=True): ...
            def forward(self, x, first=None): ...
            @staticmethod
            def supports(size): ...

        class NormFunction(Function):
            @staticmethod
            def forward(ctx, x, eps=1e-5): ...

        @dataclass
        class Recipe:
            margin: int
            amax: str = "max"

        if True:
            def late(*xs, **options): ...
        """
    ),
}
NAMES = ("attend", "Linear", "NormFunction", "Recipe", "late")
RECORD = record(ACME, {f"acme.{name}": "acme.kernels" for name in NAMES})


def test_record_gives_signatures_without_annotations_and_self():
    assert RECORD == {
        "acme.attend": {"kind": "function", "parameters": "q, k, v, causal=False, *, window=(-1, -1)"},
        "acme.Linear": {
            "kind": "class",
            "parameters": "size, *, bias=True",
            "methods": {"backward_dw": "", "forward": "x, first=None", "supports": "size"},
        },
        "acme.NormFunction": {
            "kind": "class",
            "parameters": "",
            "methods": {"apply": "x, eps=1e-05, /", "forward": "x, eps=1e-05"},
        },
        "acme.Recipe": {"kind": "class", "parameters": "margin, amax='max'", "methods": {}},
        "acme.late": {"kind": "function", "parameters": "*xs, **options"},
    }


def test_record_raises_when_a_name_is_gone():
    with pytest.raises(LookupError, match=r"^acme\.kernels defines no softmax, which acme\.softmax should be$"):
        record(ACME, {"acme.softmax": "acme.kernels"})


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("from acme import attend\nattend(q, k, v, window=(1, 1))", None),
        ("def f():\n    from acme import attend as go\n    return go(q, k=k, v=v, causal=True)", None),
        ("import acme\nacme.attend(q, k, v)", None),
        ("import acme.kernels as kernels", "1: imports acme.kernels, which is not recorded"),
        ("from acme import softmax", "1: imports acme.softmax, which is not recorded"),
        ("import acme\nacme.softmax(q)", "2: calls acme.softmax, which is not recorded"),
        ("from acme import attend\nattend(q, k)", "2: attend lacks the argument 'v'"),
        ("from acme import attend\nattend(q, k, v, alibi=s)", "2: attend takes no argument 'alibi'"),
        ("from acme import attend\nattend(q, k, v, True, w)", "2: attend takes 4 positional arguments, not 5"),
        ("from acme import attend\nattend(**d)", "2: attend is called with arguments that cannot be read"),
        ("from acme import late\nlate(1, 2, x=3)", None),
        ("from acme import Linear\nself.linear = Linear(3)\nself.linear(x)\nself.linear.backward_dw()", None),
        ("from acme import Linear\nl = Linear(3)\nl(x, first=True)\nl.state_dict()", None),
        ("from acme import Linear\nl: Linear = Linear(3)\nl(x, second=True)", "3: l takes no argument 'second'"),
        ("from acme import Linear\nl = Linear(3)\nl.flush()", "3: calls l.flush, and acme.Linear has no flush"),
        ("from acme import Linear\nLinear.supports(3)\nLinear.knows(3)", "3: calls Linear.knows, and acme.Linear has no knows"),  # noqa: E501
        ("from acme import NormFunction\nNormFunction.apply(x, 1e-6)", None),
        ("from acme import NormFunction\nNormFunction.apply(x, eps=1)", "2: NormFunction.apply takes no argument 'eps'"),  # noqa: E501
        ("from acme import Recipe\nRecipe(margin=0, amax='most_recent')", None),
        ("from acme import Linear\ndef run(l: Linear, x):\n    return l(x, first=True), l.backward_dw()", None),
        ("from acme import Linear\ndef run(l: Linear, x):\n    return l(x, second=True)", "3: l takes no argument 'second'"),  # noqa: E501
        ("from acme import Recipe\nRecipe()", "2: Recipe lacks the argument 'margin'"),
        ("from other import attend\nattend()", None),
    ],
)  # fmt: skip
def test_unmet_calls_names_what_does_not_fit(code, complaint, tmp_path):
    file = tmp_path / "plugin.py"
    file.write_text(code)
    assert unmet_calls([file], RECORD) == (() if complaint is None else (f"plugin.py:{complaint}",))
