"""What MkDocs adds to docs/*.md: pages made from elsewhere in the repository, and links that lead to them.

MkDocs calls the functions `on_…` by their names (mkdocs.yml, `hooks`). A warning fails the build.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import command_pages
import reference_pages
from example_notebook import SCRIPT, executed, notebook_of, page_of
from github_markdown import differences

logger = logging.getLogger("mkdocs.hooks")

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "build/api/scalr"  # also in mkdocs.yml
# Files outside docs/ that are part of the site: pages, and files to download.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE.txt",
    "CITATION.cff": "CITATION.cff",
    "examples/first_steps.py": "first_steps.py",
    "examples/first_steps.ipynb": "first_steps.ipynb",
}
# A file of the repository that a link or picture in Markdown or HTML leads to, without an anchor.
TARGET = re.compile(r'(?:(?<=\]\()|(?<= src=")|(?<= href=")|(?<= srcset="))(?!\w+:)[^)\s"#]+')
OPTION = re.compile(r"<code>(?=--?[\w-]{1,30}</code>)")

first_steps: dict[str, str | bytes] = {}  # the notebook's page and pictures


def on_startup(**_: object) -> None:
    """Prepare what is made once, also by `mkdocs serve`, which builds the site again after each change.

    The notebook is run. And the package gets a folder of its own name: mkdocstrings finds packages by that, and the
    repository's folder may have any.
    """
    logger.info("Running the notebook of %s", SCRIPT)
    first_steps.update(page_of(executed(notebook_of(SCRIPT))))
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for link in PACKAGE.iterdir():
        link.unlink()
    for path in [*ROOT.glob("*.py"), *(file.parent for file in ROOT.glob("*/__init__.py"))]:
        (PACKAGE / path.name).symlink_to(path)


def on_config(config: MkDocsConfig) -> None:
    """Fill the parts of the navigation whose pages are generated."""
    generated = {"Commands": command_pages.navigation(), "Python API": reference_pages.navigation()}
    config.nav = [{title: generated.get(title, pages) for title, pages in entry.items()} for entry in config.nav]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages and files that are not in docs/."""
    elsewhere = {place: (ROOT / path).read_text() for path, place in ELSEWHERE.items()}
    for place, content in (elsewhere | first_steps | command_pages.pages() | reference_pages.pages()).items():
        files.append(File.generated(config, place, content=content))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    place, path = page.file.src_uri, path_in_repository(page)
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # it has no other pages beside it
    folder = posixpath.dirname(path or f"docs/{place}")

    def on_site(target: re.Match) -> str:
        leads_to = posixpath.normpath(posixpath.join(folder, target[0]))
        if leads_to not in ELSEWHERE and not leads_to.startswith("docs/"):
            logger.warning("%s links to %s, which is not on the site", path or place, leads_to)
        found = ELSEWHERE.get(leads_to, leads_to.removeprefix("docs/"))
        return os.path.relpath(found, posixpath.dirname(place) or ".")

    return TARGET.sub(on_site, markdown)


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Compare what people wrote with what GitHub makes of it, and mark options, which no line may break."""
    path = path_in_repository(page)
    for difference in differences((ROOT / path).read_text(), html) if path else ():
        logger.warning("%s: %s", path, difference)
    return OPTION.sub('<code class="option">', html)


def path_in_repository(page: Page) -> str | None:
    """The path of a page that people write; None if it is generated."""
    place = page.file.src_uri
    return next((path for path, to in ELSEWHERE.items() if to == place), f"docs/{place}" if page.file.src_dir else None)
