from __future__ import annotations

from functools import partial

import pytest
import torch
from transom.testing import Case, CaseSkipped, ConformanceError
from transom.testing.closeness import assert_close


def _case(check, **fields) -> Case:
    return Case("area", "name", "shows", check, **fields)


@pytest.mark.parametrize(
    ("fields", "suffix"),
    [({}, ""), ({"device": "cpu"}, "[cpu]"), ({"dtype": "float32", "device": "cpu"}, "[cpu-float32]")],
    ids=["anywhere", "device", "device and dtype"],
)
def test_id_says_where_it_runs(fields, suffix):
    assert _case(lambda: None, **fields).id == f"area/name{suffix}"


def test_run_starts_from_the_same_random_state_and_leaves_the_process_alone():
    drawn = []
    case = _case(lambda: drawn.append(torch.rand(3)))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    case.run()
    torch.rand(5)
    torch.manual_seed(1)
    case.run()
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_run_puts_the_default_dtype_back_when_the_check_changes_it():
    _case(lambda: torch.set_default_dtype(torch.float64)).run()
    assert torch.get_default_dtype() is torch.float32


def test_run_skips_what_is_unavailable_without_checking():
    def check():
        raise ConformanceError("checked")

    with pytest.raises(CaseSkipped, match=r"^it needs a moon$"):
        _case(check, unavailable="it needs a moon").run()


def test_conformance_error_is_an_assertion_error():
    assert issubclass(ConformanceError, AssertionError)


def test_failure_says_what_the_case_should_show_and_not_where_in_the_kit():
    with pytest.raises(ConformanceError) as caught:
        Case("area", "name", "a thing", partial(assert_close, torch.ones(1), torch.zeros(1), 0.1, "it")).run()
    assert caught.value.__notes__ == ["should show: a thing"]
    assert len(caught.traceback) == 1


def test_what_an_implementation_raises_keeps_its_own_frames():
    def implementation():
        raise KeyError("moon")

    with pytest.raises(KeyError) as caught:
        _case(implementation).run()
    assert caught.traceback[-1].name == "implementation"
    assert not hasattr(caught.value, "__notes__")
