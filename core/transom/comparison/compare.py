"""Compare implementations of a slot in place: in a model of one's own, with the inputs that reach it there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from transom.comparison.agreement import ALLOWED, Allowed, difference, disagreement
from transom.comparison.entrants import Entrants, entrants, reason
from transom.comparison.place import captured, run_model
from transom.comparison.timing import Times, interleaved
from transom.comparison.trial import Results, Trial
from transom.errors import InputError
from transom.specs.load import load_spec
from transom.specs.spec import ModelSpec

__all__ = ["Comparison", "Outcome", "Shape", "compare"]

Shape = tuple[int, int]
"""Rows and tokens of a batch."""

_TOKENS = 128  # of a batch whose shape nobody chose


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one implementation did at one shape.

    Args:
        name: its name, as it was asked for, or else qualified.
        forward: times of the forward pass.
        both: times of forward and backward pass; `None` in mode ``"infer"``.
        output_error: largest difference from the first implementation's outputs, relative to their largest element;
            infinite where shapes differ or there is a NaN; `None` where weights are others.
        gradient_error: likewise of all gradients, of inputs and parameters; `None` in mode ``"infer"`` too.
        mistake: why it is another function than the first; empty = it is the same, but for rounding.
    """

    name: str
    forward: Times
    both: Times | None
    output_error: float | None
    gradient_error: float | None
    mistake: str = ""

    @property
    def counted(self) -> Times:
        """The times that decide who is faster."""
        return self.forward if self.both is None else self.both


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Implementations of a slot side by side.

    Args:
        slot: as it was asked for.
        path: of the place in the model.
        mode: ``"train"`` or ``"infer"``.
        device: type of the device.
        dtype: of the parameters.
        compiled: whether modules were compiled.
        outcomes: by shape, the reference first.
        refused: who cannot serve or fails, and why.
    """

    slot: str
    path: str
    mode: Literal["train", "infer"]
    device: str
    dtype: str
    compiled: bool = False
    outcomes: Mapping[Shape, tuple[Outcome, ...]]
    refused: Mapping[str, str]

    def mistakes(self) -> dict[str, str]:
        """Name those that are another function than the first at any shape, and why."""
        found: dict[str, str] = {}
        for (rows, tokens), outcomes in self.outcomes.items():
            for each in outcomes:
                if each.mistake:
                    where = "" if each.output_error is None else f", at {rows} x {tokens} tokens"
                    found.setdefault(each.name, each.mistake + where)
        return found

    def order(self) -> tuple[str, ...]:
        """Name the implementations that are the same function, the fastest first.

        They are sorted by the geometric mean over the shapes of their ratios to the first.
        """
        wrong = self.mistakes()
        logs: dict[str, list[float]] = {}
        for outcomes in self.outcomes.values():
            for outcome in (each for each in outcomes if each.name not in wrong):
                logs.setdefault(outcome.name, []).append(math.log(outcome.counted.ratio(outcomes[0].counted)))
        return tuple(sorted(logs, key=lambda name: sum(logs[name])))


def compare(
    spec: str | Path | Mapping[str, Any] | ModelSpec,
    slot: str = "core_attention",
    *,
    implementations: Sequence[str] = (),
    shapes: Sequence[Shape] | None = None,
    mode: Literal["train", "infer"] = "train",
    device: str = "cpu",
    dtype: str | None = None,
    use: Mapping[str, str] | None = None,
    rounds: int = 7,
    compiles: bool = False,
) -> Comparison:
    """Time implementations of a slot in a model, on random tokens, and compare what they compute.

    A model is built with each, all with the same weights. The first place of the slot is called with copies of the
    inputs that reached it in the first model, so that only its own time counts. All take turns.

    Args:
        spec: as for `transom.load_spec`.
        slot: whose implementations are compared; ``linear`` = both linears.
        implementations: their names, the reference first; empty = core's own and every other that is installed.
        shapes: batches, as (rows, tokens); `None` = 1 x 128 and 8 x 128, with fewer tokens where the model takes fewer.
        mode: ``"train"`` compares gradients and times the backward pass too.
        device: type of the device.
        dtype: of the parameters; `None` = the spec's.
        use: other entries over the spec's ``use``.
        rounds: how often each is timed.
        compiles: compile each with `torch.compile`, anew for each shape.

    Returns:
        the comparison. Who cannot serve the model, or raises, is in ``refused`` with the reason; whoever computes
        something else than the first is timed, but gets no place in the order.

    Raises:
        InputError: nobody can serve, the reference fails, or a shape does not fit the model.
        SpecError: the spec is wrong, or its model has no place of this slot.
        UnknownImplementationError: a name that nothing installed has.

    Example:
        >>> found = compare("tiny-llama", "norm", implementations=["torch_norm"], shapes=[(1, 8)], rounds=2)
        >>> found.order(), found.outcomes[1, 8][0].output_error
        (('torch_norm',), 0.0)
    """
    given = load_spec(spec)
    if shapes is None:
        shapes = [(rows, min(_TOKENS, given.max_sequence_length)) for rows in (1, 8)]
    _check(given, shapes, rounds, device)
    found = entrants(given, slot, implementations, {"mode": mode, "device": device, "dtype": dtype}, use or {})
    failed: dict[str, str] = {}
    how = _How(
        slot=slot, vocab=given.vocab_size, trains=mode == "train", device=device, rounds=rounds, compiles=compiles
    )
    outcomes = {shape: _outcomes(found, shape, how, failed) for shape in dict.fromkeys(shapes)}
    return Comparison(
        slot=slot,
        path=found.path,
        mode=mode,
        device=device,
        dtype=found.dtype,
        compiled=compiles,
        outcomes={shape: tuple(e for e in each if e.name not in failed) for shape, each in outcomes.items()},
        refused=found.refused | failed,
    )


def _check(spec: ModelSpec, shapes: Sequence[Shape], rounds: int, device: str) -> None:
    longest = spec.max_sequence_length
    for rows, tokens in shapes:
        if not (rows >= 1 and 1 <= tokens <= longest):
            raise InputError(
                f"a batch of {rows} x {tokens} tokens does not fit {spec.name}.",
                hint=f"--shapes {max(rows, 1)}x{min(max(tokens, 1), longest)}: at least 1 row, and 1 to {longest} "
                "tokens (its max_sequence_length)",
                shape=(rows, tokens),
            )
    if rounds < 1:
        raise InputError(f"{rounds} rounds measure nothing.", hint="at least 1, better 7", rounds=rounds)
    if not shapes or device == "meta":
        what = "the device meta" if shapes else "no shape"
        raise InputError(f"with {what} nothing is computed that could be timed.", hint="--device cpu --shapes 1x128")


@dataclass(frozen=True, kw_only=True)
class _How:
    slot: str
    vocab: int
    trains: bool
    device: str
    rounds: int
    compiles: bool


def _outcomes(found: Entrants, shape: Shape, how: _How, failed: dict[str, str]) -> tuple[Outcome, ...]:
    """Compare everybody at one shape; who raises joins those that failed."""
    if how.compiles:
        torch.compiler.reset()  # what another shape compiled counts towards torch's limit
    tokens = torch.randint(how.vocab, shape, generator=torch.Generator().manual_seed(0)).to(how.device)
    reference = next(iter(found.modules))
    learns = how.slot == "loss"
    call = captured(found.modules[reference], lambda: run_model(found.model, tokens, learns=learns), trains=how.trains)
    trials = {
        name: Trial(module, call, trains=how.trains, compiles=how.compiles)
        for name, module in found.modules.items()
        if name not in failed
    }
    results: dict[str, Results] = {}
    for name in list(trials):
        try:
            results[name] = trials[name].results()
        except Exception as error:  # a plugin may raise whatever it likes
            failed[name] = f"it fails at {shape[0]} x {shape[1]} tokens: {reason(error)}"
            del trials[name]
    _check_reference(reference, results, failed)
    forward = interleaved({name: each.forward for name, each in trials.items()}, rounds=how.rounds, device=how.device)
    both = {name: each.forward_and_backward for name, each in trials.items()} if how.trains else {}
    both_times = interleaved(both, rounds=how.rounds, device=how.device) if both else {}
    allowed = ALLOWED[found.dtype]
    return tuple(
        _outcome(name, found, results[name], results[reference], allowed, forward[name], both_times.get(name))
        for name in trials
    )


def _check_reference(name: str, results: Mapping[str, Results], failed: Mapping[str, str]) -> None:
    hint = "another one first: --impl A,B; or other --shapes"
    if name in failed:
        raise InputError(f"{name}, which others are compared with, cannot run.", failed=[failed[name]], hint=hint)
    computed = [*results[name].outputs, *(results[name].gradients or [])]
    if any(bool(each.isnan().any()) for each in computed):
        raise InputError(f"{name}, which others are compared with, gives NaN.", hint=hint, name=name)


def _outcome(
    name: str,
    found: Entrants,
    own: Results,
    reference: Results,
    allowed: Allowed,
    forward: Times,
    both: Times | None,
) -> Outcome:
    if name in found.strangers:
        mistake = found.strangers[name]
        return Outcome(name=name, forward=forward, both=both, output_error=None, gradient_error=None, mistake=mistake)
    mistakes = [disagreement("outputs", own.outputs, reference.outputs, allowed.outputs)]
    gradient_error = None
    if own.gradients is not None and reference.gradients is not None:
        mistakes.append(disagreement("gradients", own.gradients, reference.gradients, allowed.gradients))
        gradient_error = difference(own.gradients, reference.gradients)
    if own.changed_inputs and not reference.changed_inputs:
        mistakes.append("it writes into its inputs")
    return Outcome(
        name=name,
        forward=forward,
        both=both,
        output_error=difference(own.outputs, reference.outputs),
        gradient_error=gradient_error,
        mistake="; ".join(each for each in mistakes if each),
    )
