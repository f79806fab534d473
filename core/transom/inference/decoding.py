"""How a model is asked for the next tokens of a batch: with caches or without, reading one sequence or two."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from transom.errors import InputError
from transom.inference.compiled import (
    OF_ONE_ROW,
    Step,
    compiled_step,
    decode_step,
    rounded_capacity,
    write_step,
)
from transom.inference.settings import Compile

__all__ = ["CachingModel", "Decoding", "Run", "decoding", "is_encoder_decoder", "longest_sequence"]


@runtime_checkable
class CachingModel(Protocol):
    """A model that can keep the keys and values of the tokens it has seen.

    Attributes:
        cache: `transom.slots.kv_cache.KVCache`, or `None`.
    """

    cache: Any

    def setup_caches(self, batch_size: int, dtype: torch.dtype | None = None, *, capacity: int | None = None) -> None:
        """Make room for the sequences of a batch, of ``capacity`` tokens; `None` = as long as the model's may be."""
        ...

    def caches_are_enabled(self) -> bool:
        """Whether there is room."""
        ...

    def reset_caches(self) -> None:
        """Forget what is kept."""
        ...

    def delete_caches(self) -> None:
        """Give the room back."""
        ...

    def reorder_caches(self, rows: Tensor, /) -> None:
        """Let row i go on from what row ``rows[i]`` has seen."""
        ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a batch is run.

    Args:
        length: most positions of a row; `None` = as the model has it.
        copies: rows of each prompt, one after another.
        start_id: first id of what an encoder-decoder writes.
        use_cache: take the model's caches, if it can have them.
        compile: whether, or by what, the step of one token is compiled.
    """

    length: int | None
    copies: int = 1
    start_id: int | None = None
    use_cache: bool = True
    compile: Compile = False


class Decoding(Protocol):
    """A batch of sequences that grow by one token a step."""

    def start(self) -> Tensor:
        """Run what is given; return logits ``[b, v]`` of each row's first new token."""
        ...

    def step(self, tokens: Sequence[int | None], /) -> Tensor:
        """Add a token to each row, `None` to those that have ended; return logits ``[b, v]`` of the next."""
        ...

    def reorder(self, rows: Sequence[int], /) -> None:
        """Let row i go on from what row ``rows[i]`` has."""
        ...


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a model reads one sequence and writes another."""
    return callable(getattr(model, "encode", None)) and callable(getattr(model, "decode", None))


def longest_sequence(model: nn.Module) -> int | None:
    """Give the longest sequence of a model, in tokens; `None` = it does not say."""
    spec = getattr(getattr(model, "plan", None), "spec", None)
    longest: int | None = getattr(model, "max_seq_len", None) if spec is None else spec.max_sequence_length
    return longest


@contextmanager
def decoding(model: nn.Module, prompts: Sequence[list[int]], run: Run) -> Iterator[Decoding]:
    """Take a model for a batch: until the end it is in evaluation mode, and its caches are taken.

    Args:
        model: token ids ``[b, s]`` to logits ``[b, s, v]``, or an encoder-decoder.
        prompts: ids; of an encoder-decoder, what it reads.
        run: how.

    Raises:
        InputError: the model has no caches to compile with.
        CacheError: the model was not built for caches, or its own are too small.
    """
    is_cached = run.use_cache and isinstance(model, CachingModel)
    if run.compile and not is_cached:
        raise InputError(
            f"compile needs caches, and {type(model).__name__} has none.",
            asked_by="compile",
            hint="compile=False",
            name="compile",
            value=run.compile,
        )
    caches: AbstractContextManager[None] = nullcontext()
    if is_cached:
        caches = _caches(model, len(prompts) * run.copies, run)
    with _evaluating(model), caches:
        if is_encoder_decoder(model):
            yield _EncoderDecoder(model, prompts, run, is_cached)
        else:
            yield _CachedDecoder(model, prompts, run) if is_cached else _WholeSequences(model, prompts, run)


@final
class _WholeSequences:
    """Every step runs all sequences anew, padded on the right, where causality keeps padding from being seen."""

    def __init__(self, model: nn.Module, prompts: Sequence[list[int]], run: Run) -> None:
        self.model = model
        self.sequences = [list(prompt) for prompt in prompts for _ in range(run.copies)]
        self.device = _device(model)

    def start(self) -> Tensor:
        return self._run()

    def step(self, tokens: Sequence[int | None], /) -> Tensor:
        for sequence, token in zip(self.sequences, tokens, strict=True):
            if token is not None:
                sequence.append(token)
        return self._run()

    def reorder(self, rows: Sequence[int], /) -> None:
        self.sequences = [list(self.sequences[row]) for row in rows]

    @torch.inference_mode()
    def _run(self) -> Tensor:
        ids, lengths = _padded(self.sequences, self.device)
        logits: Tensor = self.model(ids)  # [b, s] -> [b, s, v]
        return logits[torch.arange(len(lengths), device=self.device), lengths - 1]


@final
class _CachedDecoder:
    """Prompts are padded on the left and run once; then every step runs one token a row.

    Rows count their own positions. Those of prompts of one length share them, which spares the masks.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[list[int]], run: Run) -> None:
        self.model: Any = model
        self.prompts = prompts
        self.copies = run.copies
        self.lengths = [len(prompt) for prompt in prompts]
        self.is_even = len(set(self.lengths)) == 1
        self.device = _device(model)
        self.next = _step_of(decode_step, model, run, self.is_even, len(prompts) * run.copies)
        self.is_compiled = bool(run.compile)

    @torch.inference_mode()
    def start(self) -> Tensor:
        s = max(self.lengths)
        padded = [[0] * (s - len(prompt)) + prompt for prompt in self.prompts]
        if self.is_even:
            positions = torch.arange(s, device=self.device)
        else:
            rows = [[-1] * (s - n) + list(range(n)) for n in self.lengths]
            positions = torch.tensor(rows, device=self.device)
        # A prompt's other logits, of a large vocabulary, would take more memory than all the rest.
        skips = "last_only" in inspect.signature(self.model.forward).parameters
        arguments = {"last_only": True} if skips else {}
        ids = torch.tensor(padded, device=self.device)
        logits: Tensor = self.model(ids, input_pos=positions, **arguments)[:, -1]
        if self.copies == 1:
            return logits
        self.reorder([row for row in range(len(self.prompts)) for _ in range(self.copies)])
        return logits.repeat_interleave(self.copies, dim=0)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int | None], /) -> Tensor:
        ids = torch.tensor([[token or 0] for token in tokens], device=self.device)
        if self.is_even:
            positions = torch.tensor(self.lengths[:1], device=self.device)
            self.lengths = [n + 1 for n in self.lengths]
        else:
            rows = [[-1] if token is None else [n] for token, n in zip(tokens, self.lengths, strict=True)]
            positions = torch.tensor(rows, device=self.device)
            self.lengths = [n + (token is not None) for token, n in zip(tokens, self.lengths, strict=True)]
        if self.is_compiled:
            self.model.cache.reserve(len(tokens), max(self.lengths))
        return self.next(self.model, ids, positions, None)

    def reorder(self, rows: Sequence[int], /) -> None:
        self.model.reorder_caches(torch.tensor(rows, device=self.device))
        self.lengths = [self.lengths[row] for row in rows]


