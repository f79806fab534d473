"""A spec with every slot resolved: printable, comparable, lockable, buildable. Nothing is allocated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from transom.errors import SpecError
from transom.registry.policy import Policy
from transom.registry.registry import Registry, default_registry
from transom.registry.resolve import Resolution, parse_chain, resolve
from transom.slots import BuildContext, Part, Request
from transom.slots.model import ModelRequest
from transom.specs.load import load_spec
from transom.specs.spec import ModelSpec
from transom.specs.use import Rules

if TYPE_CHECKING:
    import torch

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["Node", "Plan", "Use", "plan"]

Use = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Node:
    """One place of a model and who fills it.

    Args:
        path: of the module in the model; empty for the model itself.
        slot: the slot it belongs to.
        request: what it must serve.
        asked_by: which entry of the spec named the implementation.
        resolution: the chosen implementation, and the verdict of every one tried.
        options: the implementation's own typed options, validated; `None` when it takes none or got none.
        parts: the places inside it, by name; a sequence where the place is a list.
    """

    path: str
    slot: str
    request: Request
    asked_by: str
    resolution: Resolution
    options: Any = None
    parts: Mapping[str, Node | tuple[Node, ...]] = field(default_factory=dict)

    def nodes(self) -> Iterator[Node]:
        """This node and all below it, the outer first."""
        yield self
        for part in self.parts.values():
            for node in part if isinstance(part, tuple) else (part,):
                yield from node.nodes()


@dataclass(frozen=True)
class Plan:
    """What will be built: a tree of nodes, each with its resolution.

    Args:
        spec: as the user wrote it.
        config: the spec's config with the dtype of this plan.
        context: device, dtype, mode and so on.
        root: the node of the model.
    """

    spec: ModelSpec
    config: TransformerConfig
    context: BuildContext
    root: Node

    def nodes(self) -> Iterator[Node]:
        """Every node, the outer first."""
        return self.root.nodes()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every choice: equal plans build equal models. Compared across ranks before building."""
        from transom.specs.lock import Lock

        content = msgspec.json.encode([Lock.from_plan(self).nodes, self.spec.to_dict()], order="deterministic")
        return hashlib.sha256(content).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as plain data, one entry a node, with every refusal."""
        return {
            "name": self.spec.name,
            "device": self.context.device,
            "dtype": self.context.dtype,
            "mode": self.context.mode,
            "fingerprint": self.fingerprint,
            "nodes": [_node_dict(node) for node in self.nodes()],
        }

    def __str__(self) -> str:
        from transom.specs.render import render_plan

        return render_plan(self)


def plan(
    spec: str | Path | Mapping[str, Any] | ModelSpec,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    mode: Literal["train", "infer"] = "train",
    use: Use | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    registry: Registry | None = None,
) -> Plan:
    """Resolve every slot of a spec.

    Args:
        spec: as for `load_spec`.
        device: where the model will be built.
        dtype: of parameters; None = the config's ``params_dtype``.
        mode: ``"train"`` or ``"infer"``.
        use: entries that win over the spec's at equal specificity.
        options: likewise for options.
        registry: where names are looked up; None = everything that is installed.

    Returns:
        the plan; only the chosen implementations were imported, and nothing was allocated.

    Raises:
        SpecError: an entry matches nothing, contradicts another, or an option is wrong.
        ResolutionError: no implementation that was named can serve a node; with the verdict of each.
        UnknownImplementationError: a name that nothing installed provides.

    Example:
        >>> print(plan("tiny-llama").root.resolution.chosen.ref)
        transom/decoder
    """
    spec = load_spec(spec)
    config = spec.config
    if dtype is not None:
        config = config.replace(params_dtype=str(dtype).removeprefix("torch."))
    context = _context(str(device), config, mode)
    planner = _Planner(spec, use or {}, options or {}, registry or default_registry())
    masks = {"causal", *spec.masks} | ({"bottom_right", "positions"} if mode == "infer" else set())
    request = ModelRequest(
        context=context,
        config=config,
        masks=frozenset(masks),
        vocab_size=spec.vocab_size,
        max_sequence_length=spec.max_sequence_length,
        share_embeddings_and_output_weights=spec.share_embeddings_and_output_weights,
    )
    root = planner.node("", Part(slot="model", request=request))
    planner.check(list(root.nodes()))
    return Plan(spec=spec, config=config, context=context, root=root)


def _context(device: str, config: TransformerConfig, mode: Literal["train", "infer"]) -> BuildContext:
    if mode not in ("train", "infer"):
        raise SpecError(f"mode is {mode!r}.", available=("train", "infer"), path="mode", file=None, line=None)
    kind = device.split(":")[0]
    capability = None
    if kind == "cuda":
        import torch

        capability = torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None
    return BuildContext(
        device=kind,
        dtype=config.params_dtype,
        mode=mode,
        tensor_parallel_size=config.tensor_model_parallel_size,
        compute_capability=capability,
    )


class _Planner:
    """Walks the tree of parts; each implementation says what is inside it, `use` says who fills it."""

    def __init__(self, spec: ModelSpec, use: Use, options: Mapping[str, Mapping[str, Any]], registry: Registry) -> None:
        self.registry = registry
        self.policy = Policy.from_environment()
        self.spec = spec
        given = "the call's arguments"
        chains = [(_chains(spec.use, spec.source), spec.source), (_chains(use, given), given)]
        self.use: Rules[tuple[str, ...]] = Rules("use", chains, registry.slots)
        self.options: Rules[Mapping[str, Any]] = Rules(
            "options", [(spec.options, spec.source), (options, given)], registry.slots
        )
        self.resolutions: dict[tuple[str, tuple[str, ...], Request], Resolution] = {}

    def node(self, path: str, part: Part) -> Node:
        asked, asked_by = self._asked(path, part.slot)
        key = (part.slot, asked, part.request)
        if key not in self.resolutions:
            self.resolutions[key] = resolve(
                part.slot, asked, part.request, asked_by=asked_by, registry=self.registry, policy=self.policy
            )
        resolution = self.resolutions[key]
        builder = resolution.chosen.load()
        return Node(
            path=path,
            slot=part.slot,
            request=part.request,
            asked_by=asked_by,
            resolution=resolution,
            options=self._options(path, part.slot, builder, resolution.chosen.ref),
            parts=self._parts(path, builder, part.request),
        )

    def check(self, nodes: Sequence[Node]) -> None:
        places = [(node.path, node.slot) for node in nodes]
        self.use.check_all_matched(places)
        self.options.check_all_matched(places)

    def _asked(self, path: str, slot: str) -> tuple[tuple[str, ...], str]:
        rule = self.use.find(path, slot)
        if rule is not None:
            return rule.value, rule.where
        if slot == "model":
            return parse_chain(self.spec.model), f"model in {self.spec.source}"
        default = self.registry.slot(slot).default
        if default is None:
            raise SpecError(
                f"the spec names nobody for {path} and slot {slot} has no default.",
                asked_by=self.spec.source,
                available=[i.ref for i in self.registry.implementations(slot)],
                hint=f"use: {{{slot}: NAME}}",
                path=f"use.{slot}",
                file=self.spec.source,
                line=None,
            )
        return (default,), f"the default of slot {slot}"

    def _parts(self, path: str, builder: Any, request: Request) -> dict[str, Node | tuple[Node, ...]]:
        declare = getattr(builder, "parts", None)
        if declare is None:
            return {}
        found: dict[str, Node | tuple[Node, ...]] = {}
        for name, part in declare(request).items():
            if isinstance(part, Part):
                found[name] = self.node(_join(path, part.path or name), part)
            else:
                found[name] = tuple(self.node(_join(path, f"{name}.{i}"), p) for i, p in enumerate(part))
        return found

    def _options(self, path: str, slot: str, builder: Any, ref: str) -> Any:
        rule = self.options.find(path, slot)
        if rule is None:
            return None
        declared = getattr(builder, "Options", None)
        if declared is None:
            raise SpecError(
                f"{ref} takes no options.",
                asked_by=rule.where,
                hint="remove the entry, or name an implementation that does",
                path=f"options.{rule.pattern}",
                file=self.spec.source,
                line=None,
            )
        try:
            return msgspec.convert(dict(rule.value), declared, strict=True)
        except msgspec.ValidationError as error:
            raise SpecError(
                f"options of {ref}: {str(error)[:1].lower()}{str(error)[1:]}.",
                asked_by=rule.where,
                available=[f.name for f in msgspec.inspect.type_info(declared).fields],  # type: ignore[attr-defined]
                path=f"options.{rule.pattern}",
                file=self.spec.source,
                line=None,
            ) from error


def _chains(use: Use, where: str) -> dict[str, tuple[str, ...]]:
    chains: dict[str, tuple[str, ...]] = {}
    for pattern, value in use.items():
        chains[pattern] = parse_chain(value)
        if not chains[pattern]:
            raise SpecError(
                f"use.{pattern} names nobody.", asked_by=where, path=f"use.{pattern}", file=where, line=None
            )
    return chains


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _node_dict(node: Node) -> dict[str, Any]:
    resolution = node.resolution
    chosen = resolution.chosen
    return {
        "path": node.path,
        "slot": node.slot,
        "asked": list(resolution.asked),
        "asked_by": node.asked_by,
        "chosen": chosen.ref,
        "distribution": chosen.distribution,
        "version": chosen.version,
        "entry_point": chosen.value,
        "features": sorted(node.request.features),
        "options": None if node.options is None else msgspec.to_builtins(node.options),
        "refused": [
            {"ref": v.ref, "stage": v.stage, "reason": v.reason, "hint": v.hint}
            for v in resolution.verdicts
            if not v.ok
        ],
    }
