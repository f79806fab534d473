"""What is told of devices without torch: nothing where it may be there, else why not and what to do."""

from __future__ import annotations

import ctypes

import pytest
from transom.registry import devices
from transom.registry.devices import missing_device

NO_BUILD = "it runs on cuda, and torch 9.9+cpu is built without it (install a torch that is built for CUDA)"
NO_DRIVER = "it runs on cuda, and no NVIDIA driver is found (install one, on a machine with such a device)"


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch):
    def set_up(torch: str | None, *, driver: bool) -> None:
        def load(name: str) -> None:
            if not driver:
                raise OSError(name)

        devices._why_no_cuda.cache_clear()
        monkeypatch.setattr(devices, "installed_version", lambda name: torch)
        monkeypatch.setattr(ctypes, "CDLL", load)

    yield set_up
    devices._why_no_cuda.cache_clear()


@pytest.mark.parametrize(
    ("torch", "driver", "expected"),
    [
        ("9.9+cpu", True, NO_BUILD),
        ("9.9+cu130", False, NO_DRIVER),
        ("9.9", False, NO_DRIVER),
        (None, False, NO_DRIVER),
        ("9.9+cu130", True, None),
        ("9.9+rocm6", False, None),
    ],
)
def test_missing_device_is_told_by_the_build_and_the_driver(has, torch, driver, expected) -> None:
    has(torch, driver=driver)
    assert missing_device(("cuda",)) == expected


@pytest.mark.parametrize("named", [("cpu",), ("cpu", "cuda"), ("any",), ("cuda", "xpu"), ("mps",)])
def test_missing_device_says_nothing_where_another_serves_or_only_torch_can_tell(has, named) -> None:
    has("9.9+cpu", driver=False)
    assert missing_device(named) is None
