from __future__ import annotations

import logging

from scalr import progress


def test_a_log_gets_a_line_now_and_then(monkeypatch, caplog):
    """No bar where nobody looks at a terminal: whole lines with frames, rate and time left."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    with caplog.at_level(logging.INFO), progress.progress(3, "extract", "frame") as bar:
        for _ in range(3):
            bar.set_postfix_str("1.5 MB/s", refresh=False)
            bar.update()
    lines = [record.message for record in caplog.records]
    assert 3 <= len(lines) <= 4
    assert lines[-1].startswith("extract: 3 of 3 frames, ")
    assert all("1.5 MB/s" in line and line.endswith(" remaining") and "\r" not in line for line in lines)


def test_few_lines_for_long_work(caplog):
    with caplog.at_level(logging.INFO), progress.progress(1000, "extract", "frame") as bar:
        for _ in range(1000):
            bar.update()
    assert len(caplog.records) <= 1


def test_quiet_is_quiet(caplog):
    with caplog.at_level(logging.WARNING), progress.progress(3, "extract", "frame") as bar:
        bar.update(3)
    assert not caplog.records
