from __future__ import annotations

import pytest
import torch
import transom
from transom.errors import InputError
from transom.models.decoder_stage import DecoderStage
from transom.transformer.pipeline_layout import PipelineStage, stage_of


def built(**changes: object) -> torch.nn.Module:
    config = {"num_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "hidden_dropout": 0.0}
    spec = {"vocab_size": 11, "max_sequence_length": 6, "config": config | {"attention_dropout": 0.0}, **changes}
    return transom.build(spec, seed=0)


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
    assert len(list(stages[-1].copies())) == len(shared)
    assert all(len(list(stage.shared())) == len(shared) for stage in (stages[0], stages[-1]))


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
