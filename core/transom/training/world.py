"""How the processes of a run share the work, and whether they can."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from transom.distributed.launch import launched
from transom.distributed.schedule import check_schedule, microbatches_of, schedule_of
from transom.distributed.sizes import ParallelSizes
from transom.errors import ParallelError
from transom.specs.world import World, pipelined
from transom.training.objective import FillSpans
from transom.transformer.encoder_decoder_layout import encoder_stages

if TYPE_CHECKING:
    from transom.specs.spec import ModelSpec
    from transom.specs.train_spec import TrainSpec
    from transom.training.objective import Objective
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["check_pipeline", "check_sequences", "sizes_of_run", "split_over"]


def sizes_of_run(
    config: TransformerConfig,
    *,
    tp: int | None = None,
    pp: int | None = None,
    dp: int | None = None,
    cp: int | None = None,
) -> ParallelSizes:
    """Say how the processes that ``torchrun`` started share the work.

    Args:
        config: says tp, pp and cp where they are not given.
        tp: ranks that share each layer's weights.
        pp: ranks that share the layers.
        dp: ranks that see other data; `None` = as many as are left.
        cp: ranks that share each sequence.

    Raises:
        ParallelError: that makes more or fewer ranks than were started.
    """
    tp, cp = tp or config.tensor_model_parallel_size, cp or config.context_parallel_size
    pp = pp or config.pipeline_model_parallel_size
    try:
        return ParallelSizes.of_world(launched(), tp=tp, pp=pp, dp=dp, cp=cp)
    except ParallelError as error:
        error.__dict__["is_told_to_all"] = True  # all were started alike, and find the same
        raise


def split_over(spec: ModelSpec, sizes: ParallelSizes) -> ModelSpec:
    """Give the spec of one rank's model; the run's own stays that of the whole.

    Args:
        spec: of the run.
        sizes: over how many ranks what is split.

    Raises:
        ParallelError: the layers cannot be cut into so many stages.
    """
    config = _in_stages(spec, sizes.pp)
    has = {"tensor_model_parallel_size": sizes.tp, "context_parallel_size": sizes.cp}
    if config == spec.config and all(getattr(config, name) == size for name, size in has.items()):
        return spec
    encoder = None if spec.encoder_config is None else spec.encoder_config.replace(**has)
    made = msgspec.structs.replace(spec, config=config.replace(**has), encoder_config=encoder)
    return made.with_origin(spec.source, {})


def check_pipeline(settings: TrainSpec, config: TransformerConfig, sizes: ParallelSizes) -> None:
    """Refuse a pipeline that cannot run, before anything is built.

    Args:
        settings: of the run.
        config: of a rank's model.
        sizes: of the ranks.

    Raises:
        ParallelError: the schedule does not fit stages and microbatches, or the objective; a batch does not divide into
            them; or linears delay gradients, which the schedules do on their own.
    """
    if sizes.pp == 1:
        return
    virtual = config.virtual_pipeline_model_parallel_size or 1
    parts = microbatches_of(settings.microbatches, settings.batch_size // sizes.dp, sizes.pp)
    check_schedule(schedule_of(settings.schedule, virtual), parts, stages=sizes.pp, virtual=virtual)
    if settings.schedule == "zero_bubble" and settings.objective == "span_corruption":
        # Embeddings and biases of positions enter every stage, and torch takes apart what comes from its inputs alone.
        raise ParallelError(
            "the schedule 'zero_bubble' cannot run an encoder-decoder.",
            asked_by="train.schedule",
            hint="gpipe or 1f1b",
            schedule=settings.schedule,
        )
    if config.delay_wgrad_compute:
        raise ParallelError(
            "weight gradients that linears delay would not be added at the end of a pipeline's passes.",
            asked_by="config.delay_wgrad_compute",
            hint="delay_wgrad_compute: false; train.schedule: zero_bubble computes them late of its own",
        )


def check_sequences(objective: Objective, length: int, config: TransformerConfig, sizes: ParallelSizes) -> None:
    """Refuse sequences that ranks cannot divide among themselves, where they do.

    Args:
        objective: says what becomes of a sequence.
        length: s, tokens of a sequence.
        config: of a rank's model.
        sizes: of the ranks.

    Raises:
        ParallelError: what is computed with does not divide.
    """
    if not isinstance(objective, FillSpans):
        sizes.check_sequence(length, config)
        return
    cut, ranks = objective.corruption, sizes.tp if config.sequence_parallel else 1

    def divide(tokens: int) -> bool:
        return all(count % ranks == 0 for count in replace(cut, length=tokens).lengths)

    if not divide(length):
        shorter = next((f"train.sequence_length: {n}, or " for n in range(length, 1, -1) if divide(n)), "")
        read, written = cut.lengths
        raise ParallelError(
            f"{read} tokens that are read and {written} that are written do not divide over "
            f"{ranks} tensor-parallel ranks.",
            asked_by=f"train.sequence_length={length}, of which spans are cut out",
            hint=f"{shorter}sequence_parallel: false",
            length=length,
            tp=ranks,
        )


def _in_stages(spec: ModelSpec, stages: int) -> TransformerConfig:
    """Give the config that says how the layers are cut: the spec's own, where it has as many stages."""
    config = spec.config
    if config.pipeline_model_parallel_size == stages:
        return config
    if spec.train.objective == "span_corruption" and stages > 1:  # an encoder-decoder's
        split = encoder_stages((spec.encoder_config or config).num_layers, config.num_layers, stages)
        return config.replace(pipeline_model_parallel_size=stages, pipeline_model_parallel_split_rank=split)
    if stages == 1:
        return config.replace(**_UNCUT)
    virtual = config.virtual_pipeline_model_parallel_size or 1
    try:
        return pipelined(config, replace(World.of(config), pp=stages, vpp=virtual))
    except ParallelError as error:
        raise ParallelError(
            error.what,
            asked_by=f"pp={stages}",
            hint="another pp, or a pipeline_model_parallel_layout in the config, for instance Et*3|t*4|t*3,L",
            stages=stages,
        ) from error


_UNCUT: dict[str, Any] = {
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "pipeline_model_parallel_split_rank": None,
    "num_layers_in_first_pipeline_stage": None,
    "num_layers_in_last_pipeline_stage": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
    "pipeline_model_parallel_layout": None,
}
