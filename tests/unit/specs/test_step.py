"""What a step computes on a rank."""

from __future__ import annotations

import pytest
import torch
import transom
from transom.distributed.schedule import microbatches_of
from transom.errors import ParallelError
from transom.specs.step import Step
from transom.specs.world import World
from transom.training.objective import objective_of
from transom.training.sampler import Batch


def make(recipe="tiny-llama", config=None, **train):
    spec = transom.load_spec(recipe).to_dict()
    return transom.plan(spec | {"config": spec["config"] | (config or {}), "train": spec["train"] | train})


@pytest.mark.parametrize(
    ("world", "sequences", "passes"),
    [
        (World(), 8, 1),
        (World(dp=4), 2, 1),
        (World(dp=2, pp=2), 1, 4),
        (World(dp=128, pp=16), 1, 16),
        (World(dp=2, microbatches=4), 1, 4),
        (World(dp=3), 1, 1),
        (World(dp=3, batch=24), 8, 1),
    ],
)
def test_batch_is_divided_over_ranks_and_parts(world, sequences, passes):
    step = Step.of(make(), world)
    assert (step.sequences, step.passes, step.batches) == (sequences, passes, 1)


def test_accumulated_batches_are_passes():
    step = Step.of(make(accumulate=3), World(pp=2))
    assert (step.passes, step.batches, step.parts) == (24, 3, 8)


@pytest.mark.parametrize("asked", [None, 2, 4])
@pytest.mark.parametrize("batch", [16, 12, 4])
def test_parts_are_those_that_a_run_takes(asked, batch):
    step = Step.of(make(batch_size=batch, microbatches=asked), World(pp=2))
    assert step.parts == microbatches_of(asked, batch, 2)


def test_batch_that_was_asked_for_and_does_not_divide_is_refused():
    with pytest.raises(ParallelError) as caught:
        Step.of(make(), World(dp=3, microbatches=2, batch=8))
    assert caught.value.what == "a batch of 8 sequences does not divide over 3 data-parallel ranks and 2 parts."
    assert (caught.value.asked_by, caught.value.hint) == ("--world", "a batch that is a multiple of 6")


def test_sequences_that_ranks_cannot_share_are_refused():
    assert Step.of(transom.plan("tiny-llama"), World(cp=2)).written == 128
    with pytest.raises(ParallelError, match="256 tokens do not divide over 3 context-parallel ranks") as told:
        Step.of(transom.plan("tiny-llama"), World(cp=3))
    assert told.value.hint == "a train.sequence_length that is a multiple of 6"


@pytest.mark.parametrize("length", [16, 61, 256])
def test_lengths_are_those_that_spans_are_cut_to(length):
    made = make("tiny-t5", sequence_length=length)
    seen = []

    class Model(torch.nn.Module):
        def forward(self, read, written, *masks, lm_labels=None, **others):
            seen.append((read.shape[1], written.shape[1]))
            return written.float()

    batch: Batch = (torch.zeros(2, length, dtype=torch.long), torch.zeros(2, length, dtype=torch.long))
    objective_of(made.spec, length).losses(Model(), batch, 0, torch.device("cpu"))
    step = Step.of(made, World())
    assert [(step.read, step.written)] == seen
    assert step.tokens("encoder.layers.0") == step.tokens("decoder.layers.1.cross_attention.linear_kv") == 8 * step.read
    assert step.tokens("decoder.layers.1.cross_attention.linear_q") == step.tokens("loss") == 8 * step.written


@pytest.mark.parametrize(
    ("dtype", "precision", "world", "widths"),
    [
        ("float32", "float32", World(), (4, 4, 4, 4, 4)),
        ("bfloat16", "float32", World(dp=2), (2, 2, 2, 2, 2)),
        ("float32", "bfloat16", World(tp=2), (4, 4, 2, 2, 4)),
        ("float32", "bfloat16", World(dp=2), (4, 2, 2, 2, 4)),
    ],
)
def test_widths_follow_from_dtype_and_precision(dtype, precision, world, widths):
    step = Step.of(make(config={"params_dtype": dtype}, precision=precision), world)
    found = (step.width, step.exchanged_width, step.product_width, step.gathered_width, step.summed_width)
    assert found == widths


@pytest.mark.parametrize(
    ("world", "config", "size"),
    [
        (World(), {}, 8 * 256 * 192 * 4),
        (World(tp=2, sp=1), {}, 4 * 256 * 192 * 4),
        (World(cp=2), {}, 4 * 256 * 192 * 4),
        (World(), {"params_dtype": "bfloat16"}, 8 * 256 * 192 * 2),
        (World(), {"params_dtype": "bfloat16", "fp32_residual_connection": True}, 8 * 256 * 192 * 4),
    ],
)
def test_hidden_states_are_counted_in_bytes(world, config, size):
    made = make(config=config)
    assert Step.of(made, world).hidden_bytes(made.config, world) == size
