"""A spec with every slot resolved: printable, comparable, lockable, buildable. Nothing is allocated."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from transom.errors import ConfigError, SpecError
from transom.registry.hooks import Hook, load_hooks
from transom.registry.registry import Registry, default_registry
from transom.slots import BuildContext, Part
from transom.slots.model import ModelRequest
from transom.specs.hooking import hooks_of, modified
from transom.specs.load import load_spec
from transom.specs.lock import Lock, Mode, check_mode, lock_hook, lock_node, read_lock
from transom.specs.node import Node
from transom.specs.planner import Options, Planner, Use
from transom.specs.spec import ModelSpec
from transom.specs.totals import Measured, costs, totals
from transom.transformer.enums import DtypeName

if TYPE_CHECKING:
    import torch

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["MAX_LAYERS", "Node", "Plan", "Use", "plan"]

MAX_LAYERS = 10_000
"""Most layers of a plan: a mistyped number must not take all memory."""


@dataclass(frozen=True)
class Plan:
    """What will be built: a tree of nodes, each with its resolution.

    Args:
        spec: as the user wrote it.
        config: the spec's config with the dtype of this plan.
        context: device, dtype, mode and so on.
        root: the node of the model.
        sources: distributions that bundles and slots came from, with their versions.
        hooks: what runs when it is built, in order.
        idle_options: entries of the spec's `options` that the call's `use` took a place from, each with the places
            where it still holds.
    """

    spec: ModelSpec
    config: TransformerConfig
    context: BuildContext
    root: Node
    sources: Mapping[str, str] = field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    idle_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def nodes(self) -> Iterator[Node]:
        """Every node, the outer first."""
        return self.root.nodes()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is computed and of every choice: equal plans build equal models.

        Where names were asked for and who was refused before is left out, so a plan made under its own lock has the
        fingerprint of the plan that was locked.
        """
        spec = self.spec
        shape = [spec.vocab_size, spec.max_sequence_length, spec.share_embeddings_and_output_weights]
        config: Any = _contents(self.config)
        if spec.encoder_config is not None:
            config = [config, _contents(spec.encoder_config)]
        chosen = [msgspec.structs.replace(lock_node(node), asked=[], refused=[]) for node in self.nodes()]
        made_for = [self.context.dtype, self.context.mode, sorted(spec.masks), list(map(lock_hook, self.hooks))]
        content = msgspec.json.encode([shape, config, made_for, chosen], order="deterministic")
        return hashlib.sha256(content).hexdigest()

    def to_dict(self, measured: Measured | None = None) -> dict[str, Any]:
        """Give the plan as plain data, one entry a node, with every refusal, and what it costs.

        Args:
            measured: costs of places whose requests do not tell them, as `transom.costs.measure` finds them.
        """
        found = costs(self, measured)
        return {
            "name": self.spec.name,
            "device": self.context.device,
            "dtype": self.context.dtype,
            "mode": self.context.mode,
            "fingerprint": self.fingerprint,
            "hooks": [msgspec.to_builtins(lock_hook(hook)) for hook in self.hooks],
            "totals": totals(self, measured).to_dict(),
            "nodes": [node.to_dict() | {"cost": asdict(found[node.path])} for node in self.nodes()],
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
    options: Options | None = None,
    lock: str | Path | dict[str, Any] | Lock | None = None,
    lock_mode: Mode = "compatible",
    registry: Registry | None = None,
) -> Plan:
    """Resolve every slot of a spec.

    Args:
        spec: as for `load_spec`.
        device: where the model will be built.
        dtype: of parameters; None = the config's ``params_dtype``.
        mode: ``"train"``, or ``"infer"``, where sequences are whole whatever ``context_parallel_size``.
        use: entries that win over the spec's at equal specificity.
        options: likewise for options.
        lock: a lock or its file. Its choices are taken, from its distributions alone, without looking at what else is
            installed; the spec must still ask for them.
        lock_mode: how closely the plan must agree with the lock, as for `Lock.differences`; with ``"free"`` the spec
            alone decides.
        registry: where names are looked up; None = everything that is installed.

    Returns:
        the plan; only the chosen implementations were imported, and nothing was allocated.

    Raises:
        SpecError: an entry matches nothing, contradicts another, or an option is wrong.
        ResolutionError: no implementation that was named can serve a node; with the verdict of each.
        UnknownImplementationError: a name that nothing installed provides.
        PlanMismatchError: the plan departs from the lock.
        HookError: a hook that is named does not exist, or breaks the contract of hooks.

    Example:
        >>> print(plan("tiny-llama").root.resolution.chosen.ref)
        transom/decoder
    """
    spec = load_spec(spec)
    check_mode(lock_mode)
    _check_mappings(use=use, options=options)
    locked = None if lock is None or lock_mode == "free" else read_lock(lock)
    if registry is None:
        registry = default_registry() if locked is None else locked.registry()
    hooks = hooks_of(spec, registry, is_locked=locked is not None)
    live = load_hooks(hooks)
    spec = modified(spec, live)
    _check_layers(spec)
    config = _in_mode(_in_dtype(spec.config, dtype), mode)
    encoder = None if spec.encoder_config is None else _in_mode(_in_dtype(spec.encoder_config, dtype), mode)
    request = _request(spec, config, encoder, _context(str(device), config, mode))
    planner = Planner(spec, use or {}, options or {}, registry, locked)
    root = planner.tree(Part(slot="model", request=request))
    made = Plan(
        spec=spec,
        config=config,
        context=request.context,
        root=root,
        sources=planner.sources(),
        hooks=hooks,
        idle_options=planner.idle_options.still_held(),
    )
    if locked is not None:
        locked.check(made, lock_mode, asked_by=f"the lock {lock}" if isinstance(lock, str | Path) else "the lock")
    for hook in live:
        hook.call("transom_after_resolve", plan=made)
    return made


