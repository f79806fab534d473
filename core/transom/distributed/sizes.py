"""How many processes share what, and whether they can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transom.errors import ParallelError

if TYPE_CHECKING:
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["ParallelSizes"]


@dataclass(frozen=True)
class ParallelSizes:
    """How many ranks share what.

    Args:
        tp: ranks that share each layer's weights.
        pp: ranks that share the layers.
        dp: ranks that see other data.
        cp: ranks that share each sequence.

    Example:
        >>> sizes = ParallelSizes(tp=2, dp=3)
        >>> sizes.ranks, str(sizes)
        (6, 'tp=2,pp=1,dp=3,cp=1')
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "cp"):
            if getattr(self, name) < 1:
                raise ParallelError(
                    f"{name} is {getattr(self, name)}, not a number of ranks.", hint="a number from 1 on", size=name
                )

    def __str__(self) -> str:
        return f"tp={self.tp},pp={self.pp},dp={self.dp},cp={self.cp}"

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.tp * self.pp * self.dp * self.cp

    @property
    def data(self) -> int:
        """Those that see other tokens, of other sequences or of the same: parameters are split over all of them."""
        return self.dp * self.cp

    @classmethod
    def of_world(cls, world: int, *, tp: int = 1, pp: int = 1, dp: int | None = None, cp: int = 1) -> ParallelSizes:
        """Fit sizes to the number of processes that were started.

        Args:
            world: how many processes there are.
            tp: as for the class; likewise pp and cp.
            pp: pipeline stages.
            dp: `None` = as many as the others leave.
            cp: ranks that share each sequence.

        Raises:
            ParallelError: their product is not the number of processes.

        Example:
            >>> ParallelSizes.of_world(8, tp=2).dp
            4
        """
        one = cls(tp=tp, pp=pp, cp=cp)
        made = cls(tp=tp, pp=pp, dp=world // one.ranks if dp is None else dp, cp=cp) if world >= one.ranks else one
        if made.ranks != world:
            raise ParallelError(
                f"{made} makes {made.ranks} ranks, and {world} {'was' if world == 1 else 'were'} started.",
                hint=f"torchrun --nproc-per-node {made.ranks}, or other sizes",
                sizes=made,
                world=world,
            )
        return made

    def check_batch(self, batch_size: int) -> None:
        """Refuse a batch that data-parallel ranks cannot divide among themselves.

        Raises:
            ParallelError: it is no multiple of dp.
        """
        if batch_size % self.dp:
            raise ParallelError(
                f"a batch of {batch_size} sequences does not divide over {self.dp} data-parallel ranks.",
                hint=f"a train.batch_size that is a multiple of {self.dp}",
                batch_size=batch_size,
                dp=self.dp,
            )

    def check_sequence(self, length: int, config: TransformerConfig) -> None:
        """Refuse sequences that context-parallel or tensor-parallel ranks cannot divide, where they do.

        Raises:
            ParallelError: ranks share sequences, and the length is no multiple of 2·cp; or ``sequence_parallel``, and
                what each has of them is no multiple of tp.
        """
        if self.cp > 1 and length % (2 * self.cp):
            raise ParallelError(
                f"sequences of {length} tokens do not divide over {self.cp} context-parallel ranks, two chunks each.",
                hint=f"a train.sequence_length that is a multiple of {2 * self.cp}",
                length=length,
                cp=self.cp,
            )
        if config.sequence_parallel and length % (self.tp * self.cp):
            shares = f" for each of {self.cp} shares" if self.cp > 1 else ""
            raise ParallelError(
                f"sequences of {length} tokens do not divide over {self.tp} tensor-parallel ranks{shares}.",
                hint=f"a train.sequence_length that is a multiple of {self.tp * self.cp}, or sequence_parallel: false",
                length=length,
                tp=self.tp,
            )
