"""The one composition point: a plan becomes modules."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from transom.checkpoint.module_layout import keep_state_canonical
from transom.errors import BuildError, ParallelError, PlanMismatchError, SpecError
from transom.registry.hooks import LiveHook, load_hooks
from transom.registry.registry import default_registry
from transom.registry.signatures import module_mismatches
from transom.slots.core_attention import CoreAttentionRequest
from transom.specs.lock import Lock
from transom.specs.node import Replacement
from transom.specs.plan import Node, Plan, Use
from transom.specs.plan import plan as make_plan
from transom.specs.spec import ModelSpec
from transom.transformer.collectives import Ranks
from transom.transformer.context_parallel import ContextParallelAttention
from transom.transformer.identity_op import IdentityOp
from transom.transformer.moved_names import move_names
from transom.transformer.partial_gradients import mark_partial_gradients
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["build", "build_stages", "check_ranks", "module_of", "modules_of"]

_BUILT = "transom_module_built"


def build(
    spec: str | Path | Mapping[str, Any] | ModelSpec | Plan,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    mode: Literal["train", "infer"] | None = None,
    use: Use | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int | None = None,
    tp_group: torch.distributed.ProcessGroup | None = None,
    cp_group: torch.distributed.ProcessGroup | None = None,
) -> nn.Module:
    """Build a model: resolve every slot, then make every module.

    Args:
        spec: a spec as for `transom.load_spec`, or a plan, in which dtype, mode and choices are already made.
        device: where parameters are made; ``"meta"`` allocates nothing. None = the plan's, or ``"cpu"``.
        dtype: of parameters; None = the config's ``params_dtype``.
        mode: ``"train"`` (also None), or ``"infer"``: in evaluation mode, without gradients.
        use: who fills which slot, over the spec's own ``use``.
        options: implementations' options, over the spec's own.
        seed: of the initial weights; the global generator is left as it was. None = draw from the global generator.
        tp_group: tensor-parallel process group, of ``config.tensor_model_parallel_size`` ranks; they must all have
            planned the same model.
        cp_group: context-parallel process group, of ``config.context_parallel_size`` ranks. Each calls the model with
            its share of every sequence (`transom.transformer.context_parallel.ContextShare`): tokens, labels and
            ``input_pos``; but with a mask over the whole.

    Returns:
        the model, with the plan it was built from as ``model.plan``, which says too what hooks replaced. Nothing of the
        registry remains in any forward.

    Raises:
        TransomError: whatever `transom.plan` raises; `BuildError` when an implementation breaks its slot's contract.
            Errors from a constructor pass through, with a note that says which node was being built.

    Example:
        >>> model = build("tiny-llama", use={"core_attention": "dot_product"}, seed=0)
        >>> model(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 256])
    """
    if isinstance(spec, Plan):
        the_plan = _unchanged(spec, dtype=dtype, mode=mode, use=use, options=options)
    else:
        the_plan = make_plan(spec, device=device or "cpu", dtype=dtype, mode=mode or "train", use=use, options=options)
    for group in filter(None, (tp_group, cp_group)):
        check_ranks(the_plan, group)
    device = str(device or the_plan.context.device)
    _check_present(device)
    ranks = _context_ranks(the_plan.config, cp_group)
    making = _Making(load_hooks(the_plan.hooks), the_plan.config.sequence_parallel, ranks)
    with torch.device(device), _seeded(seed, device):
        model = _Builder(the_plan.root, making)(the_plan.config, tp_group=tp_group)
    model.__dict__["plan"] = making.annotated(the_plan)
    if the_plan.context.mode == "infer":
        model.eval().requires_grad_(False)
    return model


def build_stages(
    plan: Plan,
    *,
    place: int,
    device: str | torch.device | None = None,
    seed: int | None = None,
    tp_group: torch.distributed.ProcessGroup | None = None,
    cp_group: torch.distributed.ProcessGroup | None = None,
) -> list[nn.Module]:
    """Build what one rank of a pipeline has of a model, with the weights that `build` gives it under the same seed.

    Of the other layers one at a time is made and dropped: the rank needs room for its own and one more.

    Args:
        plan: of the whole model; its config says how it is cut.
        place: of the rank in the pipeline, from 0.
        device: as for `build`, likewise what follows.
        seed: of the initial weights.
        tp_group: tensor-parallel process group.
        cp_group: context-parallel process group.

    Returns:
        the rank's stage, or its virtual stages in order, which satisfy `transom.slots.model.ModelStage`; each has the
        plan as ``stage.plan``.

    Raises:
        TransomError: as for `build`.
        ParallelError: the model's builder makes no stages, or there is no such place.

    Example:
        >>> from transom.specs.load import load_spec
        >>> config = load_spec("tiny-llama").config.replace(pipeline_model_parallel_size=2)
        >>> planned = make_plan({"vocab_size": 256, "max_sequence_length": 16, "config": config.to_dict()})
        >>> (stage,) = build_stages(planned, place=1, seed=0)
        >>> sorted(stage.layers)
        ['2', '3']
    """
    for group in filter(None, (tp_group, cp_group)):
        check_ranks(plan, group)
    device = str(device or plan.context.device)
    _check_present(device)
    making = _Making(load_hooks(plan.hooks), plan.config.sequence_parallel, _context_ranks(plan.config, cp_group))
    builder = _Builder(plan.root, making)
    if not hasattr(builder.build, "stages"):
        chosen = plan.root.resolution.chosen
        raise ParallelError(
            f"the model {chosen.label} cannot be cut into the stages of a pipeline.",
            asked_by=f"pipeline_model_parallel_size={plan.config.pipeline_model_parallel_size}",
            hint="pp=1, or a model whose builder has stages()",
            model=chosen.label,
        )
    with torch.device(device), _seeded(seed, device):
        stages = list(builder.build.stages(plan.config, place=place, tp_group=tp_group, **builder.bound))
    for stage in stages:
        stage.__dict__["plan"] = making.annotated(plan)
    return stages


def check_ranks(plan: Plan, group: torch.distributed.ProcessGroup) -> None:
    """Refuse to go on where the ranks of a group planned different models: an error on every rank instead of a hang.

    Every rank of the group must call it.

    Args:
        plan: this rank's.
        group: the ranks that will build it together.

    Raises:
        PlanMismatchError: on every rank, with the differences between this rank's plan and the first that is another.
    """
    prints: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(prints, plan.fingerprint, group=group)
    if len(set(prints)) == 1:
        return
    locks: list[Any] = [None] * len(prints)
    torch.distributed.all_gather_object(locks, Lock.from_plan(plan), group=group)
    rank = torch.distributed.get_rank(group)
    other = next(i for i, fingerprint in enumerate(prints) if fingerprint != prints[rank])
    found = locks[other].differences(plan, "exact") or ["the config is not the same"]
    raise PlanMismatchError(
        f"rank {rank} and rank {other} of the group planned different models.",
        failed=[f"{line} (rank {other} first, then this rank)" for line in found[:20]],
        hint="plan under one lock on every rank: transom.plan(spec, lock=...)",
        differences=tuple(found),
    )


def _context_ranks(config: TransformerConfig, group: torch.distributed.ProcessGroup | None) -> Ranks:
    ranks, wanted = Ranks.of(group), config.context_parallel_size
    if ranks.size != wanted:
        given = "no cp_group" if group is None else f"a cp_group of {ranks.size}"
        raise ParallelError(
            f"the model's sequences are split over {wanted} ranks, and {given} was given.",
            asked_by="config.context_parallel_size",
            hint=f"cp_group= of {wanted} ranks, as transom train --cp makes it, or context_parallel_size: {ranks.size}",
            ranks=ranks.size,
            wanted=wanted,
        )
    return ranks


def _check_present(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # torch raises either, depending on how it was built
        reason = str(error).splitlines()[0].rstrip(".")
        what = f"device {device!r} cannot be used here: {reason}."
        hint = "cpu, or meta for a model without memory; transom doctor tells what torch finds here"
        raise SpecError(what, asked_by="device", hint=hint, path="device", file=None, line=None) from error


def _unchanged(plan: Plan, **given: Any) -> Plan:
    for name, value in given.items():
        if value is not None:
            raise SpecError(
                f"{name} is given together with a plan, in which it is already decided.",
                hint=f"transom.plan(spec, {name}=...), then build that plan",
                path=name,
                file=None,
                line=None,
            )
    return plan


@contextmanager
def _seeded(seed: int | None, device: str) -> Iterator[None]:
    if seed is None:
        yield
        return
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def module_of(node: Node, *, cp_group: torch.distributed.ProcessGroup | None = None) -> Callable[..., nn.Module]:
    """Return the builder of a node's module, with everything that was decided below it bound; groups as for `build`."""
    return _Builder(node, _Making((), context_ranks=Ranks.of(cp_group)))


