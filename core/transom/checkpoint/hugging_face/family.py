"""What a family of models is: how its config and its weights are called here and there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from transom.checkpoint.hugging_face.settings import REQUIRED
from transom.checkpoint.layout_map import LayoutMap, Rule

if TYPE_CHECKING:
    from transom.checkpoint.hugging_face.settings import Settings
    from transom.specs.spec import ModelSpec

__all__ = ["ACTIVATIONS", "REQUIRED", "Family", "Field", "activation"]

ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "squared_relu",
    "quick_gelu": "quick_gelu",
    "sigmoid": "sigmoid",
}
"""What their activations are called here; of several names for one the first is written."""


@final
@dataclass(frozen=True)
class Field:
    """One field of the config.

    Args:
        theirs: its name in ``config.json``.
        ours: its name in a spec, ``config.hidden_size`` or ``vocab_size``.
        default: where it is absent or null; `None` = it follows from other fields, here as there.
        names: what values are called here; `None` = the same.
    """

    theirs: str
    ours: str
    default: Any = REQUIRED
    names: Mapping[Any, Any] | None = None

    def read(self, settings: Settings) -> Any:
        """Return the value for a spec; `None` = leave it out."""
        if self.names is not None:
            return settings.translated(self.theirs, self.names, self.default)
        return settings.get(self.theirs, self.default)

    def write(self, spec: ModelSpec) -> Any:
        """Return the value for a ``config.json``."""
        where, _, name = self.ours.rpartition(".")
        value = getattr(spec.config if where else spec, name)
        if self.names is None:
            return value
        return next((theirs for theirs, ours in self.names.items() if ours == value), None)


def activation(theirs: str, default: str) -> Field:
    """Make the field of the MLP's activation; of several names for one the default is written first."""
    return Field(theirs, "config.activation_func", default, {default: ACTIVATIONS[default]} | dict(ACTIVATIONS))


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


def _layers(spec: ModelSpec) -> dict[str, int]:
    return {"layer": spec.config.num_layers}


@final
@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of one architecture.

    Args:
        model_type: as ``config.json`` has it.
        architecture: the class with the output layer.
        prefix: of the names of all weights but the output layer's; files may lack it.
        fields: of the config, one by one.
        model: what the model is called in the slot ``model``.
        fixed: fields of a spec's config that all models of the family have.
        required: settings that must have one value: (value, default, why).
        read: further fields of a spec's config.
        around: further fields of a spec, of the settings and the spec's config.
        write: further settings.
        rules: of the weights' layout.
        numbers: how many values the numbers in the rules' names have.
        ties: names of weights that are one, for a spec; the first of each is the one that is written.
        always_ties: transformers shares embeddings and output whatever the config says, unless the files hold both.
        ignored: endings of names of tensors in files that are not weights.
    """

    model_type: str
    architecture: str
    prefix: str
    fields: Sequence[Field]
    model: str = "decoder"
    rules: Callable[[ModelSpec], Sequence[Rule]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, tuple[Any, Any, str]] = field(default_factory=dict)
    read: Callable[[Settings], dict[str, Any]] = _nothing
    around: Callable[[Settings, dict[str, Any]], dict[str, Any]] = _nothing
    write: Callable[[ModelSpec], dict[str, Any]] = _nothing
    numbers: Callable[[ModelSpec], Mapping[str, int]] = _layers
    ties: Callable[[ModelSpec], Sequence[tuple[str, ...]]] = lambda spec: ()
    always_ties: bool = False
    ignored: Sequence[str] = ()

    def to_spec(self, settings: Settings) -> dict[str, Any]:
        """Turn a ``config.json`` into a spec, as a mapping.

        Raises:
            CheckpointError: fields are missing or ask for what cannot be computed; it tells all of them.
        """
        for name, (right, default, why) in self.required.items():
            settings.must_be(name, right, default, why)
        spec: dict[str, Any] = {"config": dict(self.fixed) | self.read(settings)}
        for each in self.fields:
            value = each.read(settings)
            where, _, name = each.ours.rpartition(".")
            if value is not None:
                (spec[where] if where else spec)[name] = value
        spec |= self.around(settings, spec["config"])
        settings.check()
        return spec

    def to_settings(self, spec: ModelSpec) -> dict[str, Any]:
        """Turn a spec into the fields of a ``config.json``; whether it can be told by them is another question."""
        settings = {each.theirs: each.write(spec) for each in self.fields}
        settings |= {name: right for name, (right, _, _) in self.required.items()}
        return settings | self.write(spec) | {"model_type": self.model_type, "architectures": [self.architecture]}

    def layout(self, spec: ModelSpec) -> LayoutMap:
        """Give the layout map from the family's weights to canonical ones."""
        return LayoutMap(self.rules(spec), self.numbers(spec))
