from __future__ import annotations

import msgspec
import pytest
import torch
import transom
from transom.checkpoint.manifest import MANIFEST, read_manifest
from transom.errors import CheckpointError, UnknownImplementationError
from transom.pretrained.convert import convert
from transom.pretrained.load import from_pretrained, load_weights
from transom.pretrained.tokenizer import tokenizer_of
from transom.text.byte_tokenizer import ByteTokenizer
from transom.training.run import train

TOKENS = torch.tensor([[10, 20, 30, 40]])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, spec):
    """Give the result of a run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("all work and no play " * 20)
    return train(spec, out=folder / "run", data=str(folder / "text.txt"))


def test_from_pretrained_gives_the_trained_weights_to_infer(trained, spec):
    model = from_pretrained(trained.folder)
    fresh = transom.build(spec, seed=0)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not torch.equal(model(TOKENS), fresh.eval()(TOKENS))
    assert torch.equal(from_pretrained(trained.checkpoint)(TOKENS), model(TOKENS))
    assert model.plan.context.mode == "infer"


def test_from_pretrained_to_train_can_be_trained(trained):
    model = from_pretrained(trained.folder, mode="train")
    model(TOKENS, labels=TOKENS).mean().backward()
    assert model.training
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("use", [{"core_attention": "torch_dot_product"}, {"linear": "parallel_linear"}], ids=str)
def test_from_pretrained_with_others_gives_the_same_logits(trained, use):
    reference = from_pretrained(trained.folder, use={"core_attention": "dot_product", "linear": "torch_linear"})
    other = from_pretrained(trained.folder, use=use)
    ((slot, name),) = use.items()
    chosen = {node.resolution.chosen.name for node in other.plan.nodes() if slot.removeprefix("core_") in node.slot}
    assert name in chosen
    assert torch.allclose(other(TOKENS), reference(TOKENS), atol=1e-5)


def test_from_pretrained_in_another_dtype(trained):
    model = from_pretrained(trained.folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.allclose(model(TOKENS), from_pretrained(trained.folder)(TOKENS), atol=0.5)


def test_from_pretrained_leaves_the_global_generator_alone(trained):
    state = torch.get_rng_state()
    from_pretrained(trained.folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_from_pretrained_says_so_when_there_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        from_pretrained(tmp_path)


def test_from_pretrained_names_who_is_missing(trained):
    with pytest.raises(UnknownImplementationError, match="no core_attention is named 'nobody'"):
        from_pretrained(trained.folder, use={"core_attention": "nobody"})


def test_tokenizer_of_is_the_one_it_was_trained_with(trained):
    assert isinstance(tokenizer_of(trained.folder), ByteTokenizer)


def test_tokenizer_of_refuses_when_its_file_is_missing(trained, tmp_path):
    manifest = read_manifest(trained.checkpoint)
    changed = msgspec.structs.replace(manifest, tokenizer="tokenizer.json")
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(changed))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        tokenizer_of(tmp_path)


def test_load_weights_starts_a_model_with_those_of_a_run(trained, spec):
    model = transom.build(spec, seed=7)
    assert load_weights(model, trained.folder).config == model.plan.config
    wanted = from_pretrained(trained.folder).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_load_weights_reads_folders_of_hugging_face_s_form(trained, spec, tmp_path):
    convert(trained.folder, tmp_path / "theirs", to="hf")
    model = transom.build(spec, seed=7, dtype="bfloat16")
    load_weights(model, tmp_path / "theirs")
    wanted = from_pretrained(trained.folder, dtype="bfloat16").state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("hook", ["lora", {"hook": "int8_linear", "options": {"training": True}}], ids=str)
def test_load_weights_takes_what_hooks_do_to_weights_along(trained, spec, hook):
    model = transom.build(spec | {"hooks": [hook]}, seed=7)
    load_weights(model, trained.folder)
    exact = from_pretrained(trained.folder)(TOKENS)
    found = model.eval()(TOKENS)
    assert (found - exact).norm() / exact.norm() < (0.05 if isinstance(hook, dict) else 1e-6)


def test_load_weights_lists_what_does_not_fit(trained, spec):
    model = transom.build(spec | {"config": spec["config"] | {"num_layers": 3, "ffn_hidden_size": 32}})
    with pytest.raises(CheckpointError, match="the weights are not this model's") as caught:
        load_weights(model, trained.folder)
    assert "layers.2.mlp.linear_fc1.weight is missing" in caught.value.problems
    what = "layers.0.mlp.linear_fc1.weight has shape [128, 16]; the model's is [64, 16]"
    assert what in caught.value.problems
    assert f"transom plan {trained.folder}" in str(caught.value)
