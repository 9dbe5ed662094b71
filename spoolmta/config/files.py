"""The files of a configuration: reading, including, merging, and where in them each key stands.

Included files are merged table by table. A table lives in one file only: were it spread over two, nobody could tell
from one of them what holds. The exceptions are the top level, where each key lives in one file only, and arrays of
tables, which grow by each file's elements.
"""

from __future__ import annotations

import glob
import pathlib
import re
import tomllib
from collections.abc import Iterator
from typing import Any

from spoolmta import address
from spoolmta.config import lines, values
from spoolmta.config.lines import Path
from spoolmta.errors import ConfigError

Place = tuple[str, int]
"""A file, named as the operator named it, and a line."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LONG_NUMBER = re.compile(r"[0-9_]{4000}")
_POSITION = re.compile(r" ?\(at (?:line (\d+), column \d+|end of document)\)\Z")


class Problems:
    """What is wrong, all of it, in the order of the files and their lines."""

    def __init__(self) -> None:
        self._found: list[tuple[int, int, str]] = []
        self._order: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Problems({self._found!r})"

    def add(self, place: Place, path: Path, text: str) -> None:
        file, line = place
        key = f"{dotted(path)}: " if path else ""
        self._found.append((self._order.setdefault(file, len(self._order)), line, f"{file}:{line}: {key}{text}"))

    def open(self, file: str) -> None:
        """Files come in the order in which they were opened."""
        self._order.setdefault(file, len(self._order))

    def raise_if_any(self) -> None:
        if self._found:
            raise ConfigError([text for _, _, text in sorted(self._found, key=lambda found: found[:2])])


class Unreadable(Exception):
    """Why a file gives no table: a clause, and the line for what stands in the file (0: the file itself)."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(text)
        self.text, self.line = text, line


class Document:
    """One merged tree and the place of every key in it."""

    def __init__(self, root: str) -> None:
        self.tree: dict[str, Any] = {}
        self.files: list[str] = []
        self._root: Place = (root, 1)
        self._places: dict[Path, Place] = {}
        self._tables: dict[Path, Place] = {}

    def __repr__(self) -> str:
        return f"Document({self.files!r}, {len(self._places)} keys)"

    def place(self, path: Path) -> Place:
        """Where the key stands; what has no line of its own stands where the nearest table or key above it does."""
        while path:
            if place := self._places.get(path):
                return place
            path = path[:-1]
        return self._root

    def merge(self, file: str, tree: dict[str, Any], found: lines.Lines, problems: Problems) -> None:
        taken: set[Path] = set()
        for path, line in found.tables.items():
            if first := self._tables.get(path):
                problems.add((file, line), path, f"the same table stands in {first[0]}:{first[1]}")
                taken.add(path)
            else:
                self._tables[path] = (file, line)
        grown = {key: len(value) for key, value in self.tree.items() if isinstance(value, list)}
        for path, line in found.keys.items():
            if len(path) > 1 and path[0] in grown and isinstance(path[1], int):
                path = (path[0], path[1] + grown[str(path[0])], *path[2:])
            self._places.setdefault(path, (file, line))
        for key in grown.keys() & tree.keys():
            for number in range(len(tree[key]) if isinstance(tree[key], list) else 0):
                self._places.setdefault((key, grown[key] + number), (file, found.keys[key,]))
        for path in list(_grow(self.tree, tree)):
            if path[:-1] not in taken:
                first = self.place(path)
                line = next((found.keys[path[:end]] for end in range(len(path), 0, -1) if path[:end] in found.keys), 1)
                problems.add((file, line), path, f"the same key stands in {first[0]}:{first[1]}")


def _grow(into: dict[str, Any], tree: dict[str, Any], above: Path = ()) -> Iterator[Path]:
    """Adds one tree to another; gives the paths of what both have, which stays as it was."""
    for key, value in tree.items():
        path = (*above, key)
        if key not in into:
            into[key] = value
            continue
        old = into[key]
        if isinstance(old, dict) and isinstance(value, dict):
            yield from _grow(old, value, path)
        elif isinstance(old, list) and isinstance(value, list) and not above:
            old.extend(value)
        else:
            yield path


