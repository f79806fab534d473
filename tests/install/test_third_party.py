"""A stranger's package, exactly as README.md shows it: installed, listed, planned, trained, and removed again."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.install

SPEC = """
vocab_size: 256
max_sequence_length: 32
config:
  num_layers: 2
  hidden_size: 32
  num_attention_heads: 4
  num_query_groups: 2
  hidden_dropout: 0.0
  attention_dropout: 0.0
  params_dtype: {dtype}
use:
  core_attention: {use}
train: {{steps: 5, batch_size: 2, log_every: 1, warmup_steps: 1, eval_batches: 1}}
"""


def _spec(environment, use: str, name: str = "acme.yaml", dtype: str = "float32") -> str:
    (environment.work / name).write_text(SPEC.format(use=use, dtype=dtype), encoding="utf-8")
    return name


def _losses(environment, out: str) -> list[float]:
    lines = (environment.work / out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@pytest.fixture
def installed(environment, written):
    environment.install(written("README.md") / "acme-attn")
    return environment


def test_installed_package_is_listed(installed):
    done = installed.transom("list", "core_attention", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    (found,) = [one for one in data["implementations"] if one["distribution"] == "acme-attn"]
    assert (found["ref"], found["version"]) == ("acme-attn/acme_attn", "0.1.0")
    assert found["card"]["features"] == ["bottom_right", "causal", "gqa", "positions"]
    assert found["notes"] == []
    assert data["problems"] == []


def test_installed_package_is_planned_only_where_it_is_named(installed):
    named = json.loads(installed.transom("plan", _spec(installed, "acme_attn"), "--json").stdout)
    unnamed = json.loads(installed.transom("plan", _spec(installed, "dot_product"), "--json").stdout)
    assert {node["chosen"] for node in named["nodes"] if node["slot"] == "core_attention"} == {"acme-attn/acme_attn"}
    assert {node["distribution"] for node in unnamed["nodes"]} == {"transom"}


def test_installed_package_trains_as_the_reference_does(installed):
    spec = _spec(installed, "acme_attn")
    done = installed.transom("train", spec, "--out", "acme")
    assert done.returncode == 0, done.stderr
    assert 'try it:          transom generate acme --prompt "The "' in done.stdout
    written = installed.transom("generate", "acme", "--prompt", "The ", "--max-new-tokens", "3")
    assert (written.returncode, written.stdout[:4]) == (0, "The "), written.stderr
    done = installed.transom("train", spec, "--out", "core", "--use", "core_attention=dot_product")
    assert done.returncode == 0, done.stderr
    assert len(_losses(installed, "acme")) == 5
    assert _losses(installed, "acme") == pytest.approx(_losses(installed, "core"), rel=1e-4)


def test_what_the_card_does_not_declare_is_refused_with_what_could_serve(installed):
    done = installed.transom("plan", _spec(installed, "acme_attn", dtype="bfloat16"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ResolutionError: core_attention 'acme_attn' cannot serve.\n")
    assert "\n  Asked by:   use.core_attention in acme.yaml" in done.stderr
    assert "\n  Failed:     acme-attn/acme_attn: it computes in float32, not in bfloat16 (features)" in done.stderr
    assert "\n  Available:  dot_product (transom 0.1.0)" in done.stderr


def test_same_spec_fails_when_the_package_is_removed_again(installed):
    spec = _spec(installed, "acme_attn")
    assert installed.transom("plan", spec).returncode == 0
    installed.uninstall("acme-attn")
    done = installed.transom("train", spec, "--out", "never")
    assert (done.returncode, done.stdout) == (2, "")
    first, *rows = done.stderr.splitlines()
    assert first == "UnknownImplementationError: no core_attention is named 'acme_attn'."
    assert rows[0] == "  Asked by:   use.core_attention in acme.yaml, line 13"
    assert rows[1].startswith("  Available:  dot_product (transom 0.1.0)")
    assert rows[-1].startswith("  Try:        ")
    assert rows[-1].endswith("All: transom list core_attention")
    assert not (installed.work / "never").exists()


def test_chain_falls_through_with_one_log_line_when_the_package_is_removed_again(installed):
    spec = _spec(installed, "acme_attn | dot_product")
    chosen = [json.loads(installed.transom("plan", spec, "--json").stdout)]
    installed.uninstall("acme-attn")
    done = installed.transom("plan", spec, "--json")
    chosen.append(json.loads(done.stdout))
    attention = [{n["chosen"] for n in plan["nodes"] if n["slot"] == "core_attention"} for plan in chosen]
    assert attention == [{"acme-attn/acme_attn"}, {"transom/dot_product"}]
    (line,) = done.stderr.splitlines()
    assert line.startswith("core_attention acme_attn is passed over (missing): no core_attention is named 'acme_attn'.")


def test_plugin_of_the_how_to_page_is_planned_with_its_option_and_trains(environment, written):
    folder = written("docs/how-to/write-a-plugin.md")
    environment.install(folder / "acme-topk")
    spec = str(folder / "sparse.yaml")
    planned = environment.transom("plan", spec, "--json")
    assert (planned.returncode, planned.stderr) == (0, "")
    nodes = {node["path"]: node for node in json.loads(planned.stdout)["nodes"]}
    assert (nodes["layers.0.mlp"]["chosen"], nodes["layers.1.mlp"]["chosen"]) == ("transom/mlp", "acme-topk/acme_topk")
    assert nodes["layers.1.mlp"]["options"] == {"keep": 0.1}
    assert nodes["layers.1.mlp.linear_fc2"]["chosen"] == "transom/torch_linear"
    trained = environment.transom("train", spec, "--out", "sparse")
    assert trained.returncode == 0, trained.stderr
    assert _losses(environment, "sparse")[-1] > 0


def test_hooks_of_the_how_to_page_run_only_where_they_are_named_and_train(environment, written):
    folder = written("docs/how-to/enable-a-hook.md")
    environment.install(folder / "acme-tune")
    spec = folder / "tuned.yaml"
    trained = environment.transom("train", str(spec), "--out", "tuned")
    assert (trained.returncode, len(_losses(environment, "tuned"))) == (0, 5), trained.stderr
    code = """
