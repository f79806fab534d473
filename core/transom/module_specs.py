"""From a module's spec, written in Python, to the module: names are resolved exactly as those of a model's spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from transom.composition import module_of, modules_of
from transom.errors import SpecError
from transom.registry.implementation import REGISTERED, Implementation
from transom.registry.policy import Policy
from transom.registry.registry import default_registry
from transom.registry.resolve import Resolution, parse_chain, resolve
from transom.registry.signatures import builder_mismatches
from transom.registry.submodules import declared_parts
from transom.registry.verdict import judge
from transom.slots import ArchitectureRequest, BuildContext, Part
from transom.specs.node import Node
from transom.transformer import parts
from transom.transformer.identity_op import IdentityOp
from transom.transformer.spec_utils import ModuleSpec
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["build_module", "layer_builders"]

Entry = ModuleSpec | Callable[..., Any] | str | None
"""Who fills a place; `None` = the default of its slot."""

_PLACES: Mapping[str, Callable[[ArchitectureRequest, int], Part]] = {
    "layer": parts.layer,
    "self_attention": parts.self_attention,
    "cross_attention": parts.cross_attention,
    "mlp": parts.mlp,
}


def build_module(
    spec: ModuleSpec | Callable[..., Any] | str,
    config: TransformerConfig,
    *,
    slot: Literal["layer", "self_attention", "cross_attention", "mlp"],
    layer_number: int = 1,
    device: str | torch.device = "cpu",
    mode: Literal["train", "infer"] = "train",
    masks: Iterable[str] = (),
    tp_group: torch.distributed.ProcessGroup | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a layer, an attention or an MLP from its spec, with all that is inside it.

    Args:
        spec: a `ModuleSpec`, or what its ``module`` may be; it is not changed.
        config: of the transformer.
        slot: what is built.
        layer_number: counted from 1.
        device: where parameters are made.
        mode: ``"train"`` or ``"infer"``.
        masks: kinds of attention mask that callers will pass, beside causal.
        tp_group: tensor-parallel process group.
        arguments: further arguments of the module, ``is_expert`` of an MLP for example.

    Returns:
        the module.

    Raises:
        SpecError: a place that does not exist is filled, or filled with what is no builder; with its path.
        TransomError: whatever resolving a name raises; errors of constructors pass through with a note of the path.

    Example:
        >>> from transom.transformer.mlp import MLP, MLPSubmodules
        >>> config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)
        >>> spec = ModuleSpec(MLP, submodules=MLPSubmodules(linear_fc1="torch_linear", linear_fc2="torch_linear"))
        >>> build_module(spec, config, slot="mlp")(torch.zeros(1, 3, 8))[0].shape
        torch.Size([1, 3, 8])
    """
    if slot not in _PLACES:
        raise SpecError(f"no module of slot {slot!r} is built alone.", available=_PLACES, **_at(slot))
    context = BuildContext(
        device=torch.device(device).type,
        dtype=config.params_dtype,
        mode=mode,
        tensor_parallel_size=config.tensor_model_parallel_size,
    )
    around = ArchitectureRequest(context=context, config=config, masks=frozenset({"causal", *masks}))
    place = _PLACES[slot](around, layer_number)
    given = {f.name: arguments[f.name] for f in dataclasses.fields(place.request) if f.name in arguments}
    place = dataclasses.replace(place, request=dataclasses.replace(place.request, **given))
    if slot != "mlp":
        arguments["layer_number"] = layer_number
    with torch.device(device):
        return module_of(_node(spec, place, slot))(config, tp_group=tp_group, **arguments)


