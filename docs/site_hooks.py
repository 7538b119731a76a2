"""Hooks of the documentation site: of MkDocs for each page, and of griffe for each function that it reads."""

import re
from typing import Any

from griffe import Class, Expr, ExprBinOp, ExprSubscript, ExprTuple, Extension, Function

ROLES = re.compile(r":(?:class|func|meth|data|mod|attr):(?=<code>)")
"""Markers of cross-references in docstrings, in front of a name in backticks."""


def on_page_content(html: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page: removes the markers of cross-references that docstrings have."""
    return ROLES.sub("", html)


class PlainTypes(Extension):
    """Shows ``Annotated[str, Writes(…)]`` as ``str``."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Called by griffe for each function."""
        for parameter in func.parameters:
            parameter.annotation = plain(parameter.annotation)

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Called by griffe for each class: the fields of a dataclass are its parameters."""
        for attribute in cls.attributes.values():
            if not attribute.is_alias:
                attribute.annotation = plain(attribute.annotation)


def plain(annotation: str | Expr | None) -> str | Expr | None:
    """The type without what ``Annotated`` adds, also inside of a union or a list."""
    if isinstance(annotation, ExprSubscript) and annotation.canonical_path.endswith("Annotated"):
        inner = annotation.slice
        return plain(inner.elements[0] if isinstance(inner, ExprTuple) else inner)
    if isinstance(annotation, ExprBinOp):
        annotation.left, annotation.right = plain(annotation.left), plain(annotation.right)
    elif isinstance(annotation, ExprSubscript):
        annotation.slice = plain(annotation.slice)
    return annotation
