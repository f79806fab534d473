"""The spec: what a user writes to say what a model computes and who computes it. Data only."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from transom.registry.hook_use import HookUse
from transom.slots.core_attention import MASK_FEATURES
from transom.specs.train_spec import TrainSpec
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["ModelSpec"]

Positive = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=200)]


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """A model: what is computed (`config`) and who computes it (`use`).

    Args:
        vocab_size: number of token ids.
        max_sequence_length: longest sequence in tokens.
        config: shape and mathematics of the transformer.
        name: what plans, logs and checkpoints call it.
        model: name in the slot ``model``.
        share_embeddings_and_output_weights: the output layer's weight is the embedding table.
        encoder_config: of the encoder of an encoder-decoder, where it is not `config`, which is then the decoder's.
        masks: kinds of attention mask that callers will pass, beside causal: ``padding``, ``packed``, ``keep`` ...;
            an implementation that cannot serve one of them is refused when the plan is made.
        bundle: presets of `use`, `options` and hooks that plugins publish, by name, the later over the earlier; the
            spec's own entries win over all of them.
        use: who fills each slot: a slot's name, ``linear`` or a path glob (``layers.*.mlp``) to a name or a chain
            ``a | b``, tried in order. The most specific entry wins.
        options: typed options of implementations, by path glob or slot.
        hooks: hooks that run when the model is planned and built, in this order, after those of the user's config and
            of bundles; a name each, or a name and options.
        train: how ``transom train`` trains it.

    Example:
        >>> from transom import ModelSpec, TransformerConfig
        >>> config = TransformerConfig(num_layers=2, hidden_size=64, num_attention_heads=4)
        >>> ModelSpec(vocab_size=256, max_sequence_length=128, config=config).model
        'decoder'
    """

    vocab_size: Positive
    max_sequence_length: Positive
    config: TransformerConfig
    name: Name = "model"
    model: str | list[str] = "decoder"
    share_embeddings_and_output_weights: bool = False
    encoder_config: TransformerConfig | None = None
    masks: tuple[str, ...] = ()
    bundle: str | list[str] = []
    use: dict[str, str | list[str]] = {}
    options: dict[str, dict[str, Any]] = {}
    hooks: list[str | HookUse] = []
    train: TrainSpec = msgspec.field(default_factory=TrainSpec)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.masks) - set(MASK_FEATURES))
        if unknown:
            raise ValueError(f"masks: no kind of mask is named {unknown[0]!r}; there are {', '.join(MASK_FEATURES)}")

    @property
    def source(self) -> str:
        """Where the spec was read from, for messages."""
        return str(self.__dict__.get("_source", f"spec {self.name!r}"))

    def lines(self) -> dict[tuple[str | int, ...], int]:
        """Line of each value in the file it was read from; empty when it was not read from a YAML file."""
        return dict(self.__dict__.get("_lines", {}))

    def names(self) -> dict[str, str]:
        """What messages call entries of `use` that were not written in the spec."""
        return dict(self.__dict__.get("_names", {}))

    def with_origin(
        self, source: str, lines: dict[tuple[str | int, ...], int], names: dict[str, str] | None = None
    ) -> ModelSpec:
        """Return a copy that remembers where it was read from.

        Args:
            source: the file, or what stands for one.
            lines: line of each value.
            names: what messages call entries of `use` that come from elsewhere.
        """
        spec = copy.copy(self)
        spec.__dict__.update(_source=source, _lines=lines, _names=names or {})
        return spec

    def __reduce__(self) -> tuple[Any, ...]:
        # Structs leave out what is not a field: where the spec was read from, which messages name.
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return _remade, (type(self), fields, dict(self.__dict__))

    def to_dict(self) -> dict[str, Any]:
        """Give the spec as plain data; `load_spec` reads it back."""
        plain = msgspec.structs.replace(self, config=_ANY_CONFIG, encoder_config=None)
        data: dict[str, Any] = msgspec.to_builtins(plain) | {"config": self.config.to_dict()}
        if self.encoder_config is not None:
            data["encoder_config"] = self.encoder_config.to_dict()
        return data


def _remade(kind: type[ModelSpec], fields: dict[str, Any], origin: dict[str, Any]) -> ModelSpec:
    spec = kind(**fields)
    spec.__dict__.update(origin)
    return spec


_ANY_CONFIG = TransformerConfig(num_layers=1, hidden_size=1, num_attention_heads=1)
