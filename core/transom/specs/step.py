"""What one step of the optimizer computes on a rank: how many tokens, in how many passes, in which dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transom.errors import ParallelError
from transom.specs.totals import item_size

if TYPE_CHECKING:
    from transom.specs.plan import Plan
    from transom.specs.train_spec import TrainSpec
    from transom.specs.world import World
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["Step"]


@dataclass(frozen=True)
class Step:
    """What one rank computes in one step.

    Args:
        sequences: of one forward pass of a rank.
        passes: forward passes of a step: accumulated ones, and parts of a batch in a pipeline.
        batches: of a step: accumulated ones.
        read: tokens of a sequence that an encoder reads, of which context-parallel ranks have a part each.
        written: likewise, that a decoder goes through; those of a decoder alone are as many.
        width: bytes of a parameter at rest.
        exchanged_width: bytes of a number of hidden states, and of a bias that is lent to ranks.
        product_width: bytes of what matrix products make.
        gathered_width: bytes of a parameter that FSDP2 gathers.
        summed_width: bytes of a gradient that FSDP2 sums.
    """

    sequences: int
    passes: int
    batches: int
    read: int
    written: int
    width: int = 4
    exchanged_width: int = 4
    product_width: int = 4
    gathered_width: int = 4
    summed_width: int = 4

    @classmethod
    def of(cls, plan: Plan, world: World) -> Step:
        """Read the ``train`` section of a plan's spec, and what the world says of it.

        Without ``batch``, a batch of ``train.batch_size`` that does not divide is one of a sequence for each rank and
        part.

        Args:
            plan: of the whole model.
            world: over whose data-parallel ranks and parts a batch is divided.

        Raises:
            ParallelError: ``batch`` or a sequence does not divide.

        Example:
            >>> from transom import plan
            >>> from transom.specs.world import World
            >>> step = Step.of(plan("tiny-llama"), World(dp=4))
            >>> step.sequences, step.passes, step.written
            (2, 1, 256)
        """
        train = plan.spec.train
        batch = world.batch or train.batch_size
        parts = _parts(batch // world.dp, train, world) if batch % world.dp == 0 else world.microbatches or world.pp
        each, left = divmod(batch, parts * world.dp)
        if left and world.batch:
            raise ParallelError(
                f"a batch of {batch} sequences does not divide over {world.dp} data-parallel ranks"
                f"{f' and {parts} parts' if parts > 1 else ''}.",
                asked_by="--world",
                hint=f"a batch that is a multiple of {parts * world.dp}",
            )
        width = item_size(plan.context.dtype)
        narrow = 2 if train.precision == "bfloat16" else width
        read = written = train.sequence_length or plan.spec.max_sequence_length
        if world.cp > 1 and read % (2 * world.cp):
            raise ParallelError(
                f"sequences of {read} tokens do not divide over {world.cp} context-parallel ranks, two chunks each.",
                asked_by="--world",
                hint=f"a train.sequence_length that is a multiple of {2 * world.cp}",
            )
        if train.objective == "span_corruption":
            read, written = _corrupted(read, train)
        return cls(
            sequences=1 if left else each,
            passes=train.accumulate * parts,
            batches=train.accumulate,
            read=read // world.cp,
            written=written // world.cp,
            width=width,
            # Where FSDP2 gathers parameters in bfloat16, embeddings and norms are of that dtype too.
            exchanged_width=narrow if world.data > 1 else width,
            product_width=narrow,
            gathered_width=narrow,
            summed_width=max(narrow, 4) if narrow != width else width,
        )

    @property
    def parts(self) -> int:
        """Parts of a batch that go through the stages one after another."""
        return self.passes // self.batches

    def tokens(self, path: str) -> int:
        """Count the tokens that a place of a model sees in one forward pass: of what is read, or of what is written."""
        reads = path.startswith("encoder.") or path.endswith("cross_attention.linear_kv")
        return self.sequences * (self.read if reads else self.written)

    def hidden_bytes(self, config: TransformerConfig, world: World, path: str = "") -> int:
        """Give the bytes of the hidden states that one pipeline stage hands to the next in one forward pass.

        Args:
            config: of the model.
            world: whose tensor-parallel ranks sequence parallelism splits them over.
            path: of a place of the stack whose they are, as for `tokens`.
        """
        width = max(self.exchanged_width, 4) if config.fp32_residual_connection else self.exchanged_width
        return self.tokens(path) * config.hidden_size * width // (world.tp if world.sp else 1)


def _parts(sequences: int, train: TrainSpec, world: World) -> int:
    """Say into how many parts a batch is split, as `transom.distributed.schedule.microbatches_of` does."""
    if world.microbatches or world.pp == 1:
        return world.microbatches or 1
    usual = (world.pp * times for times in range(4, 0, -1))
    return train.microbatches or next((parts for parts in usual if sequences % parts == 0), world.pp)


def _corrupted(length: int, train: TrainSpec) -> tuple[int, int]:
    """Say how long sequences are that spans were cut out of, and what is to be written then: sentinels and spans."""
    noise = min(max(round(length * train.noise_density), 1), length - 1)
    spans = min(max(round(noise / train.mean_span_length), 1), length - noise)
    return length - noise + spans, noise + spans + 1
