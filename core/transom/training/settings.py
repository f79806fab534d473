"""The spec of a run: the user's, with what the call changes; and whether a run may go on under it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import msgspec

from transom.distributed.sizes import ParallelSizes
from transom.errors import CheckpointError, SpecError, TransomError
from transom.pretrained.tokenizer import tokenizer_file
from transom.registry.hook_use import HookUse
from transom.specs.convert import convert
from transom.specs.idle_options import without_idle
from transom.specs.plan import plan
from transom.specs.spec import ModelSpec
from transom.specs.use import Assignments, named
from transom.training.world import split_over

__all__ = ["beside_use", "check_same_run", "located", "other_use_of_weights", "sequence_length", "with_settings"]

_KEPT = frozenset(
    {"name", "use"}
    | {f"train.{name}" for name in ("data", "init_from", "tokenizer", "token_dtype", "seed", "steps")}
    | {f"train.{name}" for name in ("log_every", "eval_every", "eval_batches", "checkpoint_every", "keep_checkpoints")}
    | {"train.schedule", "train.microbatches"}
)
"""Where the spec that a run is resumed with may differ from the run's own, which is kept: what a call may have changed
when the run began, and how often one looks."""


def with_settings(
    spec: ModelSpec,
    *,
    steps: int | None = None,
    data: str | Sequence[str] | None = None,
    seed: int | None = None,
    init_from: str | Path | None = None,
    use: Mapping[str, str | Sequence[str]] | None = None,
    hooks: Sequence[str | Mapping[str, Any]] = (),
) -> ModelSpec:
    """Change what a call may change of a spec.

    Args:
        spec: the user's.
        steps: in place of ``train.steps``; `None` = unchanged, as for all of them.
        data: in place of ``train.data``.
        seed: in place of ``train.seed``.
        init_from: in place of ``train.init_from``.
        use: entries added to ``use``, or put in place of its own.
        hooks: entries after those of ``hooks``: a name each, or ``{hook: name, options: {...}}``.

    Returns:
        the spec of the run.

    Raises:
        SpecError: a value that the spec may not have.
    """
    given = {"steps": steps, "data": data if data is None or isinstance(data, str) else tuple(data), "seed": seed}
    given["init_from"] = None if init_from is None else str(init_from)
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes and not use and not hooks:
        return spec
    source = f"{spec.source} with the call's arguments"
    try:
        train = msgspec.structs.replace(spec.train, **changes)
    except ValueError as error:
        raise SpecError(f"train: {error}.", asked_by=source, path="train", file=None, line=None) from error
    chains = {slot: name if isinstance(name, str) else list(name) for slot, name in (use or {}).items()}
    added = convert(list(hooks), list[str | HookUse], source="the call's arguments", under="hooks")
    changed = msgspec.structs.replace(spec, train=train, use=spec.use | chains, hooks=[*spec.hooks, *added])
    return changed.with_origin(source, {}, spec.names() | named(use or {}, "the call's arguments"))


def beside_use(
    spec: ModelSpec, use: Mapping[str, str | Sequence[str]] | None, sizes: ParallelSizes, **planned: Any
) -> ModelSpec:
    """Leave out of a spec's `options` what has no effect where a call's `use` names another.

    A run keeps `use` in its own spec, where nobody could tell any more for whom those options were.

    Args:
        spec: the user's.
        use: entries of the call, which `with_settings` adds after this.
        sizes: over how many ranks what is split.
        planned: further arguments of `transom.plan`.

    Raises:
        TransomError: whatever the plan of the spec with that `use` raises.
    """
    if not use or not spec.options:
        return spec
    return without_idle(spec, plan(split_over(spec, sizes), use=use, **planned).idle_options)


def _beside_use_of(own: ModelSpec, given: ModelSpec) -> ModelSpec:
    """Leave out of a spec's options what the run's own `use` left out of the run's."""
    changed = {slot: name for slot, name in own.use.items() if given.use.get(slot) != name}
    use = Assignments({k: name if isinstance(name, str) else " | ".join(name) for k, name in changed.items()})
    try:
        return given if given.options == own.options else beside_use(given, use, ParallelSizes())
    except TransomError:  # it is of another spec, which the comparison tells better
        return given


def located(spec: ModelSpec) -> ModelSpec:
    """Make the paths of a run absolute, so that it may go on from another working directory.

    Args:
        spec: the user's.

    Returns:
        the spec with absolute paths; what is no file or folder stays as it is written. Where weights of a model with a
        tokenizer are the start, that is the tokenizer, unless the spec names another.

    Raises:
        CheckpointError: the folder whose weights are the start holds no model.
    """
    data = tuple(_absolute(source, built_in="default") for source in spec.train.sources)
    start = None if spec.train.init_from is None else _absolute(spec.train.init_from, built_in=None)
    tokenizer = _absolute(spec.train.tokenizer, built_in="bytes")
    if start is not None and tokenizer == "bytes" and Path(start).is_dir():
        tokenizer = str(tokenizer_file(start) or "bytes")
    changes = {"init_from": start, "tokenizer": tokenizer}
    if data == spec.train.sources and all(getattr(spec.train, name) == value for name, value in changes.items()):
        return spec
    kept = data[0] if isinstance(spec.train.data, str) else data
    train = msgspec.structs.replace(spec.train, data=kept, **changes)
    return msgspec.structs.replace(spec, train=train).with_origin(spec.source, spec.lines(), spec.names())


