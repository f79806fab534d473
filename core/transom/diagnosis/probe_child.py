"""What the process does in which a plugin is imported: one entry after another, each outcome written at once.

Whatever a plugin does to this process, what was written before stays: the parent reads it when the process is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from transom.errors import TransomError
from transom.registry.hooks import GROUP as HOOKS
from transom.registry.hooks import Hook, load_hooks, user_hooks
from transom.registry.implementation import Implementation
from transom.registry.policy import Policy
from transom.registry.registry import default_registry
from transom.registry.scan import Entry
from transom.specs.hooking import with_options

__all__ = ["devices", "import_torch", "main"]

SLOTS = "transom.slots"


def main(request: Mapping[str, Any]) -> None:
    """Do what the parent asks.

    Args:
        request: ``entries``; ``out``, the file for outcomes; ``limit``, seconds for each; ``with_state``, whether to
            look for changes of what all code shares; ``ask``, refs of hooks that are asked what is wrong.
    """
    with open(request["out"], "a", encoding="utf-8") as out:  # noqa: PTH123 - a name from the parent

        def tell(fact: Any) -> None:
            out.write(json.dumps(fact) + "\n")
            out.flush()

        if request["with_state"]:
            import_torch(with_state=True)
        tell(devices() if request.get("devices") else {})
        for fields in request["entries"]:
            tell("started")
            faulthandler.dump_traceback_later(request["limit"], exit=True)
            outcome = _outcome(Entry(**fields), request)
            faulthandler.cancel_dump_traceback_later()
            tell(outcome)


def import_torch(*, with_state: bool) -> None:
    """Import torch.

    Args:
        with_state: and all that plugins import of it, so that what torch itself changes is nobody's fault.
    """
    import torch

    if not with_state:
        return
    import torch._dynamo
    import torch._inductor.config
    import torch.distributed
    import torch.nn.functional
    import torch.utils.checkpoint  # noqa: F401


def devices() -> dict[str, Any]:
    """Give what torch says of itself and of this machine's devices."""
    import torch

    found: list[dict[str, Any]] = [{"type": "cpu", "name": "cpu", "threads": torch.get_num_threads()}]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = {"name": torch.cuda.get_device_name(number)}
            found.append({"type": "cuda", **facts, "capability": list(torch.cuda.get_device_capability(number))})
    for kind in ("mps", "xpu"):
        if getattr(torch, kind).is_available():
            found.append({"type": kind, "name": kind})
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "devices": found}


def _outcome(entry: Entry, request: Mapping[str, Any]) -> dict[str, Any]:
    from transom.diagnosis.state import changes, look

    printed = io.StringIO()
    before = look() if request["with_state"] else {}
    started = time.perf_counter()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            found = _examine(entry, request)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        found = {"error": _text(error), "traceback": _traceback(error)}
    seconds = time.perf_counter() - started
    after = look() if request["with_state"] else {}
    return {"seconds": seconds, "changes": changes(before, after), "printed": printed.getvalue()[-2000:], **found}


def _text(error: BaseException) -> str:
    if isinstance(error, TransomError):
        return str(error.data.get("reason") or error.what).removeprefix("it cannot be imported: ")
    return f"{type(error).__name__}: {error}"


def _traceback(error: BaseException) -> str:
    kept = error.data.get("traceback") if isinstance(error, TransomError) else None
    return kept or "".join(traceback.format_exception(error))


def _examine(entry: Entry, request: Mapping[str, Any]) -> dict[str, Any]:
    """Import what an entry refers to; give what is wrong with it."""
    kinds: dict[str, Callable[..., list[str]]] = {HOOKS: _hook, SLOTS: _slot}
    examine = kinds.get(entry.group, _implementation)
    ref = f"{entry.distribution}/{entry.name}"
    complaints = examine(entry, ref in request.get("ask", ()))
    return {"complaints": complaints}


def _implementation(entry: Entry, _: bool) -> list[str]:
    from transom.diagnosis.contract import object_complaints

    implementation = Implementation(entry.slot, entry.name, entry.distribution, entry.version, entry.value)
    builder = implementation.load()
    complaints = object_complaints(builder, default_registry().slot(entry.slot), implementation.card)
    return [f"{entry.value} {complaint}" for complaint in complaints]


def _slot(entry: Entry, _: bool) -> list[str]:
    default_registry().slot(entry.name)
    return []


def _hook(entry: Entry, is_asked: bool) -> list[str]:
    hook = Hook(entry.name, entry.distribution, entry.version, entry.value)
    if not is_asked:
        hook.examine()
        return []
    asked = [each for each in user_hooks(default_registry(), Policy.current()) if each.hook == hook]
    (live,) = load_hooks(with_options(asked))
    answers = live.call("transom_doctor")
    return [str(answer) for answer in ([answers] if isinstance(answers, str) else answers or ())]


if __name__ == "__main__":
    main(json.load(sys.stdin))
