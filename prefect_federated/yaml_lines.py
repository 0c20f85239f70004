"""YAML read into plain values, with the line that each value stands on.

Plain on purpose: one document, no anchors, no tags, no key twice, so that what a person reads in
the file is what is meant.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

from prefect_federated.errors import ConfigurationError

Location: TypeAlias = tuple[str | int, ...]
"""Keys and list positions (from 0) that lead from the top of the document to a value."""


@dataclass(frozen=True)
class YamlDocument:
    """A YAML file's plain value (mapping, list, text, number, ...) and the line of each part.

    Args:
        file: The file, as errors name it.
        value: The document's content.
        lines: Location -> line, from 1: of the key for what stands in a mapping.
    """

    file: Path
    value: object
    lines: Mapping[Location, int]

    def line_of(self, location: Location) -> int:
        """Return the line of `location`, or of the innermost part around it that is there."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def value_at(self, location: Location) -> object:
        """Return the value at `location`, or None where nothing stands."""
        value = self.value
        for step in location:
            try:
                value = value[step]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def read_yaml(
    file: Path, wrong: type[ConfigurationError], instead: str, *, name: str | None = None
) -> YamlDocument:
    """Return a YAML file's content and where each part of it stands.

    Args:
        file: The file to read.
        wrong: What is raised, such as `FederationFileError`; its message begins with `file:line: `.
        instead: A sentence on what to do where there is no file that can be read.
        name: What errors call the file; its path if None.

    Raises:
        ConfigurationError: as `wrong`: the file cannot be read, or is not plain YAML.
    """
    shown = file if name is None else Path(name)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise wrong(f"{shown}:1: the file cannot be read ({error.strerror}). {instead}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise wrong(
            f"{shown}:{line}: the byte {content[error.start]:#04x} is not UTF-8. Save the file as "
            "UTF-8."
        ) from error
    try:
        return _read_document(shown, text, wrong)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise wrong(
            f"{shown}:{line}: a character that YAML does not allow ({error.reason}). Remove it."
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        column = mark.column + 1 if mark else 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise wrong(
            f"{shown}:{line}: not valid YAML at column {column}: {problem}. Check the indentation "
            "(spaces, no tabs), the colons and the quotes here and in the line before."
        ) from error


def _read_document(file: Path, text: str, wrong: type[ConfigurationError]) -> YamlDocument:
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise wrong(
                f"{file}:{line}: the alias *{event.anchor} is not read here. Write the value out."
            )
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    lines: dict[Location, int] = {}
    value = None if node is None else _plain(file, node, (), lines, wrong)
    lines.setdefault((), 1)
    return YamlDocument(file, value, lines)


def _plain(
    file: Path,
    node: yaml.Node,
    location: Location,
    lines: dict[Location, int],
    wrong: type[ConfigurationError],
) -> object:
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "this key"
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise wrong(
                    f"{file}:{line}: {key} cannot be a key. Keys are plain words, such as `name:`."
                )
            if key in mapping:
                raise wrong(
                    f"{file}:{line}: `{key}` stands twice; the first is in line "
                    f"{lines[(*location, key)]}. Keep one of them."
                )
            lines[(*location, key)] = line
            mapping[key] = _plain(file, value_node, (*location, key), lines, wrong)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [
            _plain(file, child, (*location, position), lines, wrong)
            for position, child in enumerate(node.value)
        ]
    try:
        value: object = yaml.constructor.SafeConstructor().construct_object(node)
    except ValueError as error:  # such as the date 2026-13-01
        raise wrong(
            f"{file}:{node.start_mark.line + 1}: {node.value!r} is not a value ({error}). "
            "Put it in quotes if it is text."
        ) from error
    return value