def _check_mappings(**given: object) -> None:
    for name, value in given.items():
        if value is not None and not isinstance(value, Mapping):
            example = {"use": '{"core_attention": "dot_product"}', "options": '{"SLOT": {"OPTION": VALUE}}'}[name]
            what = f"{name} is a mapping, not a {type(value).__name__}: {value!r}."
            hint = f"{name}={example}"
            raise SpecError(what, asked_by=name, hint=hint, path=name, file=None, line=None)


def _check_layers(spec: ModelSpec) -> None:
    for name, config in (("config", spec.config), ("encoder_config", spec.encoder_config)):
        if config is not None and config.num_layers > MAX_LAYERS:
            raise ConfigError(
                f"num_layers is {config.num_layers}; at most {MAX_LAYERS} layers are planned.",
                asked_by=f"{name}.num_layers in {spec.source}",
                field="num_layers",
                value=config.num_layers,
                path=f"{name}.num_layers",
                file=spec.source,
                line=spec.lines().get((name, "num_layers")),
            )


def _in_dtype(config: TransformerConfig, dtype: str | torch.dtype | None) -> TransformerConfig:
    if dtype is None:
        return config
    name, known = str(dtype).removeprefix("torch."), get_args(DtypeName)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise SpecError(
            f"parameters cannot have the dtype {name!r}.",
            asked_by="dtype (--dtype)",
            available=known,
            hint=f"{near[0]}?" if near else None,
            path="dtype",
            file=None,
            line=None,
        )
    # fp16 and bf16 are other spellings of a dtype, and the call's wins.
    return config.replace(params_dtype=name, fp16=False, bf16=False)


def _in_mode(config: TransformerConfig, mode: Literal["train", "infer"]) -> TransformerConfig:
    """Ranks share sequences in training alone: weights are the same, and a cache has the keys of all tokens."""
    return config.replace(context_parallel_size=1) if mode == "infer" else config


def _request(
    spec: ModelSpec, config: TransformerConfig, encoder: TransformerConfig | None, context: BuildContext
) -> ModelRequest:
    decoding = {"bottom_right", "positions"} if context.mode == "infer" else set()
    optional = {
        "tensor_parallel": config.tensor_model_parallel_size > 1,
        "pipeline_parallel": config.pipeline_model_parallel_size > 1,
        "context_parallel": config.context_parallel_size > 1,
        "encoder_decoder": encoder is not None,
    }
    return ModelRequest(
        context=context,
        features=frozenset(name for name, is_asked in optional.items() if is_asked),
        config=config,
        masks=frozenset({"causal", *spec.masks, *decoding}),
        vocab_size=spec.vocab_size,
        max_sequence_length=spec.max_sequence_length,
        share_embeddings_and_output_weights=spec.share_embeddings_and_output_weights,
        encoder_config=encoder,
    )


def _context(device: str, config: TransformerConfig, mode: Literal["train", "infer"]) -> BuildContext:
    if mode not in ("train", "infer"):
        raise SpecError(f"mode is {mode!r}.", available=("train", "infer"), path="mode", file=None, line=None)
    kind = _device_type(device)
    capability = None
    if kind == "cuda":
        import torch

        capability = torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None
    return BuildContext(
        device=kind,
        dtype=config.params_dtype,
        mode=mode,
        deterministic=config.deterministic_mode,
        tensor_parallel_size=config.tensor_model_parallel_size,
        compute_capability=capability,
    )


def _device_type(device: str) -> str:
    import torch

    try:
        return torch.device(device).type
    except RuntimeError as error:
        what = f"no device is called {device!r}."
        cuda = ("cuda", "cuda:0") if torch.cuda.is_available() else ("cuda (to plan for: none is here)",)
        kinds = ("cpu", *cuda, "meta")
        raise SpecError(what, asked_by="device", available=kinds, path="device", file=None, line=None) from error


def _contents(config: TransformerConfig) -> dict[str, Any]:
    return {f.name: _content(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _content(value: Any) -> Any:
    """Give a config's value as something that is the same in every process."""
    if isinstance(value, str | int | float | bool | tuple | None):
        return value
    if dataclasses.is_dataclass(value):
        return repr(value)
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
