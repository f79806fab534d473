"""Whatever a file says: it is read, or refused with a `TransomError` that tells where; nothing else comes out.

A few hundred cases by default; ``HYPOTHESIS_PROFILE=offline`` runs a hundred thousand.
"""

from __future__ import annotations

import copy
import json
import tomllib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transom.errors import TransomError
from transom.registry.card import find_card, read_card
from transom.registry.registry import default_registry
from transom.slots import SLOT_ALIASES, SLOTS
from transom.specs.load import load_spec
from transom.specs.lock import Lock, read_lock
from transom.specs.plan import plan
from transom.specs.schema import spec_schema
from transom.specs.spec import ModelSpec
from transom.specs.totals import totals
from transom.specs.train_spec import TrainSpec
from transom.specs.use import Layer, Rules

BASE = {
    "vocab_size": 16,
    "max_sequence_length": 8,
    "share_embeddings_and_output_weights": True,
    "config": {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2},
    "use": {"core_attention": "dot_product", "layers.1.mlp": "transom/mlp", "layers.*.mlp": "auto"},
    "options": {},
    "masks": ["padding"],
    "train": {"steps": 3},
}
NAMES = sorted(
    {
        *ModelSpec.__struct_fields__,
        *TrainSpec.__struct_fields__,
        *spec_schema()["$defs"]["TransformerConfig"]["properties"],
        *SLOTS,
        *SLOT_ALIASES,
        *(implementation.name for implementation in default_registry().implementations()),
    }
)
NASTY = [
    *(
        "",
        " ",
        "\x00",
        "\ud800",
        "é",
        "𝄞",
        "...",
        "$",
        "..",
        "/",
        "a/b",
        "|",
        " | ",
        "a | a",
        "*",
        "**",
        "?",
        "[",
        "\\",
    ),
    *("!!python/object/apply:os.system [ls]", "&a", "*a", "<<", "{{", "]", "}", ": ", "- ", "\t", "---", "%YAML 9"),
    *("1e999", ".inf", "-.nan", "0x", "0o9", "1_000", "9" * 400, "on", "null", "~", "=", "#", '"""', "'", '"'),
    *("__proto__", "__class__", "self", "None", "layers.0.mlp", "layers.**", "**.mlp", "embedding", "model"),
]
words = st.sampled_from(NAMES) | st.sampled_from(NASTY) | st.text(max_size=12)
numbers = (
    st.integers()
    | st.integers(-3, 70)
    | st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30])
    | st.floats()
    | st.floats(0, 1)
)
scalars = st.none() | st.booleans() | numbers | words
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=8
)


def places(data, path=()):
    """Every path of a value within data."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def changed(draw, base):
    """Data like the base, with a few values replaced, removed or added."""
    data = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(places(data), key=str)))
        if not path:
            continue
        holder = data
        for step in path[:-1]:
            holder = holder[step]
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "remove":
            del holder[path[-1]]
        elif what == "add" and isinstance(holder, dict):
            holder[draw(words)] = draw(values)
        else:
            holder[path[-1]] = draw(values)
    return data


@st.composite
def broken(draw, text):
    """A text like the given one, with pieces cut out, doubled or put in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        piece = draw(st.sampled_from(NASTY) | st.text(max_size=8) | st.just(text[start:end] * 2))
        text = text[:start] + piece + text[end:]
    return text


def refusal(act):
    """Run something; return the `TransomError` that it raised, checked for telling where, or `None`."""
    error = None
    try:
        act()
    except TransomError as refused:
        error = refused
    if error is not None:
        assert error.what
        assert str(error).startswith(error.what)
        assert error.asked_by or getattr(error, "path", None) is not None, repr(error)
    return error


def planned(spec):
    made = plan(spec)
    totals(made)
    assert json.loads(json.dumps(made.to_dict()))["nodes"]
    assert str(made)
    assert Lock.from_plan(made).differences(made, "exact") == []


@given(changed(BASE))
def test_specs_as_mappings(data):
    refusal(lambda: planned(load_spec(data)))


@pytest.mark.parametrize(("ending", "write"), [("yaml", yaml.safe_dump), ("json", json.dumps)])
def test_specs_as_files_with_other_values(tmp_path_factory, ending, write):
    folder = tmp_path_factory.mktemp("specs")

    @given(changed(BASE))
    def run(data):
        path = folder / f"a.{ending}"
        try:
            path.write_text(write(data), encoding="utf-8", errors="surrogatepass")
        except (yaml.YAMLError, OverflowError, ValueError, UnicodeError):
            return  # the writer itself refuses
        refusal(lambda: planned(load_spec(path)))

    run()


