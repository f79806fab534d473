"""Which layers each stage of a pipeline has.

A model of p stages (`pipeline_model_parallel_size`) with v virtual stages each is cut into p·v chunks in order; chunk
``i`` belongs to stage ``i % p``, as its virtual stage ``i // p``. Layers are cut

- evenly, where the embedding and the loss may each count as a layer;
- with numbers of their own for the first and the last stage, and evenly between them;
- or as a layout says, one character a part of the model: ``E`` the embedding, ``t`` a transformer layer, ``m`` a
  multi-token-prediction layer, ``L`` the loss, ``|`` the end of a chunk. ``x*3`` is ``xxx``, of a character or of what
  is in parentheses; commas and spaces are for the eye. ``Et*3|(tt|)*29,m|L`` is 61 layers in 32 chunks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from transom.errors import ConfigError, ParallelError

if TYPE_CHECKING:
    from transom.transformer.transformer_config import TransformerConfig

__all__ = [
    "PipelineLayout",
    "PipelineStage",
    "first_layer_of_stage",
    "layers_of_chunks",
    "num_layers_of_stage",
    "stage_of",
]

_FIELD = "pipeline_model_parallel_layout"
_TOKEN = re.compile(r"\*[0-9]+|.", re.DOTALL)
_PARTS = "EtmL|"
_LONGEST = 100_000

Placed: TypeAlias = list[tuple[str, int]]
"""Characters of a layout without repetitions, each with where it stands in the text."""


@dataclass(frozen=True)
class PipelineLayout:
    """A layout that was read.

    Args:
        text: as it was given.
        chunks: the parts of each chunk, in order, for instance ``("Ettt", "tt", "L")``.

    Example:
        >>> PipelineLayout.parse("Et|(tt|)*2,L").chunks
        ('Et', 'tt', 'tt', 'L')
    """

    text: str
    chunks: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> PipelineLayout:
        """Read a layout.

        Args:
            text: the layout.

        Returns:
            the layout, in which ``E`` is first, ``L`` is last, each is there once, and no ``t`` follows an ``m``.

        Raises:
            ConfigError: it cannot be read or is of no model; `position` counts characters from 1.
        """
        placed = _without_repetitions(text)
        _check_order(text, placed)
        return cls(text, tuple("".join(part for part, _ in placed).split("|")))

    def check(self, num_layers: int, stages: int, virtual_stages: int = 1) -> None:
        """Check that this is a layout of a model.

        Args:
            num_layers: of the model.
            stages: of the pipeline.
            virtual_stages: of each stage.

        Raises:
            ConfigError: another number of layers or of chunks.
        """
        layers, needed = sum(self.layers), stages * virtual_stages
        if layers != num_layers:
            _refuse(self.text, None, f"it has {layers} layers (t), and num_layers is {num_layers}")
        if len(self.chunks) != needed:
            each = "" if virtual_stages == 1 else f" of {virtual_stages} virtual stages each"
            what = f"{len(self.chunks)} chunks, and {stages} pipeline stages{each} need {needed}"
            _refuse(self.text, None, f"it has {what}")

    @property
    def layers(self) -> tuple[int, ...]:
        """How many transformer layers each chunk has."""
        return tuple(chunk.count("t") for chunk in self.chunks)


def _without_repetitions(text: str) -> Placed:
    """Write every repetition out. An item of a group is a part or a group of its own."""
    groups: list[list[Placed]] = [[]]
    opened: list[int] = []
    for match in _TOKEN.finditer(text):
        token, position = match.group(), match.start() + 1
        if token in _PARTS:
            groups[-1].append([(token, position)])
        elif token == "(":
            groups.append([])
            opened.append(position)
        elif token == ")":
            _close(text, groups, opened, position)
        elif token.startswith("*"):
            _repeat(text, groups[-1], token, position)
        elif token not in ", ":
            _refuse(text, position, f"{token!r} means nothing; E, t, m, L, |, parentheses and *n do")
    if opened:
        _refuse(text, opened[-1], "this parenthesis is not closed")
    return _joined(groups[0])


def _close(text: str, groups: list[list[Placed]], opened: list[int], position: int) -> None:
    if not opened:
        _refuse(text, position, "no parenthesis is open here")
    opened.pop()
    items = groups.pop()
    if not items:
        _refuse(text, position, "there is nothing between these parentheses")
    groups[-1].append(_joined(items))


def _repeat(text: str, items: list[Placed], token: str, position: int) -> None:
    if not items:
        _refuse(text, position, "there is nothing before * to repeat")
    if token == "*":
        _refuse(text, position, "a number is needed after *")
    times = token[1:].lstrip("0")
    if not times:
        _refuse(text, position, "a number of at least 1 is needed after *")
    if len(times) > len(str(_LONGEST)) or len(items[-1]) * int(times) > _LONGEST:
        _refuse(text, position, f"more than {_LONGEST} parts would come of this repetition")
    items[-1] = items[-1] * int(times)


def _joined(items: list[Placed]) -> Placed:
    return [part for item in items for part in item]


def _check_order(text: str, placed: Placed) -> None:
    for part, name, place in (("E", "embedding", 0), ("L", "loss", len(placed) - 1)):
        found = [i for i, (character, _) in enumerate(placed) if character == part]
        if not found:
            _refuse(text, None, f"it has no {name} ({part})")
        if len(found) > 1:
            _refuse(text, placed[found[1]][1], f"there can be one {name} ({part})")
        if found[0] != place:
            _refuse(text, placed[found[0]][1], f"the {name} ({part}) must come {'last' if place else 'first'}")
    seen_m = False
    for part, position in placed:
        seen_m = seen_m or part == "m"
        if part == "t" and seen_m:
            _refuse(text, position, "a layer (t) cannot follow a multi-token-prediction layer (m)")


def _refuse(text: str, position: int | None, wrong: str) -> NoReturn:
    where = "" if position is None else f"at character {position}: "
    raise ConfigError(
        f"{_FIELD} is {text!r}; {where}{wrong}.",
        hint="for instance Et*3|(tt|)*2,t*3,L",
        field=_FIELD,
        value=text,
        path=f"config.{_FIELD}",
        file=None,
        line=None,
        position=position,
    )


def layers_of_chunks(config: TransformerConfig) -> tuple[int, ...]:
    """Say how many layers each chunk of a model has, in the model's order.

    Args:
        config: a valid one, of which the layers divide as it says.

    Returns:
        a number a chunk, `pipeline_model_parallel_size` times the number of virtual stages; their sum is `num_layers`.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=7, hidden_size=4, num_attention_heads=1,
        ...     pipeline_model_parallel_size=4, account_for_loss_in_pipeline_split=True)
        >>> layers_of_chunks(config)
        (2, 2, 2, 1)
    """
    if config.pipeline_model_parallel_layout is not None:
        return PipelineLayout.parse(config.pipeline_model_parallel_layout).layers
    stages, virtual = config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size or 1
    first, last = config.num_layers_in_first_pipeline_stage, config.num_layers_in_last_pipeline_stage
    embedding, loss = config.account_for_embedding_in_pipeline_split, config.account_for_loss_in_pipeline_split
    between = stages - (first is not None) - (last is not None)
    rest = config.num_layers + embedding + loss - (first or 0) - (last or 0)
    of_stages = [rest // between] * between if between else []
    of_stages = [*([] if first is None else [first]), *of_stages, *([] if last is None else [last])]
    chunks = [layers // virtual for layers in of_stages] * virtual
    chunks[0] -= embedding
    chunks[-1] -= loss
    return tuple(chunks)


def num_layers_of_stage(config: TransformerConfig, stage: int, virtual_stage: int | None = None) -> int:
    """Say how many layers a stage has.

    Args:
        config: the model's.
        stage: rank in the pipeline, from 0.
        virtual_stage: from 0; `None` = all virtual stages together.

    Returns:
        the number, which may be 0.

    Raises:
        ParallelError: there is no such stage or virtual stage.
    """
    _check_stage(config, stage, virtual_stage)
    stages, chunks = config.pipeline_model_parallel_size, layers_of_chunks(config)
    return sum(chunks[stage::stages]) if virtual_stage is None else chunks[virtual_stage * stages + stage]


def first_layer_of_stage(config: TransformerConfig, stage: int, virtual_stage: int | None = None) -> int:
    """Say which layer of the model is a stage's first.

    Args:
        config: the model's.
        stage: rank in the pipeline, from 0.
        virtual_stage: from 0; `None` only where there are no virtual stages.

    Returns:
        its number, counted from 1; of a stage without layers, that of the next one's first.

    Raises:
        ParallelError: there is no such stage or virtual stage, or the stage has several and none is given.
    """
    _check_stage(config, stage, virtual_stage)
    virtual = config.virtual_pipeline_model_parallel_size or 1
    if virtual_stage is None and virtual > 1:
        raise ParallelError(
            f"stage {stage} has {virtual} virtual stages, each with a first layer of its own.",
            hint="give virtual_stage",
            stage=stage,
        )
    index = (virtual_stage or 0) * config.pipeline_model_parallel_size + stage
    return 1 + sum(layers_of_chunks(config)[:index])


@dataclass(frozen=True)
class PipelineStage:
    """What a stage, or one virtual stage of it, has of a model.

    Args:
        first_layer_number: of its layers, counted from 1 over the model; without layers, the next stage's first.
        num_layers: how many it has; it may be none.
        pre_process: it has the embedding.
        post_process: it has the final norm, the output layer and the loss.
    """

    first_layer_number: int
    num_layers: int
    pre_process: bool
    post_process: bool

    @property
    def layer_numbers(self) -> range:
        """Its layers, counted from 1 over the model."""
        return range(self.first_layer_number, self.first_layer_number + self.num_layers)


def stage_of(config: TransformerConfig, stage: int, virtual_stage: int | None = None) -> PipelineStage:
    """Say what a stage has.

    Args:
        config: the model's.
        stage: rank in the pipeline, from 0.
        virtual_stage: from 0; `None` only where there are no virtual stages.

    Returns:
        its layers, and whether it is the model's beginning or its end.

    Raises:
        ParallelError: there is no such stage or virtual stage, or the stage has several and none is given.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=5, hidden_size=4, num_attention_heads=1,
        ...     pipeline_model_parallel_size=2, num_layers_in_first_pipeline_stage=2)
        >>> stage_of(config, 1)
        PipelineStage(first_layer_number=3, num_layers=3, pre_process=False, post_process=True)
    """
    first = first_layer_of_stage(config, stage, virtual_stage)
    chunk = (virtual_stage or 0) * config.pipeline_model_parallel_size + stage
    return PipelineStage(
        first_layer_number=first,
        num_layers=num_layers_of_stage(config, stage, virtual_stage or 0),
        pre_process=chunk == 0,
        post_process=chunk == len(layers_of_chunks(config)) - 1,
    )


def _check_stage(config: TransformerConfig, stage: int, virtual_stage: int | None) -> None:
    stages, virtual = config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size or 1
    if not 0 <= stage < stages:
        raise ParallelError(f"there is no pipeline stage {stage} of {stages}.", hint="count from 0", stage=stage)
    if virtual_stage is not None and not 0 <= virtual_stage < virtual:
        raise ParallelError(
            f"there is no virtual pipeline stage {virtual_stage} of {virtual}.",
            hint="count from 0",
            stage=stage,
            virtual_stage=virtual_stage,
        )