def layer_builders(
    spec: ModuleSpec | Callable[..., Any] | str,
    config: TransformerConfig,
    numbers: Iterable[int],
    *,
    cross_attention: bool = False,
    mode: Literal["train", "infer"] = "train",
    masks: Iterable[str] = ("causal",),
) -> list[Callable[..., Any]]:
    """Resolve the layers of a stack from one spec.

    Args:
        spec: of each layer, as for `build_module`.
        config: of the transformer.
        numbers: of the layers, counted from 1.
        cross_attention: the layers read another sequence too.
        mode: ``"train"`` or ``"infer"``.
        masks: kinds of attention mask that callers will pass.

    Returns:
        for each layer what builds it, called with ``config``, ``layer_number`` and ``tp_group``, on torch's default
        device.

    Raises:
        SpecError: as `build_module`.
        TransomError: whatever resolving a name raises.

    Example:
        >>> config = TransformerConfig(num_layers=2, hidden_size=8, num_attention_heads=2)
        >>> first, second = layer_builders("transformer_layer", config, (1, 2))
        >>> first(config, layer_number=1)(torch.zeros(1, 3, 8))[0].shape
        torch.Size([1, 3, 8])
    """
    context = BuildContext(
        device=torch.get_default_device().type,
        dtype=config.params_dtype,
        mode=mode,
        tensor_parallel_size=config.tensor_model_parallel_size,
    )
    around = ArchitectureRequest(context=context, config=config, masks=frozenset(masks))
    places = (parts.layer(around, number, cross_attention=cross_attention) for number in numbers)
    return [*modules_of(_node(spec, place, "layer") for place in places)]


@dataclasses.dataclass
class _Norm:
    """The place of a norm that feeds one other place alone, what the spec says of it, and who took it in."""

    path: str
    part: Part
    entry: Entry
    taken: Node | None = None

    def take(self, node: Node) -> None:
        """Let a node fill the norm's place too, of which the spec may say nothing else."""
        if self.entry is not None and _as_spec(self.entry).module is not IdentityOp:
            raise SpecError(
                f"{self.path} is filled, and {node.path} by {node.resolution.chosen.name}, which brings a norm along.",
                asked_by=node.asked_by,
                hint=f"IdentityOp or None at {self.path}",
                **_at(self.path),
            )
        norm = self.part
        self.taken = dataclasses.replace(
            node, path=self.path, slot=norm.slot, request=norm.request, parts={}, within=node.path
        )


def _node(entry: Entry, place: Part, path: str, norm: _Norm | None = None) -> Node:
    """Resolve one place and, with what the spec says of them, the places inside it."""
    if norm is not None and place.reads_input and _norms_too(entry):
        place = parts.norm_linear(norm.part, place)
    spec = _as_spec(_default(place, path) if entry is None else entry)
    asked_by = f"the module spec, at {path}"
    if isinstance(spec.module, str):
        resolution = resolve(place.slot, parse_chain(spec.module), place.request, asked_by=asked_by)
        builder = resolution.chosen.load()
    else:
        resolution, builder = _given(spec.module, place, path), spec.module
    if spec.params:
        chosen = dataclasses.replace(resolution.chosen, builder=_with_params(builder, spec.params))
        resolution = dataclasses.replace(resolution, chosen=chosen)
    card = resolution.chosen.card
    takes = norm is not None and (place.slot == "norm_linear" or (card is not None and card.includes_norm))
    node = Node(
        path=path,
        slot=place.slot,
        request=place.request,
        asked_by=asked_by,
        resolution=resolution,
        parts=_inside(spec.submodules, builder, spec.params.get("options"), place, path, None if takes else norm),
    )
    if norm is not None and takes:
        norm.take(node)
    return node


def _norms_too(entry: Entry) -> bool:
    """Whether an entry is of the slot norm_linear: a name there, or a class that is registered there."""
    if entry is None:
        return False
    module = _as_spec(entry).module
    found = default_registry().implementations("norm_linear")
    if isinstance(module, str):
        return parse_chain(module)[0] in {name for each in found for name in (each.name, each.ref)}
    return any(_value(module) == each.value or module is each.builder for each in found)


def _as_spec(entry: ModuleSpec | Callable[..., Any] | str) -> ModuleSpec:
    spec = entry if isinstance(entry, ModuleSpec) else ModuleSpec(entry)
    if isinstance(spec.module, partial) and not spec.module.args:
        # Seen through, so that what the class says of its places is found.
        params = {**spec.module.keywords, **spec.params}
        return ModuleSpec(spec.module.func, params=params, submodules=spec.submodules)
    return spec


