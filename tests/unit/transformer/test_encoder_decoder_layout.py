"""Which layers the stages of an encoder-decoder have."""

from __future__ import annotations

from typing import Any

import pytest
from transom import TransformerConfig
from transom.errors import ParallelError
from transom.transformer.encoder_decoder_layout import encoder_decoder_stages, encoder_stages


def config(**changes: Any) -> TransformerConfig:
    return TransformerConfig(**{"num_layers": 4, "hidden_size": 8, "num_attention_heads": 2} | changes)


@pytest.mark.parametrize("stages", range(2, 9))
@pytest.mark.parametrize("decoder", [1, 2, 4, 6])
@pytest.mark.parametrize("encoder", [1, 2, 4, 6, 12])
def test_split_leaves_the_fewest_layers_on_the_fullest_stage(encoder: int, decoder: int, stages: int) -> None:
    fullest = {
        split: max(encoder // split, decoder // (stages - split))
        for split in range(1, stages)
        if not encoder % split and not decoder % (stages - split)
    }
    if fullest:
        split = encoder_stages(encoder, decoder, stages)
        assert fullest[split] == min(fullest.values())
        assert all(fullest[other] > fullest[split] for other in fullest if other < split)
    else:
        with pytest.raises(ParallelError, match=f"over {stages} pipeline stages"):
            encoder_stages(encoder, decoder, stages)


def test_split_says_which_numbers_of_stages_would_do() -> None:
    with pytest.raises(ParallelError) as error:
        encoder_stages(3, 4, 6)
    what = "3 layers of an encoder and 4 of a decoder do not divide over 6 pipeline stages."
    assert (error.value.what, error.value.hint) == (what, "so many stages: 2, 3, 4, 5, 7")
    assert (error.value.encoder_layers, error.value.decoder_layers, error.value.stages) == (3, 4, 6)


def test_stages_have_every_layer_once_and_in_order() -> None:
    made = encoder_decoder_stages(
        config(pipeline_model_parallel_size=5, pipeline_model_parallel_split_rank=3), encoder_layers=6
    )
    assert [list(each.layer_numbers) for each in made] == [[1, 2], [3, 4], [5, 6], [1, 2], [3, 4]]
    assert [each.is_decoder for each in made] == [False, False, False, True, True]
    assert [each.begins for each in made] == [True, False, False, True, False]
    assert [each.ends for each in made] == [False, False, True, False, True]


def test_stages_are_split_evenly_where_the_config_says_nothing() -> None:
    made = encoder_decoder_stages(config(pipeline_model_parallel_size=2), encoder_layers=12)
    assert [len(each.layer_numbers) for each in made] == [12, 4]


def test_stages_refuse_an_encoder_that_does_not_divide() -> None:
    cut = config(pipeline_model_parallel_size=4, pipeline_model_parallel_split_rank=3)
    with pytest.raises(ParallelError) as error:
        encoder_decoder_stages(cut, encoder_layers=4)
    assert error.value.what == "4 layers of an encoder do not divide over 3 pipeline stages."
    assert error.value.asked_by == "config.pipeline_model_parallel_split_rank"
    assert (error.value.encoder_layers, error.value.stages) == (4, 3)


@pytest.mark.parametrize(
    "cut",
    [
        {"virtual_pipeline_model_parallel_size": 2},
        {"num_layers_in_first_pipeline_stage": 1},
        {"num_layers_in_last_pipeline_stage": 1},
        {"num_layers": 3, "account_for_embedding_in_pipeline_split": True},
        {"num_layers": 3, "account_for_loss_in_pipeline_split": True},
        {"pipeline_model_parallel_layout": "Ett|ttL"},
    ],
    ids=lambda cut: list(cut)[-1],
)
def test_stages_refuse_cuts_that_say_nothing_of_an_encoder(cut: dict[str, Any]) -> None:
    (field, value) = list(cut.items())[-1]
    with pytest.raises(ParallelError) as error:
        encoder_decoder_stages(config(pipeline_model_parallel_size=2, **cut), encoder_layers=4)
    assert error.value.what == f"{field} is {value!r}; an encoder and a decoder are each cut evenly."
    assert error.value.field == field
