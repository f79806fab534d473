"""`transom generate`: what it prints and refuses."""

from __future__ import annotations

import json

import pytest
from transom.cli.main import main
from transom.training.run import train

SPEC = {
    "name": "small",
    "vocab_size": 256,
    "max_sequence_length": 32,
    "config": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2},
    "train": {"steps": 30, "batch_size": 8, "warmup_steps": 5, "learning_rate": 0.03, "eval_every": 0},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Give the folder of a run on plain ASCII."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 20)
    return str(train(SPEC, out=folder / "run", data=str(folder / "text.txt")).folder)


def _json(capsys, *arguments):
    assert main(["generate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_generate_prints_the_prompt_and_what_follows(run, capsys):
    assert main(["generate", run, "--prompt", "to be", "--max-new-tokens", "9", "--greedy"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("to be")
    assert len(out) == len("to be") + 9 + 1
    assert _json(capsys, run, "--prompt", "to be", "--max-new-tokens", "9", "--greedy")["text"] == out[5:-1]


def test_generate_prints_json_with_the_seed_that_gives_it_again(run, capsys):
    first = _json(capsys, run, "--prompt", "to be")
    assert first["prompt"] == "to be"
    assert len(first["tokens"]) == 32 - 5
    again = _json(capsys, run, "--prompt", "to be", "--seed", str(first["seed"]))
    assert again == first
    assert _json(capsys, run, "--prompt", "to be", "--seed", "1") != _json(
        capsys, run, "--prompt", "to be", "--seed", "2"
    )


def test_generate_takes_settings_of_sampling(run, capsys):
    greedy = _json(capsys, run, "--prompt", "to be", "--greedy")["tokens"]
    for setting in (["--temperature", "0"], ["--top-k", "1"], ["--top-p", "0.0001"]):
        assert _json(capsys, run, "--prompt", "to be", *setting)["tokens"] == greedy


def test_generate_gives_the_same_text_whoever_computes(run, capsys):
    texts = {
        _json(capsys, run, "--prompt", "to be", "--greedy", "--use", use)["text"]
        for use in ("core_attention=dot_product", "core_attention=torch_dot_product", "linear=parallel_linear")
    }
    assert len(texts) == 1


def test_generate_stops_after_200_tokens_unless_told(run, capsys, monkeypatch):
    monkeypatch.setattr("transom.cli.generate._DEFAULT_LENGTH", 3)
    assert len(_json(capsys, run, "--prompt", "to be")["tokens"]) == 3
    assert len(_json(capsys, run, "--prompt", "to be", "--max-new-tokens", "5")["tokens"]) == 5


REFUSED = {
    "no checkpoint": (["nowhere", "--prompt", "a"], "CheckpointError: no folder nowhere."),
    "no prompt": (["RUN"], "either --prompt, once or more often, or --prompts-file"),
    "empty prompt": (["RUN", "--prompt", ""], "InputError: the prompt is empty"),
    "long prompt": (["RUN", "--prompt", "a" * 40], "InputError: the prompt has 40 tokens"),
    "too many tokens": (["RUN", "--prompt", "a", "--max-new-tokens", "32"], "at most 31 new tokens"),
    "no number": (["RUN", "--prompt", "a", "--top-k", "few"], "'few' is not a valid integer range"),
    "out of range": (["RUN", "--prompt", "a", "--top-p", "0"], "0.0 is not in the range 0<x<=1"),
    "unknown name": (["RUN", "--prompt", "a", "--use", "core_attention=dot_prodct"], "dot_product?"),
    "text and file": (
        ["RUN", "--prompt", "a", "--prompts-file", "-"],
        "either --prompt, once or more often, or --prompts",
    ),
    "no file": (["RUN", "--prompts-file", "nowhere.txt"], "No such file or directory"),
    "empty file": (["RUN", "--prompts-file", "/dev/null"], "/dev/null is empty"),
    "one long prompt": (["RUN", "--prompt", "a", "--prompt", "a" * 40], "InputError: prompt 1 has 40 tokens"),
    "seed and beams": (
        ["RUN", "--prompt", "a", "--beams", "2", "--seed", "1"],
        "--seed and --beams do not go together",
    ),
    "temperature and greedy": (
        ["RUN", "--prompt", "a", "--greedy", "--temperature", "0.5"],
        "--temperature and --greedy do not go together: the most probable token is taken, and none drawn.",
    ),
    "top-k and greedy": (
        ["RUN", "--prompt", "a", "--greedy", "--top-k", "5"],
        "--top-k and --greedy do not go together",
    ),
    "empty stop": (["RUN", "--prompt", "a", "--stop", ""], "InputError: a stop text is empty"),
    "unknown cache": (["RUN", "--prompt", "a", "--cache", "pages"], "no kv_cache is named 'pages'"),
    "cache that cannot serve": (
        ["RUN", "--prompt", "a", "--cache", "sliding_window"],
        "no layer of the model has a window",
    ),
    "cache twice": (["RUN", "--prompt", "a", "--cache", "paged", "--use", "kv_cache=int8"], "give one of them"),
    "start": (["RUN", "--prompt", "a", "--start-id", "0"], "InputError: start_id is 0"),
    "half a surrogate pair": (["RUN", "--prompt", "\udcff"], "DataError: the text is not valid Unicode"),
}


@pytest.mark.parametrize(("arguments", "text"), REFUSED.values(), ids=REFUSED)
def test_generate_refuses_with_one_error(run, capsys, arguments, text):
    assert main(["generate", *[run if argument == "RUN" else argument for argument in arguments]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert "Traceback" not in err


def test_generate_names_the_line_of_a_file_that_is_empty(run, capsys, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("to be\n\nor\n", encoding="utf-8")
    assert main(["generate", run, "--prompts-file", str(file)]) == 2
    err = capsys.readouterr().err
    assert f"--prompts-file: line 2 of {file} is empty; there must be a token to go on from." in err


def test_generate_goes_on_from_several_texts_together(run, capsys, tmp_path):
    alone = [_json(capsys, run, "--prompt", text, "--seed", str(seed)) for text, seed in (("to be", 5), ("or", 6))]
    both = _json(capsys, run, "--prompt", "to be", "--prompt", "or", "--seed", "5", "--max-new-tokens", "20")
    assert [row["text"] for row in both] == [row["text"][:20] for row in alone]
    assert [(row["prompt"], row["seed"]) for row in both] == [("to be", 5), ("or", 6)]
    (tmp_path / "prompts.txt").write_text("to be\nor\n", encoding="utf-8")
    arguments = ("--prompts-file", str(tmp_path / "prompts.txt"), "--seed", "5", "--max-new-tokens", "20")
    assert _json(capsys, run, *arguments) == both
    assert main(["generate", run, *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"to be{both[0]['text']}\nor{both[1]['text']}\n")


def test_generate_fills_what_fits_for_all_texts_unless_told(run, capsys):
    rows = _json(capsys, run, "--prompt", "to be", "--prompt", "a" * 30, "--greedy")
    assert [len(row["tokens"]) for row in rows] == [2, 2]


def test_generate_ends_a_text_before_a_stop(run, capsys):
    whole = _json(capsys, run, "--prompt", "to be", "--greedy")["text"]
    stop = whole[4:7]
    one = _json(capsys, run, "--prompt", "to be", "--greedy", "--stop", stop)
    assert one["text"] == whole[: whole.index(stop)]
    assert len(one["tokens"]) < 27
    both = _json(capsys, run, "--prompt", "to be", "--prompt", "to be", "--greedy", "--stop", "nowhere", "--stop", stop)
    assert [row["text"] for row in both] == [one["text"]] * 2
    assert main(["generate", run, "--prompt", "to be", "--greedy", "--stop", stop]) == 0
    assert capsys.readouterr().out == f"to be{one['text']}\n"


def test_generate_takes_every_setting(run, capsys):
    greedy = _json(capsys, run, "--prompt", "to be", "--greedy")["tokens"]
    assert _json(capsys, run, "--prompt", "to be", "--min-p", "1")["tokens"] == greedy
    assert _json(capsys, run, "--prompt", "to be", "--beams", "1")["tokens"] == greedy
    penalised = _json(capsys, run, "--prompt", "to be", "--greedy", "--repetition-penalty", "20")["tokens"]
    assert len(set(penalised)) > len(set(greedy))
    beams = _json(capsys, run, "--prompt", "to be", "--beams", "3")
    assert beams["score"] <= 0
    assert len(beams["tokens"]) == 27


@pytest.mark.parametrize("kind", ["static", "paged"])
def test_generate_takes_a_cache_by_name(run, capsys, kind):
    greedy = _json(capsys, run, "--prompt", "to be", "--greedy")["text"]
    assert _json(capsys, run, "--prompt", "to be", "--greedy", "--cache", kind)["text"] == greedy


def test_generate_compiles_when_told(run, capsys, monkeypatch):
    import torch

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda step, **settings: compiled.append(settings) or step)
    assert _json(capsys, run, "--prompt", "to be", "--greedy", "--compile")["tokens"]
    assert compiled == [{"fullgraph": True, "dynamic": False}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give a folder of Hugging Face's form, with a tokenizer of 40 words."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    import torch

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=40, max_position_embeddings=32, initializer_range=0.5, **sizes)
    path = tmp_path_factory.mktemp("hugging_face")
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(path / "tokenizer.json"))
    (path / "generation_config.json").write_text('{"eos_token_id": 99}')
    return path


def test_generate_ends_where_a_model_of_hugging_face_ends_its_texts(folder, capsys):
    arguments = (str(folder), "--prompt", "w5 w6", "--greedy", "--max-new-tokens", "12")
    free = _json(capsys, *arguments)
    assert len(free["tokens"]) == 12
    end = free["tokens"][3]
    length = free["tokens"].index(end) + 1
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 99]}))
    ended = _json(capsys, *arguments)
    assert ended["tokens"] == free["tokens"][:length]
    assert ended["text"].split() == [f"w{token}" for token in ended["tokens"][:-1]]
    both = _json(capsys, *arguments, "--prompt", "w5 w6", "--seed", "0")
    assert [row["text"] for row in both] == [ended["text"]] * 2
    beams = _json(capsys, str(folder), "--prompt", "w5 w6", "--beams", "3", "--max-new-tokens", "12")
    assert end not in beams["tokens"][:-1]


def test_generate_leaves_options_of_the_run_out_where_the_call_names_another(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 20)
    paged = SPEC | {"use": {"kv_cache": "paged"}, "options": {"kv_cache": {"block_size": 4}}}
    run = str(train(paged, out=tmp_path / "run", data=str(tmp_path / "text.txt"), steps=1).folder)
    assert main(["generate", run, "--prompt", "to", "--max-new-tokens", "2", "--use", "kv_cache=static"]) == 0
    said = f"options.kv_cache in {run} has no effect at cache: --use kv_cache=static"
    assert said in capsys.readouterr().err.splitlines()
