"""The pages and the code agree: every field is described, every command line parses, every spec and card is read."""

from __future__ import annotations

import html
import inspect
import re
import shlex
import sys
import tomllib
import types
from pathlib import Path

import click
import pytest
import tokenizers
import torch
import transom
import yaml
from transom import ModelSpec, TransformerConfig, load_spec
from transom.cli import main as cli_main
from transom.cli.main import cli
from transom.pretrained.convert import convert
from transom.registry.card import CardSection, read_card
from transom.registry.policy import ALLOW, DENY, STRICT, VARIABLES
from transom.registry.user_config import CONFIG, UserConfig
from transom.slots import SLOTS
from transom.specs.train_spec import TrainSpec
from transom.transformer.rope_scaling import RopeScaling

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if not page.match("reference/slots/*.md")),
]
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(language: str) -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(ROOT)), found["text"])
        for page in PAGES
        for found in BLOCK.finditer(page.read_text(encoding="utf-8"))
        if found["language"] == language
    ]


def _first_cells(page: str, heading: str) -> list[str]:
    """Read the first column, in code quotes, of the tables below a heading."""
    text = (ROOT / page).read_text(encoding="utf-8").split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def test_picture_of_the_front_page_shows_the_plan_as_it_is():
    drawn = html.unescape(re.sub(r"<[^>]+>", "", (ROOT / "docs/plan.svg").read_text(encoding="utf-8")))
    words = re.sub(r"\s+", "", drawn)
    use = {"core_attention": "flash_attention | torch_dot_product"}
    # Why a name was passed over depends on what is installed where the picture was drawn; long lines are cut there.
    lines = [line for line in str(transom.plan("tiny-llama", use=use)).splitlines() if "not transom-flash" not in line]
    missing = [line for line in lines if re.sub(r"\s+", "", line)[:60] not in words]
    assert not missing, "draw it again: python docs/_extensions/plan_picture.py"


@pytest.mark.parametrize(
    "documented", [TransformerConfig, RopeScaling, TrainSpec], ids=lambda documented: documented.__name__
)
def test_docstring_that_the_reference_shows_describes_every_field_once(documented):
    arguments = inspect.getdoc(documented).split("Args:\n", 1)[1].split("\n\n", 1)[0]
    assert re.findall(r"^    (\w+): ", arguments, re.MULTILINE) == list(inspect.signature(documented).parameters)


def _commands() -> list[str]:
    lines = [line.strip() for _, text in _blocks("") for line in text.splitlines()]
    return [re.sub(r"\s{2,}\S.*", "", line) for line in lines if line.startswith("transom ") and "VERB" not in line]


@pytest.mark.parametrize(
    ("page", "heading", "fields"),
    [
        ("docs/reference/spec.md", "# The spec", ModelSpec.__struct_fields__),
        ("docs/reference/card.md", "# The card", CardSection.__struct_fields__),
        ("docs/reference/command-line.md", "## Environment", (ALLOW, DENY, STRICT, CONFIG)),
        ("docs/reference/user-config.md", "# The user's config", UserConfig.__struct_fields__),
    ],
    ids=["spec", "card", "environment", "user config"],
)
def test_reference_describes_every_field_once(page, heading, fields):
    assert sorted(_first_cells(page, heading)) == sorted(fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_environment_variables_in_the_docs_are_known(page):
    named = set(re.findall(r"\bTRANSOM_\w+", page.read_text(encoding="utf-8")))
    assert named - {"TRANSOM_"} <= set(VARIABLES)


def test_environment_variables_in_the_code_are_known():
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "core" / "transom").rglob("*.py")]
    assert {name for text in texts for name in re.findall(r"\bTRANSOM_[A-Z]\w*", text)} <= set(VARIABLES)


def test_reference_describes_every_verb():
    cells = _first_cells("docs/reference/command-line.md", "## Verbs")
    assert [cell.split()[0] for cell in cells] == list(cli_main._VERBS)


@pytest.mark.parametrize("line", sorted(set(_commands())))
def test_command_line_in_the_docs_parses(line):
    name, *args = shlex.split(line)[1:]
    command = cli.get_command(click.Context(cli), name)
    parser = command.make_parser(click.Context(command, info_name=name))
    _, rest, order = parser.parse_args(args)
    assert not rest
    assert order