HOOKED = {**BASE, "bundle": ["fast"], "hooks": ["a", {"hook": "acme/b", "options": {"rank": 8}}]}


@given(changed(HOOKED))
def test_specs_that_name_hooks_and_bundles_with_other_values(data):
    refusal(lambda: planned(load_spec(data)))


TEXTS = {
    "yaml": yaml.safe_dump(BASE),
    "json": json.dumps(BASE, indent=1),
    "toml": 'vocab_size = 16\nmax_sequence_length = 8\n[config]\nnum_layers = 2\nhidden_size = 8\n[use]\nmlp = "mlp"\n',
}


@pytest.mark.parametrize("ending", TEXTS)
def test_specs_as_broken_text(tmp_path_factory, ending):
    folder = tmp_path_factory.mktemp("specs")

    @given(broken(TEXTS[ending]) | st.text())
    def run(text):
        path = folder / f"a.{ending}"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        error = refusal(lambda: planned(load_spec(path)))
        assert error is None or isinstance(error, ValueError)

    run()


patterns = st.lists(
    st.sampled_from(["layers", "0", "1", "*", "**", "?", "m*", "*l*p", "mlp", "linear_fc1", "linear_*", "", "****"]),
    min_size=1,
    max_size=9,
).map(".".join)
references = st.lists(words | st.sampled_from(["mlp", "auto", "torch_linear", "transom/mlp"]), max_size=3)


@given(st.dictionaries(patterns | words, words | references | references.map(" | ".join), max_size=5))
def test_use_maps(use):
    refusal(lambda: planned(load_spec({**BASE, "use": use})))


@given(st.text("ab*?.[]", max_size=40), st.text("ab.", max_size=30))
def test_patterns_match_as_a_walk_over_both_does(pattern, path):
    rules = Rules("use", [Layer({pattern: 1}, "here")], SLOTS)
    found = rules.find(path, "norm") is not None
    assert found == _walk(pattern.split("."), path.split("."))


def _walk(pattern, path):
    """Match component by component, the slow and plain way."""
    if not pattern:
        return not path
    first, *rest = pattern
    if first == "**":
        # As the last component it stands for one or more, elsewhere for any number; none of them is empty.
        least = 0 if rest else 1
        counts = range(least, len(path) + 1)
        return any(all(path[:n]) and _walk(rest, path[n:]) for n in counts if rest or n == len(path))
    return bool(path) and _fits(first, path[0]) and _walk(rest, path[1:])


def _fits(glob, text):
    if not glob:
        return not text
    if glob[0] == "*":
        return (
            any(_fits(glob[1:], text[n:]) for n in range(len(text) + 1)) if glob[1:2] != "*" else _fits(glob[1:], text)
        )
    return bool(text) and glob[0] in ("?", text[0]) and _fits(glob[1:], text[1:])


LOCK = Lock.from_plan(plan(BASE)).to_dict()


@given(changed(LOCK))
def test_locks_as_data(data):
    def run():
        lock = read_lock(data) if isinstance(data, dict) else None
        if lock is not None:
            lock.differences(plan(BASE), "exact")
            plan(BASE, lock=lock)

    refusal(run)


def test_locks_as_broken_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("locks") / "a.json"

    @given(broken(json.dumps(LOCK)) | st.text())
    def run(text):
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        refusal(lambda: plan(BASE, lock=path))

    run()


CARD = find_card("transom").read_text(encoding="utf-8")


def test_cards_as_broken_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("cards") / "transom.toml"
    start = CARD.index("card = 1")
    short = CARD[start : CARD.index("[embedding")]

    @given(broken(short) | st.text())
    def run(text):
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        error = refusal(lambda: read_card(path, distribution="acme"))
        assert error is None or error.distribution == "acme"

    run()


def test_cards_with_other_values(tmp_path_factory):
    path = tmp_path_factory.mktemp("cards") / "transom.toml"

    @given(changed({"norm": tomllib.loads(CARD)["norm"]}))
    def run(data):
        lines = ["card = 1"]
        for slot, tables in data.items():
            for name, table in tables.items() if isinstance(tables, dict) else ():
                lines.append(f"[{json.dumps(slot)}.{json.dumps(name)}]")
                lines += (
                    [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in table.items()] if isinstance(table, dict) else []
                )
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        refusal(lambda: read_card(path, distribution="acme"))

    run()