def modules_of(nodes: Iterable[Node]) -> list[Callable[..., nn.Module]]:
    """Return the builders of several nodes of one model, which have modules of shared slots in common."""
    making = _Making(())
    return [_Builder(node, making) for node in nodes]


@dataclass
class _Making:
    """One build: what its modules share, and what hooks do with them.

    Args:
        hooks: in the order in which they run.
        sequence_parallel: whether norms act on each rank's part of the sequence.
        context_ranks: which share every sequence.
        shared: modules of shared slots that were already made.
        replacements: what hooks put in the place of modules, by path.
    """

    hooks: Sequence[LiveHook]
    sequence_parallel: bool = False
    context_ranks: Ranks = field(default_factory=lambda: Ranks.of(None))
    shared: dict[Hashable, nn.Module] = field(default_factory=dict)
    replacements: dict[str, tuple[Replacement, ...]] = field(default_factory=dict)

    def hooked(self, module: nn.Module, node: Node) -> nn.Module:
        """Let each hook see a module that was built, and put another in its place."""
        for hook in self.hooks:
            answer = hook.call(_BUILT, module=module, path=node.path, resolution=node.resolution)
            if answer is None or answer is module:
                continue
            complaints = module_mismatches(answer, default_registry().slot(node.slot).interfaces)
            if not isinstance(answer, nn.Module) or complaints:
                complaint = "; ".join(complaints) or f"is a {type(answer).__name__}, not a torch.nn.Module"
                raise hook.error(_BUILT, f"replaced {node.path or 'the model'} by what does not fit: it {complaint}")
            keep_state_canonical(answer)
            module, before = answer, self.replacements.get(node.path, ())
            self.replacements[node.path] = (*before, Replacement(hook.hook.ref, _class_name(answer)))
        return module

    def shared_out(self, module: nn.Module, node: Node) -> nn.Module:
        """Let a core attention have queries of a share of the sequence, where ranks share it."""
        if self.context_ranks.size == 1 or not isinstance(node.request, CoreAttentionRequest):
            return module
        return ContextParallelAttention(module, self.context_ranks, windowed=node.request.window is not None)

    def annotated(self, plan: Plan) -> Plan:
        """Return the plan with what hooks replaced; the plan itself when that is nothing."""
        if not self.replacements:
            return plan
        return dataclasses.replace(plan, root=plan.root.replaced(self.replacements))


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


