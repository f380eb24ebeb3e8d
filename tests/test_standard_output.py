"""Nothing but a command's JSON is on standard output, whatever libraries write there."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import click
from click.testing import CliRunner

from scalr.cli_options import json_option, show_result
from scalr.standard_output import results_alone


@click.command()
@json_option
def verb(as_json: bool) -> None:
    print("by Python")
    show_result("[1]" if as_json else "one")


def test_what_python_prints_is_not_among_the_json():
    result = CliRunner().invoke(verb, ["--json"])
    assert (json.loads(result.stdout), result.stderr) == ([1], "by Python\n")
    assert CliRunner().invoke(verb, []).stdout == "by Python\none\n"


def test_what_c_and_child_processes_write_goes_to_standard_error(monkeypatch, capfd):
    """Also what the C library holds back until later."""
    with open(1, "w", closefd=False) as standard_output:
        monkeypatch.setattr(sys, "stdout", standard_output)
        with results_alone() as results:
            os.write(1, b"by a descriptor\n")
            ctypes.CDLL(None).puts(b"by C")
            subprocess.run(["echo", "by a child"], check=True)
            print("by Python")
            print("result", file=results)
        print("afterwards", flush=True)
    out, err = capfd.readouterr()
    assert out == "result\nafterwards\n"
    assert sorted(err.splitlines()) == ["by C", "by Python", "by a child", "by a descriptor"]
