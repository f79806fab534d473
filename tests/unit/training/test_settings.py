from __future__ import annotations

import msgspec
import pytest
import transom
from transom.errors import CheckpointError, SpecError
from transom.training.settings import check_same_run, located, sequence_length, with_settings


@pytest.fixture
def spec(toy_spec):
    return transom.load_spec(toy_spec())


def test_settings_take_the_place_of_the_specs_own(spec):
    changed = with_settings(spec, steps=7, data=["a", "b"], seed=5, use={"norm": "x | y", "linear": ["u", "v"]})
    assert (changed.train.steps, changed.train.data, changed.train.seed) == (7, ("a", "b"), 5)
    assert changed.use == {"norm": "x | y", "linear": ["u", "v"]}
    assert changed.train.batch_size == spec.train.batch_size
    assert changed.source == "the mapping with the call's arguments"


def test_settings_add_to_use_and_replace_equal_entries(spec):
    spec = msgspec.structs.replace(spec, use={"norm": "a", "loss": "b"})
    assert with_settings(spec, use={"norm": "c"}).use == {"norm": "c", "loss": "b"}


def test_settings_leave_a_spec_alone_when_none_are_given(spec):
    assert with_settings(spec) is spec


def test_settings_refuse_what_the_spec_would_refuse(spec):
    with pytest.raises(SpecError, match="train: steps is 0; it must be 1 or more") as caught:
        with_settings(spec, steps=0)
    assert caught.value.path == "train"


def test_located_makes_paths_absolute_and_leaves_names_alone(spec, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "t.json").write_text("{}")
    (tmp_path / "default").write_text("a file of that name is not what the word means")
    monkeypatch.chdir(tmp_path)
    relative = transom.load_spec(
        spec.to_dict() | {"train": {"data": ["a.txt", "default", "nowhere.txt"], "tokenizer": "t.json"}}
    )
    found = located(relative)
    assert found.train.data == (str(tmp_path / "a.txt"), "default", "nowhere.txt")
    assert found.train.tokenizer == str(tmp_path / "t.json")
    assert found.source == relative.source
    assert located(found) is found
    one = located(with_settings(spec, data="a.txt"))
    assert (one.train.data, one.train.tokenizer) == (str(tmp_path / "a.txt"), "bytes")


def test_sequence_length_is_the_models_unless_given(spec):
    assert sequence_length(spec) == 8
    assert sequence_length(transom.load_spec(spec.to_dict() | {"train": {"sequence_length": 5}})) == 5


def test_sequence_length_beyond_the_models_is_refused(spec):
    long = transom.load_spec(spec.to_dict() | {"train": {"sequence_length": 9}})
    with pytest.raises(
        SpecError, match=r"train.sequence_length is 9; the model's sequences have at most 8 tokens"
    ) as caught:
        sequence_length(long)
    assert caught.value.path == "train.sequence_length"
    assert caught.value.hint == "max_sequence_length: 9, or a shorter train.sequence_length"


def test_same_run_is_silent_when_nothing_differs(spec, toy_spec):
    assert check_same_run(spec, transom.load_spec(toy_spec()), source="f") == []
    assert check_same_run(spec, spec, seed=spec.train.seed, source="f") == []


def test_same_run_tells_what_the_run_keeps(spec, toy_spec):
    other = transom.load_spec(toy_spec(steps=99, seed=4) | {"use": {"model": "toy"}})
    assert check_same_run(spec, other, source="f") == [
        "train.seed stays 0, as in the run, not 4",
        "use stays {}, as in the run, not {'model': 'toy'}",
        "going on to step 12, as the run's own spec says, not to 99; --steps changes that",
    ]


@pytest.mark.parametrize(
    ("given", "asked", "done", "line"),
    [
        (20, ["steps"], 12, "going on to step 20, as --steps says; the run had 12"),
        (5, ["steps"], 3, "going on to step 5, as --steps says; the run had 12"),
        (5, ["steps"], 12, "nothing is left to do: --steps says 5, and 12 are done"),
        (20, [], 12, "the run's own spec says 12 steps, and all are done; --steps 20 goes further"),
        (5, [], 12, "the run's own spec says 12 steps, and all are done"),
        (5, [], 3, "going on to step 12, as the run's own spec says, not to 5; --steps changes that"),
        (12, ["steps"], 12, None),
    ],
)
def test_same_run_says_whose_steps_hold(spec, toy_spec, given, asked, done, line):
    other = transom.load_spec(toy_spec(steps=given))
    assert check_same_run(spec, other, asked=asked, done=done, source="f") == ([line] if line else [])


def test_same_run_says_whose_data_hold(spec):
    own, other = (with_settings(spec, data=data) for data in (["a", "b"], ["c"]))
    assert check_same_run(own, other, asked=["data"], source="f") == [
        "the data is read from c, as --data says; the run had a, b"
    ]
    assert check_same_run(own, other, source="f") == [
        "the data is read from a, b, as the run's own spec says, not from c; --data changes that"
    ]
    assert check_same_run(other, with_settings(spec, data="c"), asked=["data"], source="f") == []


def test_same_run_refuses_what_would_compute_something_else_and_lists_it(spec, toy_spec):
    data = toy_spec(learning_rate=0.5, steps=99) | {"vocab_size": 256}
    data["config"] = data["config"] | {"hidden_size": 16, "normalization": "RMSNorm"}
    with pytest.raises(CheckpointError, match="the run is of another spec: 4 differences") as caught:
        check_same_run(spec, transom.load_spec(data), source="run/spec.json")
    assert caught.value.differences == (
        "config.hidden_size is 8 in the run, not 16",
        "config.normalization is 'LayerNorm' in the run, not 'RMSNorm'",
        "train.learning_rate is 0.01 in the run, not 0.5",
        "vocab_size is 128 in the run, not 256",
    )
    assert "Asked by:   run/spec.json" in str(caught.value)


def test_same_run_refuses_another_seed_when_it_is_asked_for(spec):
    with pytest.raises(CheckpointError, match="1 difference") as caught:
        check_same_run(spec, spec, seed=5, source="f")
    assert caught.value.differences == ("train.seed is 0 in the run, not 5",)