class _Builder:
    """A node's builder with what the plan decided bound to it, as its parent receives it.

    It checks that the parent asks for what was planned: a plan that tells another story than the model is a bug of the
    parent implementation, and found here rather than in a run.

    Args:
        node: of the plan.
        making: the build that it belongs to.
    """

    def __init__(self, node: Node, making: _Making) -> None:
        self.node = node
        self.planned = _planned(type(node.request))  # type: ignore[arg-type]  # classes can be hashed
        self.making = making
        self.build: Any = node.resolution.chosen.load()
        self.slot = default_registry().slot(node.slot)
        self.parameters = _parameters(self.slot.builder)
        self.bound: dict[str, Any] = {}
        if "submodules" in self.parameters:
            self.bound["submodules"] = self._submodules()
        if "request" in self.parameters:
            self.bound["request"] = node.request
        if node.options is not None:
            self.bound["options"] = node.options

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
        self._check_as_planned(args, kwargs)
        if not self.slot.shared:
            return self._make(args, kwargs)
        key = (self.node.slot, self.node.resolution.chosen.ref, self.node.request)
        shared = self.making.shared
        if key not in shared:
            shared[key] = self._make(args, kwargs)
        return shared[key]

    def _make(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
        try:
            module = self.build(*args, **(kwargs | self.bound if self.bound else kwargs))
        except Exception as error:
            error.add_note(f"while building {self._where()}")
            raise
        if not isinstance(module, nn.Module):
            raise BuildError(
                f"{self._where()} gave a {type(module).__name__}, not a torch.nn.Module.",
                hint="report it to the plugin's authors",
                path=self.node.path,
            )
        if self.making.sequence_parallel and self.node.slot == "norm":
            mark_partial_gradients(module)
        taken = [child for child in self.node.children() if child.within is not None] if self.node.parts else ()
        if taken:
            move_names(module, dict(self._moved(taken)))
        keep_state_canonical(module)
        return self.making.shared_out(self.making.hooked(module, self.node), self.node)

    def _moved(self, taken: Iterable[Node]) -> Iterator[tuple[str, str]]:
        """Yield where the parameters of norms lie that other places took in, and the names that states give them."""
        prefix = f"{self.node.path}." if self.node.path else ""
        for child in taken:
            for name in ("weight", "bias"):
                yield f"{child.within}.norm.{name}".removeprefix(prefix), f"{child.path}.{name}".removeprefix(prefix)

    def _submodules(self) -> Any:
        if not self.node.parts:
            declared = getattr(self.build, "Submodules", None)
            return None if declared is None else declared()
        made = {
            name: [self._builder_of(node) for node in part] if isinstance(part, tuple) else self._builder_of(part)
            for name, part in self.node.parts.items()
        }
        return self.build.Submodules(**made)

    def _builder_of(self, node: Node) -> Callable[..., Any]:
        if node.within is not None:
            return IdentityOp  # the module there does what this one would
        builder = _Builder(node, self.making)
        # A late module is none of this build: its parent keeps what makes it, without what belongs to the build.
        return partial(builder.build, **builder.bound) if builder.slot.late else builder

    def _check_as_planned(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(self.parameters, args, strict=False)) | kwargs if args else kwargs
        for name in self.planned.intersection(given):
            if given[name] != (planned := getattr(self.node.request, name)):
                raise BuildError(
                    f"{self.node.path} was planned with {name}={planned} and is being built with {given[name]}.",
                    hint="the implementation above it must ask in parts() for what it builds",
                    path=self.node.path,
                )

    def _where(self) -> str:
        chosen = self.node.resolution.chosen
        path = self.node.path or "the model"
        return f"{path}, {self.node.slot} {chosen.label}"


@cache
def _planned(request: Any) -> frozenset[str]:
    """Name what a request says that its parent says again when it builds."""
    return frozenset(f.name for f in dataclasses.fields(request)) - {"context", "config", "features", "masks"}


@cache
def _parameters(builder: type) -> tuple[str, ...]:
    """Name what callers pass to the builders of a slot, in order."""
    return tuple(inspect.signature(builder.__call__).parameters)[1:]