def _inside(
    submodules: Any, builder: Callable[..., Any], options: Any, place: Part, path: str, norm: _Norm | None
) -> dict[str, Node | tuple[Node, ...]]:
    places = declared_parts(builder, place.request, options)
    entries = _entries(submodules)
    for name, entry in entries.items():
        if entry is not None and name not in places:
            raise SpecError(
                f"{path}.{name} is filled, and the config leaves no such place.",
                asked_by=f"the module spec, at {path}",
                available=places,
                hint="leave it None, or change the config",
                **_at(f"{path}.{name}"),
            )
    norms = {
        name: _Norm(f"{path}.{part.path or name}", part, entries.get(name))
        for name, part in places.items()
        if isinstance(part, Part) and part.feeds is not None
    }
    before = {each.part.feeds: each for each in norms.values()}
    found: dict[str, Node | tuple[Node, ...]] = {}
    for name in sorted(places, key=norms.__contains__):  # norms last: what they feed may have taken them in
        part, entry = places[name], entries.get(name)
        if not isinstance(part, Part):
            each = ((p, f"{path}.{p.path or f'{name}.{i}'}") for i, p in enumerate(part))
            found[name] = tuple(_node(entry, p, inner) for p, inner in each)
            continue
        taken = norms[name].taken if name in norms else None
        feeding = before.get(name, norm if part.reads_input else None)
        found[name] = taken or _node(entry, part, f"{path}.{part.path or name}", feeding)
    return {name: found[name] for name in places}


def _value(module: Callable[..., Any]) -> str:
    name = getattr(module, "__qualname__", type(module).__qualname__)
    return f"{getattr(module, '__module__', '?')}:{name}"


def _entries(submodules: Any) -> dict[str, Entry]:
    if submodules is None:
        return {}
    if dataclasses.is_dataclass(submodules) and not isinstance(submodules, type):
        return {f.name: getattr(submodules, f.name) for f in dataclasses.fields(submodules)}
    if isinstance(submodules, Mapping):
        return dict(submodules)
    raise SpecError(
        f"submodules are a {type(submodules).__name__}; a dataclass or a mapping is needed.", **_at("submodules")
    )


def _given(module: Callable[..., Any], place: Part, path: str) -> Resolution:
    """Resolve to a class or function that stands in the spec itself."""
    slot = default_registry().slot(place.slot)
    complaints = builder_mismatches(module, slot.builder, slot.interfaces) if callable(module) else ["is not callable"]
    if complaints:
        raise SpecError(
            f"{path} is filled with {module!r}, which cannot make a {place.slot}: it {'; '.join(complaints)}.",
            asked_by=f"the module spec, at {path}",
            hint="a class, a builder function, a partial, a ModuleSpec, or a name",
            **_at(path),
        )
    name = getattr(module, "__qualname__", type(module).__qualname__)
    chosen = Implementation(place.slot, name, REGISTERED, "", _value(module), module)
    verdict = judge(chosen, slot, place.request, Policy.current())
    if not verdict.ok:
        raise SpecError(
            f"{path} is filled with {name}, which cannot serve: {verdict.reason}.",
            asked_by=f"the module spec, at {path}",
            hint=verdict.hint,
            **_at(path),
        )
    return Resolution(place.slot, (name,), (verdict,), chosen)


def _with_params(builder: Callable[..., Any], params: Mapping[str, Any]) -> Callable[..., Any]:
    bound = partial(builder, **params)
    for name in ("Submodules", "parts"):
        if hasattr(builder, name):
            setattr(bound, name, getattr(builder, name))
    return bound


def _default(place: Part, path: str) -> str:
    default = default_registry().slot(place.slot).default
    if default is None:
        raise SpecError(f"{path} is not filled, and slot {place.slot} has no default.", **_at(path))
    return default


def _at(path: str) -> dict[str, Any]:
    return {"path": path, "file": None, "line": None}