@final
class _EncoderDecoder:
    """What is read is padded on the right and run once; all rows write from position 0."""

    def __init__(self, model: nn.Module, prompts: Sequence[list[int]], run: Run, is_cached: bool) -> None:
        self.model: Any = model
        self.device = _device(model)
        self.is_cached, self.copies = is_cached, run.copies
        self.is_compiled = bool(run.compile)
        assert run.start_id is not None, "checked with the prompts"
        self.written = [[run.start_id] for _ in prompts for _ in range(run.copies)]
        self.ids, lengths = _padded(prompts, self.device)
        keep = torch.arange(self.ids.shape[1], device=self.device) < lengths[:, None]
        self.keep = None if bool(keep.all()) else keep
        self.states: Tensor | None = None
        sizes = (tuple(self.ids.shape), self.keep is None)
        self.next = _step_of(write_step, model, run, sizes, len(self.written))

    @torch.inference_mode()
    def start(self) -> Tensor:
        self.states = self.model.encode(self.ids, self.keep).repeat_interleave(self.copies, dim=0)  # [b, t, h]
        self.keep = None if self.keep is None else self.keep.repeat_interleave(self.copies, dim=0)
        return self._run(self.states)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int | None], /) -> Tensor:
        for sequence, token in zip(self.written, tokens, strict=True):
            sequence.append(token or 0)
        if not self.is_cached:
            return self._run(self.states)
        last = len(self.written[0]) - 1
        if self.is_compiled:
            self.model.cache.reserve(len(self.written), last + 1)
        ids = torch.tensor([[sequence[-1]] for sequence in self.written], device=self.device)
        return self.next(self.model, ids, torch.tensor([last], device=self.device), self.keep)

    def reorder(self, rows: Sequence[int], /) -> None:
        index = torch.tensor(rows, device=self.device)
        assert self.states is not None, "start() comes first"
        if self.is_cached:
            self.model.reorder_caches(index)
        self.states = self.states.index_select(0, index)
        self.keep = None if self.keep is None else self.keep.index_select(0, index)
        self.written = [list(self.written[row]) for row in rows]

    def _run(self, states: Tensor | None) -> Tensor:
        """Write all that is written from its beginning."""
        positions = torch.arange(len(self.written[0]), device=self.device)
        logits: Tensor = self.model.decode(
            torch.tensor(self.written, device=self.device),
            states,
            encoder_decoder_attn_mask=self.keep,
            input_pos=positions if self.is_cached else None,
        )
        return logits[:, -1]


def _step_of(step: Step, model: nn.Module, run: Run, sizes: object, rows: int) -> Step:
    if not run.compile:
        return step
    is_row = rows == 1 and run.compile is True and _device(model).type == "cpu"
    return compiled_step(OF_ONE_ROW[step] if is_row else step, model, run.compile, (sizes, rows))


def _padded(sequences: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad on the right; return ids ``[b, s]`` and lengths ``[b]``."""
    longest = max(map(len, sequences))
    padded = [sequence + [0] * (longest - len(sequence)) for sequence in sequences]
    lengths = [len(sequence) for sequence in sequences]
    return torch.tensor(padded, device=device), torch.tensor(lengths, device=device)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    if any(training for _, training in modes):
        model.eval()
    try:
        yield
    finally:
        if model.training != modes[0][1]:
            model.train(modes[0][1])
        for module, training in modes:
            if module.training != training:  # one that is trained, or rests, while the others do not
                module.training = training


@contextmanager
def _caches(model: Any, rows: int, run: Run) -> Iterator[None]:
    borrowed = model.caches_are_enabled()
    if borrowed:
        model.reset_caches()
        model.cache.check(rows, run.length or 0)
    else:
        capacity = rounded_capacity(run.length, longest_sequence(model)) if run.compile else run.length
        model.setup_caches(rows, capacity=capacity)
    try:
        yield
    finally:
        model.reset_caches() if borrowed else model.delete_caches()