import json, transom
hooked, plain = (transom.build({**SPEC, "hooks": hooks}) for hooks in (["freeze", "acme-tune/scale"], []))
learns = {name for name, parameter in hooked.named_parameters() if parameter.requires_grad}
replaced = {node.path for node in hooked.plan.nodes() if node.replacements}
print(json.dumps([sorted(learns), sorted(replaced), all(p.requires_grad for p in plain.parameters())]))
"""
    config = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "add_bias_linear": False}
    small = {"vocab_size": 16, "max_sequence_length": 8, "config": config}
    done = environment.run("-c", f"SPEC = {small!r}\n{code}")
    assert done.returncode == 0, done.stderr
    learns, replaced, is_plain = json.loads(done.stdout)
    linears = ["layers.0.mlp.linear_fc1", "layers.0.mlp.linear_fc2"]
    assert replaced == linears
    assert [name for name in learns if "linear" in name and "layernorm" not in name] == [f"{n}.scale" for n in linears]
    assert is_plain


@pytest.mark.parametrize(
    ("page", "folder", "name", "skipped"),
    [("README.md", "acme-attn", "acme_attn", 3), ("docs/how-to/write-a-plugin.md", "acme-topk", "acme_topk", 0)],
    ids=["acme_attn", "acme_topk"],
)
def test_plugin_of_a_page_conforms(environment, written, page, folder, name, skipped):
    environment.install(written(page) / folder)
    done = environment.transom("check", name, "--conformance")
    assert done.returncode == 0, done.stdout
    assert f", 0 failed, {skipped} skipped." in done.stdout  # an attention may leave the reading of pages to others
