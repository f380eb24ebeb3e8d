"""MkDocs reads Markdown by other rules than GitHub: whether a page has the same parts by both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser

from markdown_it import MarkdownIt

IN_A_LIST = "indent by four spaces what belongs to an item of a list"
REMEDIES = {
    "li": f"leave a line empty before a list, and {IN_A_LIST}",
    "ul": IN_A_LIST,
    "ol": IN_A_LIST,
    "table": "leave a line empty before a table",
    "pre": "leave a line empty before code",
    "h2": "leave a line empty before a heading",
}


def differences(markdown: str, html: str) -> Iterator[str]:
    """What a page lacks or has too much, and what helps.

    Args:
        markdown: as people write it.
        html: what MkDocs makes of it.
    """
    on_github, on_site = elements(MarkdownIt("commonmark").enable("table").render(markdown)), elements(html)
    for tag, remedy in REMEDIES.items():
        if on_github[tag] != on_site[tag]:
            yield f"{on_github[tag]} <{tag}> on GitHub and {on_site[tag]} on the site: {remedy}"


def elements(html: str) -> Counter[str]:
    """How many elements there are of each tag."""
    found: Counter[str] = Counter()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.update([tag])
    parser.feed(html)
    return found
