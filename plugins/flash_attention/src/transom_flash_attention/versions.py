"""The versions of FlashAttention: which are installed, which can serve a request, and why the others cannot.

Three distributions with three interfaces. All of it is found out from metadata and from the request; only once all of
that says yes, and for a CUDA device, is the package imported, to find out whether it can be.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from packaging.version import Version
from transom.errors import SpecError

if TYPE_CHECKING:
    from transom.slots.core_attention import CoreAttentionRequest

    from transom_flash_attention.options import Wanted

__all__ = ["VERSIONS", "FlashVersion", "choose", "objections"]


@dataclass(frozen=True)
class FlashVersion:
    """One version of FlashAttention.

    Args:
        number: 2, 3 or 4.
        distribution: that provides it.
        oldest: its oldest version with the interface that is called here.
        module: that is imported.
        refuse: says why it cannot serve a request, wherever it is installed.
        page: pages of a cache are read in place that have a multiple of so many positions (version 4: just so many);
            `None` = none are.
    """

    number: int
    distribution: str
    oldest: str
    module: str
    refuse: Callable[[CoreAttentionRequest], Iterator[str]]
    page: int | None

    def reads(self, pages: int) -> bool:
        """Whether pages of so many positions are read in place."""
        return self.page is not None and (pages == self.page if self.number == 4 else pages % self.page == 0)

    @property
    def installed(self) -> str | None:
        """The version of its distribution, `None` when it is not installed."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    def objections(self, request: CoreAttentionRequest) -> tuple[str, ...]:
        """Say why it cannot serve a request here; empty = it can."""
        found = self.installed
        if found is None:
            return (f"{self.distribution} is not installed",)
        if Version(found) < Version(self.oldest):
            return (f"{self.distribution}>={self.oldest} is needed, and {found} is installed",)
        reasons = tuple(self.refuse(request))
        if reasons or request.context.device != "cuda":
            return reasons
        failure = _import_failure(self.module)
        if failure is None:
            return ()
        said = f"{self.distribution} {found} cannot be imported: {failure}"
        return (f"{said}; install it anew for the torch that is here",)

    def __str__(self) -> str:
        return f"FlashAttention {self.number} ({self.distribution} {self.installed})"


@cache
def _import_failure(module: str) -> str | None:
    try:
        with warnings.catch_warnings():  # of what is the package's own, which are errors to some callers
            warnings.simplefilter("ignore")
            import_module(module)
    except Exception as error:  # a missing symbol of another torch is an ImportError, a missing driver a RuntimeError
        return f"{type(error).__name__}: {error}"
    return None


def _refuse_2(request: CoreAttentionRequest) -> Iterator[str]:
    yield from _one_head_size(request)
    if request.softcap is not None and "dropout" in request.features:
        yield "it does not drop weights of soft-capped scores"


def _refuse_3(request: CoreAttentionRequest) -> Iterator[str]:
    yield from _only_on(request, 9)
    yield from _one_head_size(request)
    if request.context.mode == "train":
        yield "fa3-fwd has no backward pass"
    if request.context.dtype == "float16":
        yield "fa3-fwd was built without float16"
    for feature, what in (("window", "windows"), ("alibi", "ALiBi"), ("dropout", "dropout")):
        if feature in request.features or (feature == "window" and request.window is not None):
            yield f"it has no {what}" if feature != "window" else f"fa3-fwd was built without {what}"


def _refuse_4(request: CoreAttentionRequest) -> Iterator[str]:
    yield from _only_on(request, 9)
    for name in ("head_size", "value_head_size"):
        size = getattr(request, name)
        if size > 256 or size % 8:
            yield f"{name} is {size}; it takes multiples of 8 up to 256"
    for feature, what in (("alibi", "ALiBi"), ("dropout", "dropout")):
        if feature in request.features:
            yield f"it has no {what}"
    if request.context.mode == "train":
        yield from _refuse_4_training(request)
        if request.context.deterministic:
            yield "whether its backward pass can give the same bits twice is not known"


def _refuse_4_training(request: CoreAttentionRequest) -> Iterator[str]:
    """Say what its backward pass does not compile for."""
    if request.value_head_size < request.head_size and request.value_head_size % 64:
        yield "its backward pass takes values of a smaller head size than keys in multiples of 64 alone"
    grouped = request.num_query_groups != request.num_attention_heads
    if grouped and request.head_size != request.value_head_size:
        yield "its backward pass takes no grouped heads whose values have another size"


def _one_head_size(request: CoreAttentionRequest) -> Iterator[str]:
    if request.head_size != request.value_head_size:
        yield "values have another head size than keys"
    if request.head_size > 256 or request.head_size % 8:
        yield f"head_size is {request.head_size}; it takes multiples of 8 up to 256"


def _only_on(request: CoreAttentionRequest, major: int) -> Iterator[str]:
    capability = request.context.compute_capability
    if capability is not None and capability[0] != major:
        yield f"it was tried for compute capability {major}.x alone, this device has {'.'.join(map(str, capability))}"


VERSIONS = (
    FlashVersion(4, "flash-attn-4", "4.0.0b36", "flash_attn.cute", _refuse_4, 128),
    FlashVersion(3, "fa3-fwd", "0.0.3", "fa3_fwd_interface", _refuse_3, None),
    FlashVersion(2, "flash-attn", "2.8", "flash_attn.flash_attn_interface", _refuse_2, 256),
)
"""The newest first."""


def objections(request: CoreAttentionRequest) -> tuple[str, ...]:
    """Say why no version can serve a request, one sentence a version; empty = one can."""
    reasons = [(each, each.objections(request)) for each in VERSIONS]
    if not all(found for _, found in reasons):
        return ()
    return tuple(f"FlashAttention {each.number}: {', and '.join(found)}" for each, found in reasons)


def choose(request: CoreAttentionRequest, wanted: Wanted = "auto") -> FlashVersion:
    """Choose the version that serves a request: the newest that can, or the one that is wanted.

    Raises:
        SpecError: it cannot serve, or none can.
    """
    tried = [each for each in VERSIONS if wanted in ("auto", each.number)]
    failed = []
    for each in tried:
        reasons = each.objections(request)
        if not reasons:
            return each
        failed.append(f"FlashAttention {each.number}: {', and '.join(reasons)}")
    able = [f"version: {each.number}" for each in VERSIONS if each not in tried and not each.objections(request)]
    raise SpecError(
        f"flash_attention with version: {wanted} cannot serve.",
        available=able,
        failed=failed,
        hint="version: auto takes the newest that can" if able else "another core attention",
        path="options.version",
        file=None,
        line=None,
    )