def _absolute(name: str, built_in: str | None) -> str:
    return name if name == built_in or not Path(name).exists() else str(Path(name).absolute())


def other_use_of_weights(made_for: ModelSpec, spec: ModelSpec) -> list[str]:
    """Compare the spec that weights were made for with the one that they are the start of.

    Args:
        made_for: the weights' own.
        spec: the run's.

    Returns:
        a line for each field of the configs that differs.
    """
    before, now = _flat(made_for), _flat(spec)
    differing = sorted(p for p in before.keys() & now.keys() if "config." in p and before[p] != now[p])
    return [f"{path} is {now[path]!r}; the weights were made for {before[path]!r}" for path in differing]


def sequence_length(spec: ModelSpec) -> int:
    """Give the tokens of a training sequence.

    Raises:
        SpecError: more than the model's ``max_sequence_length``.
    """
    length = spec.train.sequence_length or spec.max_sequence_length
    if length > spec.max_sequence_length:
        raise SpecError(
            f"train.sequence_length is {length}; the model's sequences have at most {spec.max_sequence_length} tokens.",
            asked_by=f"train.sequence_length in {spec.source}",
            hint=f"max_sequence_length: {length}, or a shorter train.sequence_length",
            path="train.sequence_length",
            file=spec.source,
            line=None,
        )
    return length


def check_same_run(
    own: ModelSpec,
    given: ModelSpec,
    *,
    asked: Collection[str] = (),
    seed: int | None = None,
    done: int = 0,
    source: str,
) -> list[str]:
    """Compare the spec of a run with one that it is to be resumed with.

    What the call asks for wins; beside it the run keeps its own, whatever the given spec says.

    Args:
        own: the run's.
        given: as the user wrote it, with the steps and the data that the call asks for.
        asked: which of ``"steps"`` and ``"data"`` the call asks for.
        seed: that the call asks for; `None` = the run's.
        done: steps that the run has done.
        source: where the run's lies, for the error.

    Returns:
        one line for each difference that does not matter, which says what holds.

    Raises:
        CheckpointError: they compute something else; it lists where.
    """
    before, now = _flat(own), _flat(_beside_use_of(own, given))
    differing = [path for path in sorted(before.keys() | now.keys()) if before.get(path) != now.get(path)]
    refused = [_line(path, own, _value(given, path)) for path in differing if path not in _KEPT]
    if seed is not None and seed != own.train.seed:
        refused.append(_line("train.seed", own, seed))
    if refused:
        raise CheckpointError(
            f"the run is of another spec: {len(refused)} difference{'s' if len(refused) > 1 else ''}.",
            asked_by=source,
            failed=refused,
            hint="another folder with --out, or the spec in the run's folder",
            differences=tuple(refused),
        )
    kept = [path for path in differing if path not in ("train.steps", "train.data")]
    lines = [f"{path} stays {_value(own, path)!r}, as in the run, not {_value(given, path)!r}" for path in kept]
    lines += _of_data(own.train.sources, given.train.sources, "data" in asked)
    return lines + _of_steps(own.train.steps, given.train.steps, "steps" in asked, done)


def _of_data(own: Sequence[str], given: Sequence[str], is_asked: bool) -> list[str]:
    if own == given:
        return []
    mine, other = ", ".join(own), ", ".join(given)
    if is_asked:
        return [f"the data is read from {other}, as --data says; the run had {mine}"]
    return [f"the data is read from {mine}, as the run's own spec says, not from {other}; --data changes that"]


def _of_steps(own: int, given: int, is_asked: bool, done: int) -> list[str]:
    if own == given:
        return []
    if is_asked and given > done:
        return [f"going on to step {given}, as --steps says; the run had {own}"]
    if is_asked:
        return [f"nothing is left to do: --steps says {given}, and {done} are done"]
    if own > done:
        return [f"going on to step {own}, as the run's own spec says, not to {given}; --steps changes that"]
    further = f"; --steps {given} goes further" if given > done else ""
    return [f"the run's own spec says {own} step{'' if own == 1 else 's'}, and all are done{further}"]


def _flat(spec: ModelSpec) -> dict[str, Any]:
    train = {f"train.{name}": getattr(spec.train, name) for name in spec.train.__struct_fields__}
    configs = {name: getattr(spec, name) for name in ("config", "encoder_config")}
    fields = {f"{name}.{key}": value for name, c in configs.items() if c for key, value in c.to_dict().items()}
    others = {name: getattr(spec, name) for name in spec.__struct_fields__ if name not in ("train", *configs)}
    return others | fields | train


def _value(spec: Any, path: str) -> Any:
    # Only one of the two may have an encoder_config.
    return reduce(lambda found, name: getattr(found, name, None), path.split("."), spec)


def _line(path: str, own: ModelSpec, given: Any) -> str:
    return f"{path} is {_value(own, path)!r} in the run, not {given!r}"
