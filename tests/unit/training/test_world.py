from __future__ import annotations

import pytest
from msgspec import structs
from transom import TransformerConfig, load_spec
from transom.distributed.sizes import ParallelSizes
from transom.errors import ParallelError
from transom.specs.train_spec import TrainSpec
from transom.training.objective import NextToken, objective_of
from transom.training.world import check_pipeline, check_sequences, sizes_of_run, split_over


def config(**changes: object) -> TransformerConfig:
    return TransformerConfig(**{"num_layers": 2, "hidden_size": 8, "num_attention_heads": 4, **changes})


def test_run_shares_data_with_what_the_weights_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert sizes_of_run(config()) == ParallelSizes(dp=8)
    assert sizes_of_run(config(tensor_model_parallel_size=2)) == ParallelSizes(tp=2, dp=4)
    assert sizes_of_run(config(tensor_model_parallel_size=2), tp=4) == ParallelSizes(tp=4, dp=2)


def test_run_shares_sequences_as_the_call_or_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert sizes_of_run(config(context_parallel_size=2)) == ParallelSizes(dp=4, cp=2)
    assert sizes_of_run(config(context_parallel_size=2), cp=4, tp=2) == ParallelSizes(tp=2, cp=4)


def test_spec_of_a_rank_says_over_how_many_its_weights_are_split() -> None:
    spec = load_spec("tiny-llama")
    assert split_over(spec, ParallelSizes(dp=4)) is spec
    one = split_over(spec, ParallelSizes(tp=2))
    assert one.config == spec.config.replace(tensor_model_parallel_size=2)
    assert one.source == spec.source
    assert split_over(spec, ParallelSizes(cp=2)).config == spec.config.replace(context_parallel_size=2)


def test_run_shares_layers_as_the_call_or_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert sizes_of_run(config(pipeline_model_parallel_size=2)) == ParallelSizes(pp=2, dp=4)
    assert sizes_of_run(config(pipeline_model_parallel_size=2), pp=4, tp=2) == ParallelSizes(tp=2, pp=4)


def test_world_of_another_size_is_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ParallelError, match="pp=2,dp=1,cp=1 makes 2 ranks, and 3 were started") as caught:
        sizes_of_run(config(), pp=2)
    assert caught.value.is_told_to_all


def test_spec_of_a_rank_says_how_the_layers_are_cut() -> None:
    spec = load_spec("tiny-llama")  # of four layers
    assert split_over(spec, ParallelSizes(pp=2)).config == spec.config.replace(pipeline_model_parallel_size=2)
    cut = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    own = spec.config.replace(**cut, pipeline_model_parallel_layout="Et|tt|t|L")
    named = type(spec)(vocab_size=256, max_sequence_length=8, config=own)
    assert split_over(named, ParallelSizes(pp=2)) is named
    assert split_over(named, ParallelSizes()).config == spec.config


def test_spec_of_a_rank_says_which_stages_an_encoder_has() -> None:
    spec = load_spec("tiny-t5")
    cut = split_over(spec, ParallelSizes(pp=2)).config
    assert (cut.pipeline_model_parallel_size, cut.pipeline_model_parallel_split_rank) == (2, 1)
    assert split_over(structs.replace(spec, config=cut), ParallelSizes()).config == spec.config


def test_layers_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ParallelError, match=r"4 layers .* do not divide over 7 pipeline chunks") as caught:
        split_over(load_spec("tiny-llama"), ParallelSizes(pp=7))
    assert (caught.value.asked_by, caught.value.stages) == ("pp=7", 7)


@pytest.mark.parametrize(
    ("train", "fields", "text"),
    [
        ({"batch_size": 6, "microbatches": 4}, {}, r"6 sequences .* do not divide into 4 microbatches"),
        ({"batch_size": 3}, {}, r"3 sequences .* do not divide into 2 microbatches"),
        ({"schedule": "interleaved"}, {}, "'interleaved' cannot run 1 stage a rank"),
        ({"schedule": "1f1b"}, {"virtual_pipeline_model_parallel_size": 2}, "'1f1b' cannot run 2 stages a rank"),
        ({"microbatches": 1}, {}, "1 parts of a batch do not keep 2 stages busy"),
        (
            {"schedule": "zero_bubble", "objective": "span_corruption"},
            {},
            "the schedule 'zero_bubble' cannot run an encoder-decoder",
        ),
        ({}, {"delay_wgrad_compute": True}, "weight gradients that linears delay would not be added"),
    ],
)
def test_pipeline_that_cannot_run_is_refused(train: dict[str, object], fields: dict[str, object], text: str) -> None:
    made = config(num_layers=4, pipeline_model_parallel_size=2, **fields)
    with pytest.raises(ParallelError, match=text):
        check_pipeline(TrainSpec(**train), made, ParallelSizes(pp=2))


def test_pipeline_that_can_run_is_not_refused() -> None:
    made = config(pipeline_model_parallel_size=2)
    check_pipeline(TrainSpec(), made, ParallelSizes(pp=2))
    check_pipeline(TrainSpec(batch_size=1, microbatches=3), config(), ParallelSizes())


def test_encoder_decoder_of_one_config_is_cut_into_stages_of_both() -> None:
    made = split_over(load_spec("tiny-t5"), ParallelSizes(pp=4)).config
    assert (made.pipeline_model_parallel_size, made.pipeline_model_parallel_split_rank) == (4, 2)


def test_encoder_is_split_over_as_many_ranks_as_the_decoder() -> None:
    spec = load_spec("tiny-t5")
    made = split_over(structs.replace(spec, encoder_config=spec.config), ParallelSizes(tp=2))
    assert made.encoder_config is not None
    assert made.encoder_config.tensor_model_parallel_size == made.config.tensor_model_parallel_size == 2


def test_sequences_that_spans_are_cut_out_of_must_divide_in_what_is_read_and_written() -> None:
    spec, sizes = load_spec("tiny-t5"), ParallelSizes(tp=2)
    split = config(tensor_model_parallel_size=2, sequence_parallel=True)
    check_sequences(objective_of(spec, 256), 256, config(), sizes)
    check_sequences(objective_of(spec, 255), 255, split, sizes)
    check_sequences(NextToken(), 256, split, sizes)
    with pytest.raises(ParallelError) as error:
        check_sequences(objective_of(spec, 256), 256, split, sizes)
    what = "231 tokens that are read and 52 that are written do not divide over 2 tensor-parallel ranks."
    assert (error.value.what, error.value.length, error.value.tp) == (what, 256, 2)
    assert error.value.hint == "train.sequence_length: 255, or sequence_parallel: false"
    with pytest.raises(ParallelError, match="sequences of 7 tokens do not divide"):
        check_sequences(NextToken(), 7, split, sizes)
