"""The names that code compares: what says of a task or an objective that it is one file."""

import ast
from collections.abc import Iterator


def compared(tree: ast.AST) -> Iterator[ast.expr]:
    """What is compared with something, is a case of a match, or a key of a dictionary."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from (node.left, *node.comparators)
        elif isinstance(node, ast.MatchValue):
            yield node.value
        elif isinstance(node, ast.Dict):
            yield from (key for key in node.keys if key is not None)


def words(expression: ast.expr) -> Iterator[str]:
    """The strings in an expression that is one, or a tuple, a list or a set of them."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield expression.value
    elif isinstance(expression, ast.Tuple | ast.List | ast.Set):
        for element in expression.elts:
            yield from words(element)


def compared_words(source: str) -> set[str]:
    """The strings that a module compares, matches, or has as keys of dictionaries."""
    found = set()
    for expression in compared(ast.parse(source)):
        found.update(words(expression))
    return found
