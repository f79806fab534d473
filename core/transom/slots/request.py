"""What every request shares: the build context, the features asked for, and the parts of an architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["ArchitectureRequest", "BuildContext", "Part", "Parts", "Request"]


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """Where and for what a model is built; the same for every node of a plan.

    Args:
        device: device type: ``"cpu"``, ``"cuda"``, ``"meta"`` ...
        dtype: dtype of parameters and activations, by torch's name: ``"float32"``, ``"bfloat16"`` ...
        mode: ``"train"`` needs gradients; ``"infer"`` does not.
        deterministic: only implementations that give the same bits for the same inputs may serve.
        compile: the model will be compiled with ``torch.compile(fullgraph=True)``.
        tensor_parallel_size: processes that share each layer's weights.
        compute_capability: of the CUDA device the model is for, ``None`` elsewhere.
    """

    device: str = "cpu"
    dtype: str = "float32"
    mode: Literal["train", "infer"] = "train"
    deterministic: bool = False
    compile: bool = False
    tensor_parallel_size: int = 1
    compute_capability: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything known at build time that a slot needs. Frozen and hashable; each slot has its own subclass.

    Args:
        context: device, dtype, mode and so on.
        features: what a card must declare for its implementation to serve this request.
    """

    context: BuildContext
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ArchitectureRequest(Request):
    """Request of a slot whose filler brings its own mathematics and has parts of its own.

    Args:
        config: the model's config.
        masks: kinds of attention mask (features of ``core_attention``) that callers may pass at run time.
    """

    config: TransformerConfig
    masks: frozenset[str] = frozenset({"causal"})


@dataclass(frozen=True, kw_only=True)
class Part:
    """One place inside an architecture implementation, to be filled by name.

    An architecture implementation lists its places in a class method ``parts(request)``, or ``parts(request, options)``
    where they depend on options of its own, and receives a builder for each, already chosen, in its ``Submodules``
    dataclass, under the same names.

    Args:
        slot: the slot that the place belongs to.
        request: what it must serve.
        path: the module's path below its parent where that is not the part's own name.
        feeds: of a norm: the sibling that alone reads what it gives, and through which one module may take it in.
        reads_input: of a column linear: it alone reads the first input of its parent, as that comes. A norm that feeds
            the parent and this linear may then be one module, as the slot ``norm_linear`` has them.
    """

    slot: str
    request: Request
    path: str | None = None
    feeds: str | None = None
    reads_input: bool = False


Parts = Mapping[str, Part | Sequence[Part]]
