"""The demo on the smallest of worlds: its commands, and its page in a browser."""

from __future__ import annotations

import html
import re
import shlex
from dataclasses import replace
from pathlib import Path
from unittest import mock

import click
import pytest
from click.testing import CliRunner

from browser import DESKTOP, PHONE, show
from scalr import demo, demo_report
from scalr.cli import main
from scalr.demo_report import DemoRun
from scalr.errors import TeacherError

SECTIONS = (
    *("What ran", "Points and pixels", "Teacher and student", "Similarity map", "Distillation"),
    *("Linear probe by class", "The store"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> DemoRun:
    """`scalr demo`, whose training is far too short to learn anything."""
    shorter = ("training.epochs=2", "training.warmup_steps=1", "training.workers=0", "student.depth=3")
    load_recipe, run_demo, runs = demo.load_recipe, demo.run_demo, []
    with mock.patch.multiple(
        demo,
        WORLD={"train_scenes": 1, "val_scenes": 1, "keyframes": 1},
        IMAGE_SIZE=(28, 56),
        load_recipe=lambda name, overrides: load_recipe(name, [*overrides, *shorter]),
        run_demo=lambda *arguments: runs.append(run_demo(*arguments)) or runs[-1],
    ):
        out = tmp_path_factory.mktemp("demo") / "out"
        result = CliRunner().invoke(main, ["demo", "--out", str(out), "--seed", "3", "--weights", "random"])
    assert result.exit_code == 0, result.output
    assert f"report: {out}/report.html" in result.stdout
    return runs[0]


@pytest.fixture(scope="module")
def page(run) -> str:
    return run.report.read_text()


def test_each_step_is_a_command_that_the_command_line_takes(run):
    """click parses each, and finds the folders that the step read and wrote."""
    written = []
    for step in run.steps:
        program, *words = shlex.split(step.command)
        assert program == "scalr"
        command: click.Command = main
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        options = command.make_context(command.name, words).params
        assert all(path.exists() for name, path in options.items() if name in ("root", "student", "cache"))
        if not options.get("dry_run"):
            written.append(options["out"])
    assert all(path.exists() for path in written)
    assert len(set(written)) == len(written) == 7


def test_the_page_has_a_section_for_each_stage(page, run):
    assert tuple(re.findall("<h2>(.*?)</h2>", page)) == SECTIONS
    assert f"{run.distilled.miou:.1%}" in page
    assert f"{run.store.teachers[run.teacher].bytes / sum(run.store.pairs.values()):.1f}" in page
    for encoding in ("point float16", "point int8", "patch float16", "patch int8"):
        assert f"targets as {encoding}" in page
    for name in run.distilled.class_names:
        assert f"<td>{name.replace('_', '_<wbr>')}</td>" in page
    assert page.count("<code><span>scalr</span> <span>") == len(run.steps)
    areas = run.similarity.areas
    student, teacher = (each.means["centred"] for each in (areas.student_on_pairs, areas.teacher))
    assert f"{student:.3f}, the teacher's {teacher:.3f}" in html.unescape(page)


def test_the_page_says_whose_weights_the_teacher_has(run, page):
    provenance = {"weights": "file", "weights_sha256": "0123456789abcdef"}
    targets = replace(run.store.teachers[run.teacher], provenance=provenance)
    real = demo_report.teacher_sentences(run.teacher, targets)
    assert "RANDOM" in page
    assert "colours: this page shows" in page
    assert real.startswith("Teacher dinov2_vits14, weights from file, SHA-256 0123456789ab.")
    assert "colours" not in real


@pytest.mark.parametrize(("answers", "weights"), [(True, "hub"), (False, "random")])
def test_weights_are_the_hub_s_where_it_answers(tmp_path, monkeypatch, answers, weights):
    def load_teacher(name, **options):
        raise TeacherError(options["weights"], where="", fix="")

    monkeypatch.setattr(demo, "hub_answers", lambda: answers)
    monkeypatch.setattr(demo, "load_teacher", load_teacher)
    for given, expected in {None: weights, "random": "random", "a.pth": "a.pth"}.items():
        with pytest.raises(TeacherError, match=expected):
            demo.run_demo(tmp_path / "out", weights=given)


def test_weights_that_cannot_be_read_leave_nothing_behind(tmp_path):
    command = ["demo", "--out", str(tmp_path / "out"), "--weights", str(tmp_path / "missing.pth")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "missing.pth: the weights file is missing" in result.output
    assert not (tmp_path / "out").exists()


def test_the_page_asks_for_nothing(page):
    """Every address in it is data; the policy says the same to browsers, also of the frame."""
    addresses = re.findall(r'(?:src|srcset|href)="([^"]{0,30})', page)
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert page.count("default-src 'none'") == 1
    assert page.count("default-src &#x27;none&#x27;") == 1
    assert not re.search(r"@import|url\(", page)


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(run, browser, size, scheme):
    """It fits the screen, pictures follow the paper, and a click in the frame recolours the cloud."""
    show(browser, run.report, size, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    drawings = browser.execute_script("return [...document.querySelectorAll('picture img')].map(i => i.currentSrc)")
    light = browser.execute_script("return [...document.querySelectorAll('picture img')].map(i => i.src)")
    assert all((shown == other) == (scheme == "light") for shown, other in zip(drawings, light, strict=True))
    ink, paper = (
        browser.execute_script(f"return getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
        for name in ("color", "backgroundColor")
    )
    assert abs(sum(ink[:3]) - sum(paper[:3])) > 500
    frame = browser.find_element("tag name", "iframe")
    browser.execute_script("arguments[0].scrollIntoView()", frame)
    browser.switch_to.frame(frame)
    wait_for(browser, "return Boolean(window.cloud && cloud.ready)")
    first = browser.execute_script("return cloud.selected")
    browser.execute_script("cloud.select((cloud.selected + 1000) % cloud.pointCount)")
    wait_for(browser, "return cloud.frameTimes().length > 0")
    assert browser.execute_script("return cloud.selected") != first
    browser.switch_to.default_content()
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def wait_for(browser, script: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(script))


def test_what_stands_is_not_written_over(run: DemoRun):
    before = run.report.stat().st_mtime_ns
    with pytest.raises(demo.ScalrError, match="the folder exists already"):
        demo.run_demo(Path(run.out))
    assert run.report.stat().st_mtime_ns == before
