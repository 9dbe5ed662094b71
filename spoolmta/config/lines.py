"""On which line of a TOML text each key and table stands.

`tomllib` keeps no positions, so this walks over the same text once more. It is only asked about text that `tomllib` has
accepted: it needs to know where statements begin and end, not whether they are right. A path is the keys from the root,
with the number of the element in an array of tables: `("acct-file", 0, "path")`. What stands inside an inline table or
an array has no line of its own and gets the line of its key.
"""

from __future__ import annotations

import re
import tomllib

import msgspec

Path = tuple[str | int, ...]

_STRING = (
    r'"""(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}'
    r"|'''(?:[^']++|'{1,2}(?!'))*+'{3,5}"
    r'|"(?:[^"\\\n]++|\\.)*+"'
    r"|'[^'\n]*+'"
)
_PART = r"(?:[A-Za-z0-9_-]++|\"(?:[^\"\\\n]++|\\.)*+\"|'[^'\n]*+')"
_BLANK = re.compile(r"(?:[ \t\n]++|#[^\n]*+)*+")
_STATEMENT = re.compile(rf"(\[\[|\[)?[ \t]*+({_PART}(?:[ \t]*+\.[ \t]*+{_PART})*+)[ \t]*+(?:\]\]|\]|=)")
_PARTS = re.compile(_PART)
_TOKEN = re.compile(rf"{_STRING}|#[^\n]*+|[\[{{]|[\]}}]|\n|[^\"'#\[\]{{}}\n]++", re.DOTALL)
_SIMPLE = re.compile(r"[^\"'#\[{\n]*+(?:\"[^\"\\\n]*+\"(?!\")[ \t]*+)?(?:#[^\n]*+)?(?:\n|\Z)")


class Lines(msgspec.Struct, frozen=True):
    """`keys` has every statement's path, headers and the tables above them too; `tables` only what was opened as a
    table, by a header or by a dotted key, each element of an array of tables left out."""

    keys: dict[Path, int]
    tables: dict[Path, int]


def index(text: str) -> Lines:
    """The lines of a text that `tomllib` has accepted."""
    text = text.replace("\r\n", "\n")
    keys: dict[Path, int] = {}
    tables: dict[Path, int] = {}
    elements: dict[Path, int] = {}
    table: Path = ()
    line, counted = 1, 0
    position = _after(_BLANK, text, 0)
    while statement := _STATEMENT.match(text, position):
        line, counted = line + text.count("\n", counted, position), position
        opening, written = statement.groups()
        parts = _split(written)
        if opening is None:
            path = table + parts
            for depth in range(len(table) + 1, len(path)):
                tables.setdefault(path[:depth], line)
            position = _behind_value(text, statement.end())
        else:
            path = table = _table(parts, elements, opening == "[[")
            if opening == "[":
                tables.setdefault(path, line)
            position = statement.end()
        while path and path not in keys:
            keys[path] = line
            path = path[:-1]
        position = _after(_BLANK, text, position)
    return Lines(keys, tables)


def _after(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else position


def _split(written: str) -> tuple[str, ...]:
    if '"' not in written and "'" not in written:
        return tuple(part.strip() for part in written.split("."))
    return tuple(_unquote(part) for part in _PARTS.findall(written))


def _unquote(part: str) -> str:
    if part[0] not in "\"'":
        return part
    if "\\" not in part or part[0] == "'":
        return part[1:-1]
    return next(iter(tomllib.loads(f"{part} = 0")))


def _table(parts: tuple[str, ...], elements: dict[Path, int], is_element: bool) -> Path:
    """The path of a header: what stands below an array of tables belongs to the latest element."""
    path: Path = ()
    for depth, part in enumerate(parts, 1):
        path += (part,)
        if is_element and depth == len(parts):
            elements[path] = elements.get(path, -1) + 1
        if path in elements:
            path += (elements[path],)
    return path


def _behind_value(text: str, position: int) -> int:
    if simple := _SIMPLE.match(text, position):
        return simple.end()
    depth = 0
    while token := _TOKEN.match(text, position):
        position = token.end()
        if token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1
        elif token[0] == "\n" and depth == 0:
            break
    return position
