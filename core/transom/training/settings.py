"""The spec of a run: the user's, with what the call changes; and whether a run may go on under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import msgspec

from transom.errors import CheckpointError, SpecError
from transom.specs.spec import ModelSpec
from transom.specs.use import named

__all__ = ["check_same_run", "located", "sequence_length", "with_settings"]

_KEPT = frozenset(
    {"name", "use"}
    | {f"train.{name}" for name in ("data", "tokenizer", "token_dtype", "seed", "steps")}
    | {f"train.{name}" for name in ("log_every", "eval_every", "eval_batches", "checkpoint_every", "keep_checkpoints")}
)
"""Where the spec that a run is resumed with may differ from the run's own, which is kept: what a call may have changed
when the run began, and how often one looks."""


def with_settings(
    spec: ModelSpec,
    *,
    steps: int | None = None,
    data: str | Sequence[str] | None = None,
    seed: int | None = None,
    use: Mapping[str, str | Sequence[str]] | None = None,
) -> ModelSpec:
    """Change what a call may change of a spec.

    Args:
        spec: the user's.
        steps: in place of ``train.steps``; `None` = unchanged, as for all of them.
        data: in place of ``train.data``.
        seed: in place of ``train.seed``.
        use: entries added to ``use``, or put in place of its own.

    Returns:
        the spec of the run.

    Raises:
        SpecError: a value that the spec may not have.
    """
    given = {"steps": steps, "data": data if data is None or isinstance(data, str) else tuple(data), "seed": seed}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes and not use:
        return spec
    source = f"{spec.source} with the call's arguments"
    try:
        train = msgspec.structs.replace(spec.train, **changes)
    except ValueError as error:
        raise SpecError(f"train: {error}.", asked_by=source, path="train", file=None, line=None) from error
    chains = {slot: name if isinstance(name, str) else list(name) for slot, name in (use or {}).items()}
    changed = msgspec.structs.replace(spec, train=train, use=spec.use | chains)
    return changed.with_origin(source, {}, spec.names() | named(use or {}, "the call's arguments"))


def located(spec: ModelSpec) -> ModelSpec:
    """Make the paths of data and tokenizer absolute, so that a run may go on from another working directory.

    Args:
        spec: the user's.

    Returns:
        the spec with absolute paths; what is no file or folder stays as it is written.
    """
    data = tuple(_absolute(source, built_in="default") for source in spec.train.sources)
    tokenizer = _absolute(spec.train.tokenizer, built_in="bytes")
    if (data, tokenizer) == (spec.train.sources, spec.train.tokenizer):
        return spec
    kept = data[0] if isinstance(spec.train.data, str) else data
    train = msgspec.structs.replace(spec.train, data=kept, tokenizer=tokenizer)
    return msgspec.structs.replace(spec, train=train).with_origin(spec.source, spec.lines(), spec.names())


def _absolute(name: str, built_in: str) -> str:
    return name if name == built_in or not Path(name).exists() else str(Path(name).absolute())


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


def check_same_run(own: ModelSpec, given: ModelSpec, *, seed: int | None = None, source: str) -> list[str]:
    """Compare the spec of a run with one that it is to be resumed with.

    Args:
        own: the run's.
        given: as the user wrote it.
        seed: that the call asks for; `None` = the run's.
        source: where the run's lies, for the error.

    Returns:
        one line for each difference that does not matter: the run keeps its own.

    Raises:
        CheckpointError: they compute something else; it lists where.
    """
    before, now = _flat(own), _flat(given)
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
    return [_line(path, own, _value(given, path)) for path in differing]


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
