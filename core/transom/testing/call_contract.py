"""What a plugin calls of another package, held to what that package was recorded to have; neither is imported.

A package that cannot be installed everywhere is read once: `record` writes down the signatures of what a plugin uses.
`unmet_calls` then reads the plugin's own source, anywhere, and says which import or call the record does not allow.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["record", "unmet_calls"]

Names = Mapping[str, Mapping[str, Any]]
"""Signatures by dotted name: ``kind``, ``parameters`` as source text, and ``methods`` of a class."""

_Callable = ast.FunctionDef | ast.AsyncFunctionDef


def record(sources: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Write down the signatures of functions and classes.

    Args:
        sources: text of modules, by dotted name.
        wanted: public dotted names, each with the module that defines it.

    Returns:
        by public name: ``kind``, ``parameters`` (of a class: of its constructor) as source text, and a class's
        ``methods``, those that it inherits within ``sources`` included.

    Raises:
        LookupError: a name is not there.

    Example:
        >>> record({"acme.norms": "def rms(x, weight, eps=1e-6): ..."}, {"acme.rms": "acme.norms"})
        {'acme.rms': {'kind': 'function', 'parameters': 'x, weight, eps=1e-06'}}
    """
    trees = {module: ast.parse(text) for module, text in sources.items()}
    classes = {node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)}
    found = {}
    for name, home in wanted.items():
        node = _definition(trees[home], name.rpartition(".")[2])
        if node is None:
            raise LookupError(f"{home} defines no {name.rpartition('.')[2]}, which {name} should be")
        found[name] = _function(node) if not isinstance(node, ast.ClassDef) else _class(node, classes)
    return found


