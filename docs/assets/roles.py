"""An extension of griffe: what docstrings spell for other tools becomes Markdown."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|mod|meth|data|attr):`~?([^`]+)`")
LITERAL_BLOCK = re.compile(r"::$", re.M)


class Roles(griffe.Extension):
    """``:func:`adapt.tree.match` `` becomes a name in code, and ``::`` before an example a colon."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = LITERAL_BLOCK.sub(":", text)