@pytest.mark.parametrize(("page", "text"), _blocks("yaml"))
def test_spec_in_the_docs_is_read(page, text):
    """Sections that stand alone are read as a user would paste them into a spec."""
    around = load_spec("tiny-llama").to_dict()
    spec = load_spec(around | yaml.safe_load(text))
    assert spec.config.num_layers >= 1


@pytest.mark.parametrize(("page", "text"), [block for block in _blocks("toml") if "\ncard = 1" in f"\n{block[1]}"])
def test_card_in_the_docs_is_read(page, text, tmp_path):
    (tmp_path / "transom.toml").write_text(text, encoding="utf-8")
    assert read_card(tmp_path / "transom.toml", distribution=page).sections


# Pages that building the docs writes, from slots and cards.
WRITTEN = {ROOT / "docs/reference/support-matrix.md", *(ROOT / f"docs/reference/slots/{slot}.md" for slot in SLOTS)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    targets = [(page.parent / link).resolve() for link in links]
    assert [str(target) for target in targets if not target.exists() and target not in WRITTEN] == []


@pytest.mark.parametrize(("page", "least"), [("what-the-registry-promises", 40), ("comparison", 15)])
def test_promises_are_kept_by_tests_that_there_are(page, least):
    """Every row of the page names a test, by its file and function."""
    text = (ROOT / f"docs/explanation/{page}.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    named = re.findall(r"\| `((?:tests|plugins|contrib)/[\w/]+\.py)::(test_\w+)` \|$", "\n".join(rows), re.MULTILINE)
    assert len(named) == len(rows) > least
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert missing == []


def test_plugins_page_names_every_distribution_and_what_it_registers():
    text = (ROOT / "docs/reference/plugins.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(transom-[\w-]+)` \| (.*?) \|", text, re.MULTILINE)
    there = {}
    for file in (*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("contrib/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        groups = project.get("entry-points", {})
        there[project["name"]] = {name for g, names in groups.items() if g.startswith("transom.") for name in names}
    assert {name for name, _ in rows} == set(there)
    assert [name for name, fills in rows if not there[name] <= set(re.findall(r"`(\w+)`", fills))] == []


def test_architecture_page_draws_the_rooms_that_there_are():
    (house,) = [text for page, text in _blocks("") if "architecture" in page and text.startswith("core/transom/")]
    package = ROOT / "core" / "transom"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^  (\w+)/ ", house, re.MULTILINE)) == rooms


def _lay_out_checkpoint(folder):
    """Put a folder where the pages have Llama-3.2-1B: of that form, but small and random."""
    spec = load_spec(FOLDERS_SPEC)
    state = {name: torch.randn(t.shape) for name, t in transom.build(spec, device="meta").state_dict().items()}
    blocks = ("layers.", "final_layernorm.")  # what Megatron-core calls decoder.layers ...
    named = {f"decoder.{name}" if name.startswith(blocks) else name: tensor for name, tensor in state.items()}
    torch.save(named, folder / "state.pt")
    convert(folder / "state.pt", folder / "Llama-3.2-1B", form="megatron", spec=spec, to="hf")
    words = {word: i for i, word in enumerate(["hello", "world", "and", "so", "on"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="so"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "Llama-3.2-1B" / "tokenizer.json"))


FOLDERS_SPEC = {
    "vocab_size": 5,
    "max_sequence_length": 32,
    "share_embeddings_and_output_weights": True,
    "config": {
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 32,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        "position_embedding_type": "rope",
    },
}

# Their blocks need their packages installed, which tests/install does.
INSTALLED = {"docs/how-to/define-a-slot.md", "docs/how-to/enable-a-hook.md"}


@pytest.mark.parametrize("page", sorted({page for page, _ in _blocks("python")} - INSTALLED))
def test_python_in_the_docs_runs(page, tmp_path, monkeypatch, capsys):
    """The blocks of a page run one after the other, as a reader would paste them."""
    _lay_out_checkpoint(tmp_path)
    module = types.ModuleType("pasted")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    for block_page, text in _blocks("python"):
        if block_page == page:
            exec(compile(text, page, "exec", dont_inherit=True), vars(module))
