"""The `train:` section of a spec: the data, the optimizer and how often to look."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

__all__ = ["START", "ScheduleName", "TrainSpec"]

ScheduleName = Literal["gpipe", "1f1b", "interleaved", "zero_bubble"]
"""How a pipeline orders the forward and backward passes of the parts of a batch."""

START = 0
"""The id with which everything begins that is written by a model which learned by span corruption."""


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a model is trained; every field has a default.

    Args:
        objective: what is learned: the ``"next_token"``; or with ``"span_corruption"``, which is for encoder-decoders,
            what was cut out of a sequence.
        noise_density: share of a sequence's tokens that is cut out.
        mean_span_length: tokens of a span that is cut out, on average.
        data: a text file, a folder of ``*.txt`` and ``*.md``, or token ids (``.npy``, ``.bin``); a list of these; or
            ``"default"``, English text that comes with Python.
        init_from: a folder whose weights training begins with: of Hugging Face's form, of a run, or a checkpoint;
            None = weights are drawn.
        tokenizer: ``"bytes"`` (256 ids), or the path of a Hugging Face ``tokenizer.json``.
        token_dtype: of ``.bin`` files, little endian; ``.npy`` files say theirs.
        validation_fraction: share of the tokens, taken from the end, that is never trained on.
        sequence_length: tokens of a training sequence; None = the model's ``max_sequence_length``.
        batch_size: sequences of one forward pass.
        accumulate: forward passes of one step of the optimizer.
        schedule: of a pipeline, where ranks share the layers: ``"gpipe"``, ``"1f1b"``, ``"interleaved"`` (with virtual
            stages) or ``"zero_bubble"``; None = interleaved with virtual stages, else 1f1b.
        microbatches: parts into which a pipeline splits each data-parallel rank's share of ``batch_size``; None = four
            for each stage, or fewer where that does not divide.
        steps: steps of the optimizer.
        learning_rate: at the end of the warm-up.
        min_learning_rate: at the last step; None = a tenth of ``learning_rate``.
        warmup_steps: steps over which the learning rate rises linearly from 0; a cosine to its minimum follows.
        weight_decay: AdamW's, on matrices only.
        betas: AdamW's decay rates of the first and second moment.
        eps: AdamW's.
        grad_clip: largest norm of all gradients together; 0 = off.
        precision: dtype of activations; ``"bfloat16"`` = autocast, with parameters and optimizer as they are.
        log_every: steps between lines of metrics.
        eval_every: steps between looks at the validation loss; 0 = only at the end.
        eval_batches: batches of one look, the same ones each time.
        checkpoint_every: steps between checkpoints; 0 = only at the end.
        keep_checkpoints: newest checkpoints that are kept; 0 = all.
        seed: of the initial weights, the order of the data and dropout.

    Example:
        >>> TrainSpec(steps=500, learning_rate=2e-3).batch_size
        16
    """

    objective: Literal["next_token", "span_corruption"] = "next_token"
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    data: str | tuple[str, ...] = "default"
    init_from: str | None = None
    tokenizer: str = "bytes"
    token_dtype: Literal["uint16", "uint32"] = "uint16"
    validation_fraction: float = 0.1
    sequence_length: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    schedule: ScheduleName | None = None
    microbatches: int | None = None
    steps: int = 1000
    learning_rate: float = 1e-3
    min_learning_rate: float | None = None
    warmup_steps: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    grad_clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 10
    eval_every: int = 100
    eval_batches: int = 8
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "steps", "log_every", "eval_batches"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("warmup_steps", "eval_every", "checkpoint_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("weight_decay", "grad_clip"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more, and finite")
        for name in ("learning_rate", "eps"):
            _require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "more than 0, and finite")
        self._check_related()

    def _check_related(self) -> None:
        density, span = self.noise_density, self.mean_span_length
        _require(0 < density < 1, "noise_density", density, "between 0 and 1, without either")
        _require(1 <= span < math.inf, "mean_span_length", span, "1 or more, and finite")
        parts = self.microbatches
        _require(parts is None or parts >= 1, "microbatches", parts, "1 or more")
        length, fraction, low = self.sequence_length, self.validation_fraction, self.min_learning_rate
        _require(length is None or length >= 1, "sequence_length", length, "1 or more")
        _require(0 < fraction < 1, "validation_fraction", fraction, "between 0 and 1, without either")
        _require(
            low is None or 0 <= low <= self.learning_rate,
            "min_learning_rate",
            low,
            f"from 0 to learning_rate ({self.learning_rate})",
        )
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers from 0 to below 1")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "from 0 to 2**63 - 1")
        _require(bool(self.data) and all(self.sources), "data", self.data, 'a path, a list of paths, or "default"')
        _require(self.init_from != "", "init_from", self.init_from, "a folder with a model, or null")
        _require(bool(self.tokenizer), "tokenizer", self.tokenizer, '"bytes" or the path of a tokenizer.json')

    @property
    def sources(self) -> tuple[str, ...]:
        """The entries of `data`, always as a tuple."""
        return (self.data,) if isinstance(self.data, str) else self.data

    @property
    def final_learning_rate(self) -> float:
        """The learning rate of the last step."""
        return self.learning_rate / 10 if self.min_learning_rate is None else self.min_learning_rate


def _require(holds: bool, name: str, value: object, right: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {right}")
