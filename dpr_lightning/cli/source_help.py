"""Help read from the source of a function or class, without importing it: its options, defaults and docstring."""

import ast
import importlib.util
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from docstring_parser import parse

from dpr_lightning.errors import InputError

REFERENCE = re.compile(r":\w+:`~?(?:[\w.]+\.)?([^`]+)`")
"""A link of Sphinx, of which the last part of the name is printed."""
WIDEST = 110
"""Columns of a page on a wide terminal."""


@dataclass(frozen=True)
class Option:
    """A parameter.

    Attributes:
        name: of the parameter.
        default: as in the source; None where it is required.
        text: of the docstring.
        types: names in its annotation.
    """

    name: str
    default: str | None
    text: str
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signature:
    """A function or class: the first paragraph of its docstring, and its parameters."""

    summary: str
    options: list[Option]


def read_signature(module: str, name: str) -> Signature:
    """Read a function, or a class: its ``__init__``, or the fields of a dataclass.

    Args:
        module: dotted name; of a package, the ``__init__`` names the module that defines ``name``.
        name: of the function or class.

    Raises:
        InputError: the module has none of this name.
    """
    tree = ast.parse(_source(module).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and any(each.name == name for each in node.names):
            return read_signature(node.module, name)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return _signature(node, _constants(tree))
    raise InputError(f"There is no {name!r} in {module}.")


def public_classes(package: str) -> list[str]:
    """The names in ``__all__`` of a package that begin with a capital letter."""
    tree = ast.parse(_source(package).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return [name for name in ast.literal_eval(node.value) if name[0].isupper()]
    return []


def option_lines(options: list[Option], prefix: str = "--") -> list[str]:
    """Lines of a page, at the terminal's width: name and default on the left, text on the right."""
    width = min(WIDEST, shutil.get_terminal_size().columns)
    names = [f"  {prefix}{option.name}" + _default_text(option) for option in options]
    column = min(max((len(name) for name in names), default=0) + 2, 36)
    lines = []
    for name, option in zip(names, options, strict=True):
        text = textwrap.wrap(option.text, max(30, width - column)) or [""]
        if len(name) + 2 > column:
            lines.append(name)
            name = ""
        lines.append(f"{name:{column}}{text[0]}".rstrip())
        lines += [" " * column + line for line in text[1:]]
    return lines


def _default_text(option: Option) -> str:
    """With a space before it; empty without a default, and for one that is computed or empty."""
    value = {"True": "true", "False": "false"}.get(option.default or "", option.default)
    if value is None or value == "()" or (value.isidentifier() and value not in ("true", "false")):
        return ""
    return f" {value}".replace("'", "")


def _source(module: str) -> Path:
    top, *inner = module.split(".")
    # Finding a package imports what is around it: nothing, or dpr_lightning, which imports nothing itself. Its folder
    # callbacks/ lies elsewhere in a checkout.
    count = 2 if top == "dpr_lightning" else 1
    spec = importlib.util.find_spec(".".join([top, *inner][:count]))
    if spec is None or spec.origin is None:
        raise InputError(f"There is no module {module!r}.")
    path = Path(spec.origin)
    if rest := [top, *inner][count:]:
        path = path.parent.joinpath(*rest)
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        raise InputError(f"There is no module {module!r}.")
    return path


def _constants(tree: ast.Module) -> dict[str, str]:
    """Names of texts and numbers that defaults refer to."""
    return {
        target.id: repr(node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets[0] if isinstance(node, ast.Assign) else node.target,)
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant)
    }


def _signature(node: ast.FunctionDef | ast.ClassDef, constants: Mapping[str, str]) -> Signature:
    docstrings = [ast.get_docstring(node) or ""]
    if isinstance(node, ast.FunctionDef):
        parameters = _parameters(node)
    else:
        inits = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        docstrings += [ast.get_docstring(init) or "" for init in inits]
        parameters = _parameters(inits[0]) if inits else _fields(node)
    parsed = [parse(docstring) for docstring in docstrings]
    texts = {each.arg_name: each.description or "" for docstring in parsed for each in docstring.params}
    options = [
        replace(
            option, default=constants.get(str(option.default), option.default), text=_flat(texts.get(option.name, ""))
        )
        for option in parameters
    ]
    return Signature(_flat(next(filter(None, docstrings), "").partition("\n\n")[0]), options)


def _option(name: str, default: ast.expr | None, annotation: ast.expr | None) -> Option:
    types = () if annotation is None else tuple(_type_names(annotation))
    return Option(name, None if default is None else ast.unparse(default), "", types)


def _type_names(annotation: ast.expr) -> Iterator[str]:
    """The names of types in an annotation, without what ``Annotated`` adds to one."""
    if isinstance(annotation, ast.Name):
        yield annotation.id
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        assert isinstance(annotation.slice, ast.Tuple)
        yield from _type_names(annotation.slice.elts[0])
    else:
        for part in ast.iter_child_nodes(annotation):
            if isinstance(part, ast.expr):
                yield from _type_names(part)


def _parameters(node: ast.FunctionDef) -> list[Option]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [_option(each.arg, value, each.annotation) for each, value in pairs if each.arg != "self"]


def _fields(node: ast.ClassDef) -> list[Option]:
    return [
        _option(each.target.id, each.value, each.annotation)
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    ]


def _flat(text: str) -> str:
    """One line, without the marks of code."""
    return " ".join(REFERENCE.sub(r"\1", text).replace("``", "").split())
