"""A page for each command, with what its --help says."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator

import click

from scalr.cli import main

NAME = "scalr"
FOLDER = "commands"


def navigation() -> list:
    """`scalr`, its commands in the order of its help, and the commands of a group below the group."""
    return [{NAME: place_of(NAME)}, *_entries(main, NAME)]


def pages() -> dict[str, str]:
    """Markdown by its place in the site."""
    return {place_of(path): _page(command, path) for path, command in commands()}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Each command with its path, such as 'scalr evaluate probe'."""
    waiting = [(NAME, main)]
    while waiting:
        path, command = waiting.pop(0)
        yield path, command
        waiting += [(f"{path} {name}", each) for name, each in _commands_of(command)]


class MarkdownHelp(click.HelpFormatter):
    """Where click writes a help text: as Markdown, in which options and commands are definition lists."""

    def __init__(self, links: dict[str, str]) -> None:
        super().__init__(indent_increment=4)  # what is written as it is under a heading becomes code
        self.links = links

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        self.write(f"    {prog} {args}\n\n")

    def write_heading(self, heading: str) -> None:
        self.write(f"## {heading}\n\n")

    def write_text(self, text: str) -> None:
        self.write(f"{_escaped(text)}\n\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        for term, meaning in rows:
            shown = f"[`{term}`]({self.links[term]})" if term in self.links else f"`{term}`"
            self.write(f"{shown}\n:   {_escaped(meaning)}\n\n")


def _page(command: click.Command, path: str) -> str:
    parent, _, name = path.rpartition(" ")
    context = click.Context(command, info_name=name, parent=_context(parent) if parent else None)
    formatter = MarkdownHelp(
        {name: place_of(f"{path} {name}").removeprefix(f"{FOLDER}/") for name, _ in _commands_of(command)}
    )
    command.format_help(context, formatter)
    return f"# {path}\n\n{formatter.getvalue()}"


def _context(path: str) -> click.Context:
    """What click calls the commands that lead to one."""
    return click.Context(click.Command(path), info_name=path)


def _entries(group: click.Group, path: str) -> list:
    entries = []
    for name, command in _commands_of(group):
        below = _entries(command, f"{path} {name}") if isinstance(command, click.Group) else []
        place = place_of(f"{path} {name}")
        entries.append({name: [{name: place}, *below] if below else place})
    return entries


def _commands_of(command: click.Command) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return []
    return [(name, command.commands[name]) for name in command.list_commands(click.Context(command))]


def place_of(path: str) -> str:
    """Where the page of a command is in the site."""
    name = "_".join(path.split()[1:]) or "index"
    return f"{FOLDER}/{name}.md"


def _escaped(text: str) -> str:
    """Plain text as Markdown that shows it."""
    return re.sub(r"([\\`*_\[\]])", r"\\\1", html.escape(" ".join(text.split(" ")), quote=False))
