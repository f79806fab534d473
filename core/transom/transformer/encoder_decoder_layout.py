"""Which layers each stage of a pipeline has of an encoder-decoder: first the encoder's stages, then the decoder's.

Of p stages (`pipeline_model_parallel_size`) the first `pipeline_model_parallel_split_rank` share the encoder's layers
evenly, and the others the decoder's. Where the config does not say it, the split is the one that leaves the fewest
layers on the fullest stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transom.errors import ParallelError

if TYPE_CHECKING:
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["EncoderDecoderStage", "encoder_decoder_stages", "encoder_stages"]


@dataclass(frozen=True)
class EncoderDecoderStage:
    """What a stage has of an encoder-decoder: layers of one of the two.

    Args:
        is_decoder: of which.
        first_layer_number: of its layers, counted from 1 over the encoder or the decoder.
        num_layers: how many it has.
        begins: it has the first layer of the encoder or decoder, and the embedding that stands before it.
        ends: it has the last layer, and what stands after it.
    """

    is_decoder: bool
    first_layer_number: int
    num_layers: int
    begins: bool
    ends: bool

    @property
    def layer_numbers(self) -> range:
        """Its layers, counted from 1 over the encoder or the decoder."""
        return range(self.first_layer_number, self.first_layer_number + self.num_layers)


def encoder_stages(encoder_layers: int, decoder_layers: int, stages: int) -> int:
    """Say how many stages the encoder gets of a pipeline: the fullest stage has the fewest layers then.

    Args:
        encoder_layers: how many there are.
        decoder_layers: how many there are.
        stages: of the pipeline, two or more.

    Returns:
        a number of stages over which the encoder's layers divide, and the decoder's over the others; the smaller where
        two are as good, since a decoder's layer does more.

    Raises:
        ParallelError: the layers divide over no two numbers of stages that make so many.

    Example:
        >>> encoder_stages(6, 2, 4), encoder_stages(2, 2, 2)
        (3, 1)
    """
    able = [k for k in range(1, stages) if encoder_layers % k == 0 and decoder_layers % (stages - k) == 0]
    if not able:
        sizes = {k + n for k in _divisors(encoder_layers) for n in _divisors(decoder_layers)}
        raise ParallelError(
            f"{encoder_layers} layers of an encoder and {decoder_layers} of a decoder do not divide "
            f"over {stages} pipeline stages.",
            hint=f"so many stages: {', '.join(map(str, sorted(sizes)))}",
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            stages=stages,
        )
    return min(able, key=lambda k: max(encoder_layers // k, decoder_layers // (stages - k)))


def encoder_decoder_stages(config: TransformerConfig, encoder_layers: int) -> tuple[EncoderDecoderStage, ...]:
    """Say what each stage of an encoder-decoder has.

    Args:
        config: the decoder's, which says into how many stages the whole is cut, and where.
        encoder_layers: how many the encoder has.

    Returns:
        the stages, in order.

    Raises:
        ParallelError: the encoder's layers do not divide over its stages; or the config cuts layers in a way that says
            nothing of an encoder.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=4, hidden_size=4, num_attention_heads=1,
        ...     pipeline_model_parallel_size=3, pipeline_model_parallel_split_rank=1)
        >>> [list(stage.layer_numbers) for stage in encoder_decoder_stages(config, 6)]
        [[1, 2, 3, 4, 5, 6], [1, 2], [3, 4]]
    """
    _refuse_other_cuts(config)
    stages, split = config.pipeline_model_parallel_size, config.pipeline_model_parallel_split_rank
    split = encoder_stages(encoder_layers, config.num_layers, stages) if split is None else split
    if encoder_layers % split:
        raise ParallelError(
            f"{encoder_layers} layers of an encoder do not divide over {split} pipeline stages.",
            asked_by="config.pipeline_model_parallel_split_rank",
            hint="a number of stages that divides the encoder's layers",
            encoder_layers=encoder_layers,
            stages=split,
        )
    return (*_even(encoder_layers, split, is_decoder=False), *_even(config.num_layers, stages - split, is_decoder=True))


def _even(layers: int, stages: int, *, is_decoder: bool) -> tuple[EncoderDecoderStage, ...]:
    each = layers // stages
    return tuple(
        EncoderDecoderStage(is_decoder, place * each + 1, each, begins=place == 0, ends=place == stages - 1)
        for place in range(stages)
    )


def _refuse_other_cuts(config: TransformerConfig) -> None:
    for field, none in _OTHER_CUTS.items():
        if getattr(config, field) != none:
            raise ParallelError(
                f"{field} is {getattr(config, field)!r}; an encoder and a decoder are each cut evenly.",
                asked_by=f"config.{field}",
                hint="pipeline_model_parallel_split_rank says how many stages the encoder gets",
                field=field,
            )


_OTHER_CUTS: dict[str, object] = {
    "virtual_pipeline_model_parallel_size": None,
    "num_layers_in_first_pipeline_stage": None,
    "num_layers_in_last_pipeline_stage": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
    "pipeline_model_parallel_layout": None,
}
"""Fields that cut one stack of layers, where they say nothing."""


def _divisors(number: int) -> list[int]:
    return [k for k in range(1, number + 1) if number % k == 0]
