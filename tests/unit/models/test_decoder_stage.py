from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import transom
from transom.composition import build_stages
from transom.errors import InputError, ParallelError
from transom.models.decoder_assembly import assemble_decoder
from transom.models.decoder_stage import DecoderStage
from transom.transformer.pipeline_layout import PipelineStage, stage_of
from transom.transformer.transformer_layer import TransformerLayer


def described(fields: dict[str, object], **changes: object) -> dict[str, object]:
    config = {"num_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "hidden_dropout": 0.0}
    config |= {"attention_dropout": 0.0, **fields}
    return {"vocab_size": 11, "max_sequence_length": 6, "config": config, **changes}


def built(**changes: object) -> torch.nn.Module:
    return transom.build(described({}, **changes), seed=0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_stages_one_after_another_are_the_decoder(tied: bool, ranks: int) -> None:
    decoder = built(share_embeddings_and_output_weights=tied)
    uneven = {"num_layers_in_first_pipeline_stage": 2} if ranks == 2 else {}
    config = decoder.plan.config.replace(pipeline_model_parallel_size=ranks, **uneven)
    stages = [DecoderStage(decoder, stage_of(config, number)) for number in range(ranks)]
    tokens = torch.tensor([[1, 2, 3, 4], [10, 0, 5, 5]])
    labels = tokens.roll(-1, 1)
    x = tokens
    for stage in stages:
        x = stage(x, labels=labels)
    assert torch.equal(x, decoder(tokens, labels=labels))
    names = [name for stage in stages for name, _ in stage.named_parameters()]
    assert set(names) == {name for name, _ in decoder.named_parameters()}
    shared = ["embedding.word_embeddings.weight"] if tied and ranks > 1 else []
    assert sorted(names) == sorted([*dict(decoder.named_parameters()), *shared])
    table = ["embedding.word_embeddings.weight"] if tied else []
    assert all([name for name, _ in stage.shared()] == table for stage in (stages[0], stages[-1]))
    assert not [name for stage in stages[1:-1] for name in stage.shared()]


@pytest.mark.parametrize("tied", [False, True])
def test_stages_that_are_built_alone_have_the_weights_of_the_whole(tied: bool) -> None:
    fields = {"pipeline_model_parallel_size": 2, "num_layers_in_first_pipeline_stage": 2}
    whole = built(share_embeddings_and_output_weights=tied)
    planned = transom.plan(described(fields, share_embeddings_and_output_weights=tied))
    (first,), (last,) = (build_stages(planned, place=place, seed=0) for place in range(2))
    assert (sorted(first.layers), sorted(last.layers)) == (["0", "1"], ["2"])
    expected = whole.state_dict()
    for stage in (first, last):
        for name, found in stage.state_dict().items():
            assert torch.equal(found, expected[name])
    assert first.state_dict().keys() | last.state_dict().keys() == expected.keys()


def test_rank_has_its_own_layers_and_one_more_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[TransformerLayer] = weakref.WeakSet()
    seen: list[int] = []
    make = TransformerLayer.__init__

    def counted(layer: TransformerLayer, *args: Any, **kwargs: Any) -> None:
        alive.add(layer)
        seen.append(len(alive))
        make(layer, *args, **kwargs)

    monkeypatch.setattr(TransformerLayer, "__init__", counted)
    fields = {"num_layers": 8, "pipeline_model_parallel_size": 4}
    stages = build_stages(transom.plan(described(fields)), place=2, seed=0)
    assert seen == [1, 1, 1, 1, 1, 2, 3, 3]  # its own are the fifth and the sixth
    assert len(stages) == 1


def test_virtual_stages_are_built_in_order() -> None:
    cut = {"pipeline_model_parallel_layout": "Et|t||tL", "virtual_pipeline_model_parallel_size": 2}
    planned = transom.plan(described({"pipeline_model_parallel_size": 2, **cut}))
    layers = [[sorted(stage.layers) for stage in build_stages(planned, place=place, seed=0)] for place in range(2)]
    assert layers == [[["0"], []], [["1"], ["2"]]]


class Whole:
    Submodules = assemble_decoder.Submodules
    supports, parts = staticmethod(assemble_decoder.supports), staticmethod(assemble_decoder.parts)

    def __new__(cls, config, submodules, *, request, tp_group=None):
        return assemble_decoder(config, submodules, request=request, tp_group=tp_group)


def test_model_whose_builder_makes_no_stages_is_not_cut() -> None:
    with transom.override("model", "whole", Whole):
        planned = transom.plan(described({"pipeline_model_parallel_size": 3}, model="whole"))
        with pytest.raises(ParallelError, match="cannot be cut into the stages of a pipeline") as caught:
            build_stages(planned, place=0)
    assert caught.value.model.startswith("whole (")
    assert "pipeline_model_parallel_size=3" in str(caught.value)


def test_stage_describes_its_state_under_the_names_of_the_whole() -> None:
    decoder = built()
    stage = DecoderStage(decoder, PipelineStage(3, 1, False, True))
    assert {entry.key for entry in stage.sharded_state_dict().values()} == {
        name for name in decoder.state_dict() if name.startswith(("layers.2", "final", "output"))
    }


def test_decoder_without_a_loss_is_not_cut() -> None:
    decoder = built()
    decoder.loss = None
    with pytest.raises(InputError, match="a decoder without a loss cannot be cut into stages"):
        DecoderStage(decoder, PipelineStage(1, 3, True, True))
