"""The base class of the reference transformer's modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transom.transformer.sharding import ShardedModule

if TYPE_CHECKING:
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["Module"]


class Module(ShardedModule):
    """A module that knows the config it was made from.

    Args:
        config: the model's config.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config

    def set_is_first_microbatch(self) -> None:
        """Tell all modules below that the next forward pass is an optimizer step's first.

        Kernels that keep something derived from a weight, a copy in a narrower dtype say, have an attribute
        ``is_first_microbatch`` and make it anew when it is true.
        """
        for module in self.modules():
            if hasattr(module, "is_first_microbatch"):
                setattr(module, "is_first_microbatch", True)  # noqa: B010 - not an attribute of every nn.Module
