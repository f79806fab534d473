"""What `import transom` offers, and what it leaves alone."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import transom

PUBLIC = [
    "AttentionMask",
    "BuildContext",
    "LayoutMap",
    "ModelSpec",
    "ModuleSpec",
    "Part",
    "Plan",
    "TransformerConfig",
    "TransomError",
    "build",
    "build_module",
    "from_pretrained",
    "hookimpl",
    "list_implementations",
    "load_spec",
    "override",
    "plan",
    "register",
]


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_all_is_the_public_surface_sorted():
    assert transom.__all__ == PUBLIC == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_what_its_home_calls_so(name):
    value = getattr(transom, name)
    assert value is getattr(sys.modules[value.__module__], name)
    assert inspect.getdoc(value)


def test_type_checkers_see_the_names_where_they_are_loaded_from():
    tree = ast.parse(Path(transom.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    seen = {alias.asname: node.module for node in imports for alias in node.names if alias.asname}
    assert seen == transom._HOMES
    assert sorted(seen) == PUBLIC


def test_dir_lists_the_public_names():
    assert set(PUBLIC) < set(dir(transom))


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'transom' has no attribute 'bild'$"):
        transom.bild  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import transom",
        "import transom.slots",
        "import transom.cli.main",
        "from transom import TransformerConfig",
        "from transom import ModelSpec, load_spec; load_spec('tiny-llama')",
        "from transom import list_implementations; list_implementations()",
    ],
    ids=["transom", "slots", "cli", "config", "load_spec", "list_implementations"],
)
def test_import_loads_neither_torch_nor_numpy_nor_a_plugin(statement):
    loaded = _modules_after(statement)
    assert "transom" in loaded
    assert not {name for name in loaded if name in ("torch", "numpy", "rich") or name.startswith("transom_")}


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert transom.__version__ == version("transom")
