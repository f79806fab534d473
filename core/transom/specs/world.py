"""How many ranks share what of a model, as a user says it, and how its layers are cut then."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transom.errors import ConfigError, ParallelError
from transom.transformer.encoder_decoder_layout import encoder_decoder_stages, encoder_stages

if TYPE_CHECKING:
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["World", "how_cut", "parse_world", "pipelined"]

_CUTS: dict[str, Any] = {
    "num_layers_in_first_pipeline_stage": None,
    "num_layers_in_last_pipeline_stage": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
    "pipeline_model_parallel_layout": None,
}
"""Fields of a config that say how layers are cut, where nothing is said."""

_COUNTED = {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True}
_FROM_ZERO = ("zero", "sp")
_ZERO = "0: nothing, 1: the optimizer's state, 2: gradients too, 3: parameters too"


@dataclass(frozen=True)
class World:
    """How many ranks share what.

    Args:
        tp: ranks that share each layer's weights.
        pp: pipeline stages, which share the layers.
        dp: ranks that hold the same and see other data.
        zero: what the data-parallel ranks split among themselves: 0 nothing, 1 the optimizer's state, 2 gradients too,
            3 parameters too, as FSDP2 does.
        vpp: virtual stages of each pipeline stage.
        layout: which layers each of them has, as `transom.transformer.pipeline_layout` reads it; `None` = as the
            config says, or evenly.
        batch: sequences of one forward pass over all data-parallel ranks; 0 = as ``train.batch_size`` says.
        microbatches: parts in which a batch goes through the stages; 0 = as ``train.microbatches`` says, or as
            many as `transom train` takes.
        sp: 1 = sequence parallelism, 0 = none.
        cp: ranks that share each sequence; they split what the data-parallel ranks split.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    zero: int = 3
    vpp: int = 1
    layout: str | None = None
    batch: int = 0
    microbatches: int = 0
    sp: int = 0
    cp: int = 1

    @classmethod
    def of(cls, config: TransformerConfig) -> World:
        """Give the sizes that a config has."""
        virtual = config.virtual_pipeline_model_parallel_size or 1
        tp, pp, sp = config.tensor_model_parallel_size, config.pipeline_model_parallel_size, config.sequence_parallel
        return cls(tp, pp, vpp=virtual, sp=int(sp), cp=config.context_parallel_size)

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.tp * self.pp * self.data

    @property
    def data(self) -> int:
        """Those that hold the same weights, and see other sequences or other parts of them."""
        return self.dp * self.cp


def parse_world(text: str, config: TransformerConfig | None = None) -> World:
    """Read ``tp=8,pp=16,dp=32,zero=1``, and ``vpp=2,layout=Et*3|(tt|)*14,L``; a layout comes last.

    Args:
        text: sizes; what is not given is the config's, or 1, and zero is 3.
        config: of the model; `None` = one without parallelism.

    Raises:
        ParallelError: another word, or a number that cannot be.

    Example:
        >>> parse_world("tp=8,pp=16").ranks
        128
    """
    numbers, has_layout, layout = text.partition("layout=")
    sizes: dict[str, int] = {}
    pieces = numbers.strip().removesuffix(",").split(",")
    for piece in pieces if numbers.strip() or not has_layout else ():
        name, _, number = (word.strip() for word in piece.partition("="))
        if name not in World.__dataclass_fields__:
            raise _error(f"{piece.strip()!r} is no size of a world.", "tp=8,pp=16,dp=32,zero=1")
        if name in sizes:
            raise _error(f"{name} is given twice.", "each size once")
        if not re.fullmatch(r"[0-9]{1,7}", number) or (name not in _FROM_ZERO and int(number) < 1):
            raise _error(f"{name} is {number!r}, not a number of ranks.", "a number from 1 on")
        sizes[name] = int(number)
    if sizes.get("zero", 0) > 3:
        raise _error(f"zero is {sizes['zero']}.", _ZERO)
    if sizes.get("sp", 0) > 1:
        raise _error(f"sp is {sizes['sp']}.", "1: sequence parallelism, 0: none")
    known = World() if config is None else World.of(config)
    return replace(known, **sizes, layout=layout.strip() if has_layout else None)


def pipelined(config: TransformerConfig, world: World, encoder_layers: int = 0) -> TransformerConfig:
    """Give the config under which the stages of a world would be built.

    It is the model's own where that has these stages. Where nothing says how to cut the layers and they do not divide,
    the embedding and the loss count as a layer each. Of an encoder-decoder, encoder and decoder have stages of their
    own.

    Args:
        config: of the model.
        world: how many stages there are.
        encoder_layers: of an encoder-decoder; 0 = the model is none.

    Raises:
        ParallelError: the layers cannot be cut like this.
    """
    own = World.of(config)
    if encoder_layers and world.pp > 1:
        return _of_both(config, world, encoder_layers)
    if world.layout is None and (world.pp, world.vpp) == (own.pp, own.vpp):
        return config
    virtual = world.vpp if world.vpp > 1 else None
    sizes = {"pipeline_model_parallel_size": world.pp, "virtual_pipeline_model_parallel_size": virtual}
    told = {name: getattr(config, name) for name in _CUTS if getattr(config, name)}
    if world.layout is not None or world.pp == 1:
        told = {} if world.layout is None else {"pipeline_model_parallel_layout": world.layout}
    ways = [{**_CUTS, **told}] if told or world.pp == 1 else [dict(_CUTS), {**_CUTS, **_COUNTED}]
    errors = []
    for way in ways:
        try:
            return config.replace(**sizes, **way)
        except ConfigError as error:
            errors.append(error)
    hint = "another pp or vpp, or layout=, for instance pp=3,layout=Et*3|t*4|t*3,L"
    raise _error(errors[0].what, hint) from errors[0]


def _of_both(config: TransformerConfig, world: World, encoder_layers: int) -> TransformerConfig:
    if world.vpp > 1 or world.layout is not None:
        what = "encoder and decoder are each cut evenly, into stages without virtual ones."
        raise _error(what, f"pp={world.pp}, without vpp and layout")
    if config.pipeline_model_parallel_size != world.pp:
        split = encoder_stages(encoder_layers, config.num_layers, world.pp)
        sizes = {"pipeline_model_parallel_size": world.pp, "pipeline_model_parallel_split_rank": split}
        config = config.replace(**sizes, virtual_pipeline_model_parallel_size=None, **_CUTS)
    encoder_decoder_stages(config, encoder_layers)
    return config


def how_cut(config: TransformerConfig, world: World, encoder_layers: int = 0) -> dict[str, Any]:
    """Give the fields of a config that cut the layers like this.

    Args:
        config: as for `pipelined`, like the following.
        world: how many stages there are.
        encoder_layers: of an encoder-decoder.

    Raises:
        ParallelError: as `pipelined`.
    """
    made = pipelined(config, world, encoder_layers)
    names = ("pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size", *_CUTS)
    found = {name: getattr(made, name) for name in names}
    said = {name: value for name, value in found.items() if value is True or value not in (None, False, 1)}
    split = made.pipeline_model_parallel_split_rank
    return said if split is None else said | {"pipeline_model_parallel_split_rank": split}


def _error(what: str, hint: str) -> ParallelError:
    return ParallelError(what, asked_by="--world", hint=hint)