def _definition(tree: ast.Module, name: str) -> _Callable | ast.ClassDef | None:
    """Find a definition at the top of a module, one within an `if` or a `try` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return node
    return None


def _function(node: _Callable) -> dict[str, Any]:
    return {"kind": "function", "parameters": _plain(node.args)}


def _class(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, Any]:
    methods = {name: _method(method) for name, method in _methods(node, classes).items()}
    if "forward" in methods and any(_last(base) == "Function" for base in _bases(node, classes)):
        methods["apply"] = f"{methods['forward']}, /"  # torch.autograd.Function.apply takes no keywords
    parameters = methods.pop("__init__", None)
    if parameters is None:
        parameters = ", ".join(_fields(node))
    public = {name: text for name, text in sorted(methods.items()) if not name.startswith("_")}
    return {"kind": "class", "parameters": parameters, "methods": public}


def _bases(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Iterator[ast.expr]:
    for base in node.bases:
        yield base
        inherited = classes.get(_last(base))
        if inherited is not None and inherited is not node:
            yield from _bases(inherited, classes)


def _methods(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, _Callable]:
    found: dict[str, _Callable] = {}
    for base in reversed(node.bases):
        inherited = classes.get(_last(base))
        if inherited is not None and inherited is not node:
            found |= _methods(inherited, classes)
    return found | {each.name: each for each in node.body if isinstance(each, _Callable)}


def _method(node: _Callable) -> str:
    """Give a method's parameters without ``self``; a static method's without the ``ctx`` of autograd."""
    decorators = {_last(each) for each in node.decorator_list}
    arguments = node.args
    bound = [*arguments.posonlyargs, *arguments.args]
    if bound and ("staticmethod" not in decorators or bound[0].arg == "ctx"):
        (arguments.posonlyargs or arguments.args).pop(0)
    return _plain(arguments)


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """Yield the fields of a dataclass as parameters."""
    if not any(_last(each.func if isinstance(each, ast.Call) else each) == "dataclass" for each in node.decorator_list):
        return
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield each.target.id + ("" if each.value is None else f"={ast.unparse(each.value)}")


def _plain(arguments: ast.arguments) -> str:
    """Give parameters as text, without their annotations."""
    for each in ast.walk(arguments):
        if isinstance(each, ast.arg):
            each.annotation = None
    return ast.unparse(arguments)


def _last(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def unmet_calls(files: Iterable[Path], names: Names) -> tuple[str, ...]:
    """Say which imports and calls in a plugin's source the record does not allow; empty = none.

    What is imported from a recorded package must be recorded. A call of it, of what its constructor gave (under the
    name it was assigned to, or of an argument that is annotated so), or of a method of that, must fit the signature.
    Arguments that are unpacked with ``**`` cannot be read and are a complaint.

    Args:
        files: modules of the plugin.
        names: as `record` gave them.

    Returns:
        one complaint each, with file and line.

    Example:
        >>> from pathlib import Path
        >>> unmet_calls([Path(__file__)], {"acme.rms": {"kind": "function", "parameters": "x"}})
        ()
    """
    return tuple(f"{file.name}:{complaint}" for file in files for complaint in _File(file, names).complaints())


@dataclass(frozen=True)
class _File:
    """One module of a plugin."""

    file: Path
    names: Names

    def complaints(self) -> Iterator[str]:
        tree = ast.parse(self.file.read_text(encoding="utf-8"))
        known: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import):
                yield from self._imported(node, known)
        made = {name: target for node in ast.walk(tree) for name, target in self._constructed(node, known)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield from self._called(node, known, made)

    def _imported(self, node: ast.ImportFrom | ast.Import, known: dict[str, str]) -> Iterator[str]:
        packages = {name.split(".")[0] for name in self.names}
        for alias in node.names:
            whole = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
            if whole.split(".")[0] not in packages:
                continue
            is_module = any(name.startswith(f"{whole}.") for name in self.names)
            if whole not in self.names and not is_module:
                yield f"{node.lineno}: imports {whole}, which is not recorded"
                continue
            as_is = whole.split(".")[0] if isinstance(node, ast.Import) else alias.name
            known[alias.asname or as_is] = whole if alias.asname or isinstance(node, ast.ImportFrom) else as_is

    def _constructed(self, node: ast.AST, known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.arg) and node.annotation is not None:
            target = self._dotted(node.annotation, known)
            if target in self.names:
                yield node.arg, target
            return
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Call):
            return
        target = self._dotted(node.value.func, known)
        if target in self.names and self.names[target]["kind"] == "class":
            targets: Sequence[ast.expr] = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((ast.unparse(each), target) for each in targets)

    def _dotted(self, node: ast.expr, known: Mapping[str, str]) -> str:
        """Give the whole name of what is written, `""` when it does not start at an import."""
        first, _, rest = ast.unparse(node).partition(".")
        return f"{known[first]}{'.' if rest else ''}{rest}" if first in known else ""

    def _called(self, node: ast.Call, known: Mapping[str, str], made: Mapping[str, str]) -> Iterator[str]:
        written = ast.unparse(node.func)
        owner, _, method = written.rpartition(".")
        target = self._dotted(node.func, known)
        if target in self.names:
            yield from _misfits(node, written, self.names[target]["parameters"])
        elif target.rpartition(".")[0] in self.names:
            yield from self._method_called(node, written, target.rpartition(".")[0], method)
        elif target:
            yield f"{node.lineno}: calls {target}, which is not recorded"
        elif written in made:
            yield from self._method_called(node, written, made[written], "forward")
        elif owner in made:
            yield from self._method_called(node, written, made[owner], method)

    def _method_called(self, node: ast.Call, written: str, owner: str, method: str) -> Iterator[str]:
        methods = self.names[owner].get("methods", {})
        if method in methods:
            yield from _misfits(node, written, methods[method])
        elif method not in _OF_EVERY_MODULE:
            yield f"{node.lineno}: calls {written}, and {owner} has no {method}"


_OF_EVERY_MODULE = frozenset({"named_parameters", "parameters", "state_dict", "register_parameter", "to"})


def _misfits(node: ast.Call, written: str, parameters: str) -> Iterator[str]:
    """Say what of a call does not fit a signature."""
    where = f"{node.lineno}: {written}"
    found = ast.parse(f"def f({parameters}): ...").body[0]
    assert isinstance(found, ast.FunctionDef)
    arguments = found.args
    positional = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    by_name = {each.arg for each in (*arguments.args, *arguments.kwonlyargs)}
    if any(isinstance(each, ast.Starred) for each in node.args) or any(each.arg is None for each in node.keywords):
        yield f"{where} is called with arguments that cannot be read"
        return
    if len(node.args) > len(positional) and arguments.vararg is None:
        yield f"{where} takes {len(positional)} positional arguments, not {len(node.args)}"
    given = {each.arg for each in node.keywords if each.arg is not None}
    for name in sorted(given - by_name):
        if arguments.kwarg is None:
            yield f"{where} takes no argument {name!r}"
    filled = given | set(positional[: len(node.args)])
    for name in _required(arguments):
        if name not in filled:
            yield f"{where} lacks the argument {name!r}"


def _required(arguments: ast.arguments) -> list[str]:
    positional = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return positional[: len(positional) - len(arguments.defaults)] + [each.arg for each, d in named if d is None]
