"""A plan as text: the tree, refusals, what is alike, totals."""

from __future__ import annotations

import pytest
from transom.specs.plan import plan
from transom.specs.render import in_bytes, in_units, render_plan
from transom.specs.totals import Cost


def test_plan_is_drawn_as_a_tree(fakes, make_spec):
    made = plan(make_spec(use={"layers.1.mlp": "even_mlp"}), registry=fakes)
    who = "(acme-fakes 1.0)"
    assert str(made).splitlines()[:20] == [
        f"fake: fake_model {who}, float32 on cpu, to train",
        f"├─ embedding.word_embeddings  embedding: fake_embedding {who}",
        f"├─ layers.0                   layer: fake_layer {who}",
        f"│  ├─ input_layernorm         norm: fake_norm {who}",
        f"│  └─ mlp                     mlp: fake_mlp {who}",
        f"│     ├─ up                   column_linear: fake_linear {who}",
        f"│     └─ down                 row_linear: fake_linear {who}",
        f"├─ layers.1                   layer: fake_layer {who}",
        f"│  ├─ input_layernorm         norm: fake_norm {who}",
        f"│  └─ mlp                     mlp: even_mlp {who}",
        f"│     ├─ up                   column_linear: fake_linear {who}",
        f"│     └─ down                 row_linear: fake_linear {who}",
        f"└─ layers.2                   layer: fake_layer {who}",
        f"   ├─ input_layernorm         norm: fake_norm {who}",
        f"   └─ mlp                     mlp: fake_mlp {who}",
        f"      ├─ up                   column_linear: fake_linear {who}",
        f"      └─ down                 row_linear: fake_linear {who}",
        "",
        # Parameters of the parts: 16·8 + 3 · (2·8 + 8·12 + 12 + 12·8 + 8); of the architectures nothing is known.
        "Total: at least 812 parameters, 1.152 k FLOPs a token forward at 8 tokens, 0 B of key/value cache a token",
        "Memory: 12.69 KiB (3.172 KiB parameters, 3.172 KiB gradients, 6.344 KiB AdamW), without activations",
    ]


def test_layers_that_are_alike_are_drawn_once(fakes, make_spec):
    lines = str(plan(make_spec(), registry=fakes)).splitlines()
    assert lines[2].startswith("└─ layers.0 to 2 (3 alike) ")
    assert len(lines) == 10


def test_refusals_are_drawn_below_the_chosen(fakes, make_spec):
    lines = str(plan(make_spec(use={"layers.0.mlp": "nobody | even_mlp | fake_mlp"}), registry=fakes)).splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("│  └─ mlp "))
    chain = "nobody | even_mlp | fake_mlp, by use.layers.0.mlp in the mapping"
    assert lines[place + 1].split(maxsplit=4)[2:] == ["asked", "for", chain]
    assert lines[place + 2].startswith("│     │  not nobody ")
    assert "missing: no mlp is named 'nobody'." in lines[place + 2]
    assert lines[place + 3].split() == ["│", "│", "not", "acme-fakes/even_mlp", "supports:", "layer", "1", "is", "odd"]


def test_what_was_asked_for_is_drawn_where_it_is_not_the_name_that_was_chosen(fakes, make_spec):
    use = {"layers.0.mlp": "acme-fakes/fake_mlp", "layers.1.mlp": ["fake_mlp", "even_mlp"]}
    asked = [line for line in str(plan(make_spec(use=use), registry=fakes)).splitlines() if "asked for" in line]
    assert [line.split("asked for")[1].strip() for line in asked] == [
        "fake_mlp | even_mlp, by use.layers.1.mlp in the mapping"
    ]


def test_options_are_drawn_below_what_takes_them(fakes, make_spec):
    text = str(plan(make_spec(options={"layers.1.mlp": {"times": 3}}), registry=fakes))
    (line,) = [line for line in text.splitlines() if "options" in line]
    assert line.split()[-2:] == ["times:", "3"]


def test_what_the_model_itself_was_asked_for_stands_at_the_head(fakes, make_spec):
    lines = str(plan(make_spec(model="nobody | fake_model"), registry=fakes)).splitlines()
    assert lines[1:3] == [
        "asked for: nobody | fake_model, by model in the mapping",
        "not nobody: missing: no model is named 'nobody'. (All: transom list model)",
    ]


def test_layers_that_cost_differently_are_drawn_apart(fakes, make_spec):
    made = plan(make_spec(), registry=fakes)
    text = render_plan(made, measured={"layers.1": Cost(7)})
    assert [line.split()[1] for line in text.splitlines() if " layer: " in line] == ["layers.0", "layers.1", "layers.2"]


def test_columns_show_what_each_place_costs(fakes, make_spec):
    made = plan(make_spec(), registry=fakes, mode="infer")
    lines = render_plan(made, with_columns=True, measured={"": Cost(5_000, 60_000, 2048)}).splitlines()
    assert lines[1].split() == ["parameters", "FLOPs/token", "cache/token"]
    (up,) = [line for line in lines if "─ up" in line]
    assert up.endswith(" (acme-fakes 1.0)         108          192")  # 8·12 + 12, and 2·8·12
    (mlp,) = [line for line in lines if "─ mlp" in line]
    assert mlp.split()[-4:] == ["≥", "212", "≥", "384"]
    assert lines[-2:] == [
        "Total: 5.000 k parameters, 60.00 k FLOPs a token forward at 8 tokens, 2.000 KiB of key/value cache a token",
        "Memory: 19.53 KiB (19.53 KiB parameters), without activations",
    ]


@pytest.mark.parametrize(
    ("number", "units", "size"),
    [
        (0, "0", "0 B"),
        (999, "999", "999 B"),
        (1000, "1.000 k", "1000 B"),
        (1024, "1.024 k", "1.000 KiB"),
        (123_456, "123.5 k", "120.6 KiB"),
        (10**12, "1.000 T", "931.3 GiB"),
        (10**19, "10000 P", "8882 PiB"),
    ],
)
def test_numbers_are_written_in_short(number, units, size):
    assert (in_units(number), in_bytes(number)) == (units, size)