def dotted(path: Path) -> str:
    """A path as it could be written in the file; the numbers in arrays of tables are left to the line number."""
    keys = [key for key in path if isinstance(key, str)]
    return ".".join(key if _BARE.fullmatch(key) else f'"{address.show(key)}"' for key in keys)


def parse(file: str) -> tuple[dict[str, Any], lines.Lines]:
    """The tree of one file and its line index. Raises Unreadable."""
    try:
        with open(file, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}") from None
    except ValueError:
        raise Unreadable("this is not the name of a file") from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable("there is a byte that is not UTF-8", data.count(b"\n", 0, error.start) + 1) from None
    try:
        return tomllib.loads(text), lines.index(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(str(error), text) from None
    except ValueError:  # Python refuses to read an integer of more than 4300 digits
        long = _LONG_NUMBER.search(text)
        raise Unreadable(
            "there is a number with too many digits", text.count("\n", 0, long.start() if long else 0) + 1
        ) from None


def _syntax_error(message: str, text: str) -> Unreadable:
    found = _POSITION.search(message)
    all_lines = text.split("\n")
    number = int(found[1]) if found and found[1] else len(text.rstrip("\n").split("\n"))
    what = _POSITION.sub("", message)
    line = all_lines[number - 1].strip() if number <= len(all_lines) else ""
    if line.startswith("[") and "*" in line and '"' not in line and "'" not in line:
        what += '; a name with a "*" in it is written in quotes, like [domain."*"]'
    return Unreadable(what, number)


def absolute(file: str, text: str) -> str:
    """A path that stands in a file, made absolute. Raises BadValue."""
    try:
        return str((pathlib.Path(file).parent / text).resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise values.BadValue(f"the path cannot be followed: {error}") from None


def named_in(file: str, text: str) -> str:
    """A file named in a file, as it is shown in messages."""
    return str(pathlib.Path(file).parent / text)


def read(file: str, problems: Problems) -> Document:
    """The main file and all it includes. Raises ConfigError if a file cannot be read or a table stands twice."""
    document = Document(file)
    problems.open(file)
    try:
        tree, found = parse(file)
    except Unreadable as error:
        place = f"{file}:{error.line}" if error.line else file
        raise ConfigError(f"{place}: {error.text}") from None
    document.files.append(absolute(file, pathlib.Path(file).name))
    _add(document, file, tree, found, problems)
    problems.raise_if_any()
    return document


def _add(document: Document, file: str, tree: dict[str, Any], found: lines.Lines, problems: Problems) -> None:
    patterns = tree.pop("include", [])
    document.merge(file, tree, found, problems)
    if ("include",) in found.keys:
        place = (file, found.keys["include",])
        try:
            for pattern in values.TEXTS.read(patterns):
                for included in _match(file, pattern):
                    _include(document, included, place, problems)
        except values.BadValue as error:
            problems.add(place, ("include",), str(error))


def _match(file: str, pattern: str) -> list[str]:
    parent = pathlib.Path(file).parent
    if not glob.has_magic(pattern):
        return [named_in(file, pattern)]
    return sorted(glob.glob(str(pathlib.Path(glob.escape(str(parent))) / pattern)))


def _include(document: Document, file: str, place: Place, problems: Problems) -> None:
    whole = absolute(file, pathlib.Path(file).name)
    if whole in document.files:
        return
    document.files.append(whole)
    problems.open(file)
    try:
        tree, found = parse(file)
    except Unreadable as error:
        if error.line:
            problems.add((file, error.line), (), error.text)
        else:
            problems.add(place, ("include",), f"{file}: {error.text}")
        return
    _add(document, file, tree, found, problems)
