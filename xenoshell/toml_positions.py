"""Where in a TOML text each key stands, from its syntax tree (tree-sitter). Only asked once something is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node

    from xenoshell.problems import Loc

#: Deeper than any file of ours; tree-sitter nests dotted keys too.
MAX_DEPTH = 200
_VALUES = frozenset(
    {
        "string", "integer", "float", "boolean", "array", "inline_table",
        "offset_date_time", "local_date_time", "local_date", "local_time",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Position:
    """Line and column (from 1) of a key and of its value; ``string`` is the value as written, if it is a string."""

    line: int
    column: int
    value_line: int
    value_column: int
    string: str | None = None


class Positions:
    """The position of every key, section and array element of a valid TOML text, by its place in the document."""

    def __init__(self, text: str) -> None:
        self._source = text.encode("utf-8", "surrogatepass")
        self._nodes: dict[Loc, tuple[Node, Node]] = {}
        # The tree must live as long as its nodes are asked.
        self._root = _tree(self._source)
        _collect(self._root, self._source, self._nodes)

    def find(self, loc: Loc) -> tuple[Position | None, bool]:
        """The position of ``loc``, or of the nearest thing around it; and whether it is ``loc`` itself."""
        for length in range(len(loc), 0, -1):
            nodes = self._nodes.get(loc[:length])
            if nodes is not None:
                return _position(*nodes, self._source), length == len(loc)
        return None, False


def _collect(root: Node, source: bytes, out: dict[Loc, tuple[Node, Node]]) -> None:
    """Notes the nodes of key and value of everything."""
    elements: Counter[Loc] = Counter()
    for node in root.children:
        if node.type == "pair":
            _pair(node, (), source, out, 0)
        elif node.type in ("table", "table_array_element"):
            key = _key_node(node)
            if key is None:
                continue
            base = _table(_key(key, source), node.type == "table_array_element", elements)
            for depth in range(1, len(base) + 1):
                out.setdefault(base[:depth], (node, node))
            for child in node.children:
                if child.type == "pair":
                    _pair(child, base, source, out, 0)


def _tree(source: bytes) -> Node:
    # Imported here: only files with errors need it.
    import tree_sitter_toml
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_toml.language())).parse(source).root_node


def _table(key: tuple[str, ...], in_array: bool, elements: Counter[Loc]) -> Loc:
    """The place that a table header means: names that are arrays of tables stand for their last element."""
    loc: Loc = ()
    for i, part in enumerate(key):
        loc += (part,)
        if in_array and i == len(key) - 1:
            elements[loc] += 1
        if elements[loc]:
            loc += (elements[loc] - 1,)
    return loc


def _pair(node: Node, base: Loc, source: bytes, out: dict[Loc, tuple[Node, Node]], depth: int) -> None:
    key, value = _key_node(node), _value_node(node)
    if key is None or value is None:
        return
    loc: Loc = base
    for part in _key(key, source):
        loc += (part,)
        out.setdefault(loc, (key, value))
    _value(value, loc, source, out, depth + 1)


def _value(node: Node, loc: Loc, source: bytes, out: dict[Loc, tuple[Node, Node]], depth: int) -> None:
    if depth > MAX_DEPTH:
        return
    if node.type == "array":
        for i, child in enumerate(child for child in node.children if child.type in _VALUES):
            out.setdefault((*loc, i), (child, child))
            _value(child, (*loc, i), source, out, depth + 1)
    elif node.type == "inline_table":
        for child in node.children:
            if child.type == "pair":
                _pair(child, loc, source, out, depth)


def _key_node(pair: Node) -> Node | None:
    return next((child for child in pair.children if child.type in ("bare_key", "quoted_key", "dotted_key")), None)


def _value_node(pair: Node) -> Node | None:
    return next((child for child in reversed(pair.children) if child.type in _VALUES), None)


def _key(node: Node, source: bytes) -> tuple[str, ...]:
    """The parts of a key. Dotted keys nest to the left, hence no recursion."""
    parts: list[str] = []
    pending = [node]
    while pending:
        current = pending.pop()
        if current.type == "dotted_key":
            pending.extend(current.children)
        elif current.type == "bare_key":
            parts.append(_text(current, source))
        elif current.type == "quoted_key":
            parts.append(_unquoted(_text(current, source)))
    return tuple(reversed(parts))


def _unquoted(text: str) -> str:
    if text.startswith('"') and "\\" in text:
        import tomllib

        try:
            return next(iter(tomllib.loads(f"{text} = 0")))
        except ValueError:
            return text[1:-1]
    return text[1:-1]


def _text(node: Node, source: bytes) -> str:
    return source[node.start_byte : node.end_byte].decode("utf-8", "replace")


def _position(key: Node, value: Node, source: bytes) -> Position:
    return Position(
        key.start_point[0] + 1, _column(key, source), value.start_point[0] + 1, _column(value, source),
        _text(value, source) if value.type == "string" else None,
    )  # fmt: skip


def _column(node: Node, source: bytes) -> int:
    """From 1, in characters."""
    start = node.start_byte - node.start_point[1]
    return len(source[start : node.start_byte].decode("utf-8", "replace")) + 1


def longest_key(text: str) -> tuple[int, int]:
    """Line (from 1) and number of parts of the dotted key with the most parts; (0, 0) if there is none."""
    longest = (0, 0)
    for node in _nodes(text):
        if node.type == "dotted_key" and (node.parent is None or node.parent.type != "dotted_key"):
            parts, inner = 1, node
            while inner.children and inner.type == "dotted_key":
                parts, inner = parts + 1, inner.children[0]
            if parts > longest[1]:
                longest = (node.start_point[0] + 1, parts)
    return longest


def long_integer(text: str, digits: int) -> int:
    """The line (from 1) of the first integer with more than ``digits`` digits; 0 if there is none."""
    return next(
        (n.start_point[0] + 1 for n in _nodes(text) if n.type == "integer" and n.end_byte - n.start_byte > digits), 0
    )


def deepest(text: str) -> int:
    """The line (from 1) where nesting is deepest."""
    source = text.encode("utf-8", "surrogatepass")
    cursor = _tree(source).walk()
    depth, best, line = 0, -1, 0
    while True:
        node = cursor.node
        if node is not None and depth > best:
            best, line = depth, node.start_point[0]
        if cursor.goto_first_child():
            depth += 1
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                return line + 1
            depth -= 1


def _nodes(text: str) -> Iterator[Node]:
    """Every node but those inside strings and long keys, without recursion."""
    cursor = _tree(text.encode("utf-8", "surrogatepass")).walk()
    while True:
        node = cursor.node
        if node is not None:
            yield node
        if node is not None and node.type not in ("string", "dotted_key") and cursor.goto_first_child():
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                return
