"""The documentation site: its navigation, its generated pages, the notebook, and all links of the finished site."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path

import click
import nbformat
import pytest
import yaml
from click.testing import CliRunner
from markdown import markdown

import command_pages
import github_markdown
import scalr
from browser import show
from doc_examples import DOCS
from example_notebook import NOTEBOOK, SCRIPT, notebook_of
from scalr.cli import main

ROOT = DOCS.parent
NOT_IN_DOCS = {"index.md", "contributing.md", "changelog.md", "first_steps.md"}


class NavigationLoader(yaml.SafeLoader):
    """Reads mkdocs.yml, in which MkDocs allows tags of Python."""


NavigationLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def pages_of(navigation: list | dict | str) -> Iterator[str]:
    if isinstance(navigation, str):
        yield navigation
    else:
        entries = navigation.values() if isinstance(navigation, dict) else navigation
        yield from chain.from_iterable(map(pages_of, entries))


def test_each_page_is_in_the_navigation_once():
    """And each page that the navigation names exists."""
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), NavigationLoader)
    assert sorted(pages_of(settings["nav"])) == sorted(NOT_IN_DOCS | {path.name for path in DOCS.glob("*.md")})


@pytest.mark.parametrize("path", [path for path, _ in command_pages.commands()])
def test_a_command_s_page_says_what_its_help_says(path):
    """Word for word, in the same order."""
    said = CliRunner().invoke(main, [*path.split()[1:], "--help"], prog_name="scalr").output
    page = re.sub(r"\]\(\w+\.md\)", "]", command_pages.pages()[command_pages.place_of(path)])
    assert words_of(html.unescape(page).removeprefix(f"# {path}")) == words_of(said.removeprefix("Usage:"))


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\s\\`*_\[\](){}#:|<>-]+", text)


def test_each_command_has_a_page_in_the_navigation():
    groups = {"": main} | {f"{name}_": each for name, each in main.commands.items() if isinstance(each, click.Group)}
    expected = {"index", *(f"{prefix}{name}" for prefix, group in groups.items() for name in group.commands)}
    assert sorted(pages_of(command_pages.navigation())) == sorted(f"commands/{name}.md" for name in expected)
    assert sorted(pages_of(command_pages.navigation())) == sorted(command_pages.pages())


def test_the_notebook_is_that_of_the_script():
    """Else `make notebook` makes it again."""
    assert NOTEBOOK.read_text() == nbformat.writes(notebook_of(SCRIPT)) + "\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Some text\n* a list\n", "1 <li> on GitHub and 0 on the site"),
        ("* a list\n  * in a list\n", "2 <ul> on GitHub and 1 on the site"),
        ("Some text\n\n* a list\n    * in a list\n", None),
    ],
)
def test_markdown_that_github_reads_otherwise(text, what):
    found = list(github_markdown.differences(text, markdown(text, extensions=["tables", "sane_lists"])))
    assert [each.partition(":")[0] for each in found][:1] == ([what] if what else [])


# The finished site


class Parts(HTMLParser):
    """The anchors of a page, and all that it refers to: links, and what a browser loads with it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("prev", "next"):
            self.loaded.append(given["href"])
        self.loaded += [given[name] for name in ("src", "srcset") if given.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def parts(site) -> dict[Path, Parts]:
    """Of all pages but that which a server shows in place of those that do not exist."""
    return {page: Parts(page) for page in site.rglob("*.html") if page.name != "404.html"}


@pytest.mark.slow
def test_each_link_leads_to_a_page_and_an_anchor_of_it(parts):
    lost = []
    for page, found in parts.items():
        for target in found.links:
            if re.match(r"\w+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if not file.is_file() or (file in parts and anchor not in parts[file].anchors):
                lost.append((page.name, target))
    assert sum(len(found.links) for found in parts.values()) > 1000
    assert lost == []


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(parts):
    for page, found in parts.items():
        assert found.loaded
        for target in found.loaded:
            assert (page.parent / target.partition("?")[0]).is_file(), (page.name, target)


@pytest.mark.slow
def test_the_python_api_has_every_public_name_with_its_text(site, parts):
    page = site / "api/scalr.html"
    text = " ".join(words_of(html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))))
    for name in scalr.__all__:
        assert f"scalr.{name}" in parts[page].anchors
        assert " ".join(words_of(getattr(scalr, name).__doc__.partition("\n")[0])) in text


@pytest.mark.slow
def test_the_notebook_s_page_shows_its_pictures(site):
    pictures = re.findall(r'src="(first_steps/\d\.png)"', (site / "first_steps.html").read_text())
    assert len(pictures) == 3
    assert all((site / picture).stat().st_size > 10_000 for picture in pictures)


@pytest.mark.slow
def test_search_works_in_a_page_that_is_opened_from_a_file(site, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    show(browser, site / "commands/extract.html")
    browser.find_element("css selector", "input.md-search__input").send_keys("occlusion")
    WebDriverWait(browser, 60).until(lambda _: browser.find_elements("css selector", ".md-search-result__item a"))
    hrefs = [each.get_attribute("href") for each in browser.find_elements("css selector", ".md-search-result__link")]
    assert any("commands/extract.html" in href for href in hrefs)
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
