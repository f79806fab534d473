from __future__ import annotations

import msgspec
import pytest
import torch
import transom
from transom.checkpoint.manifest import MANIFEST, read_manifest
from transom.errors import CheckpointError, UnknownImplementationError
from transom.pretrained.load import from_pretrained
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
