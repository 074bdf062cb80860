"""What reaches standard output and standard error when nobody reads at a terminal, or nothing can be written."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.text import Text

from scalekv.cli.output import Output

FULL = Path("/dev/full")


def scalekv(*words: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scalekv", *words]
    return subprocess.run(command, check=False, text=True, stderr=subprocess.PIPE, **options)


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["methods"], ["methods", "--json"]], ids=" ".join)
def test_a_full_disk_is_one_sentence(words):
    with FULL.open("w") as nowhere:
        found = scalekv(*words, stdout=nowhere)
    assert found.returncode == 2
    assert found.stderr.startswith("Error: Cannot write the output:")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_any_name_can_be_said(encoding, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    for name in ("w\u00e4rter-\u706f\u53f0", "\udcff"):
        found = scalekv("info", name, "--json", stdout=subprocess.PIPE)
        assert found.returncode == 2
        assert name in json.loads(found.stdout)["error"]
        assert found.stderr.startswith("Error: There is no file or folder ")


def test_lines_of_a_pipe_are_never_broken(run, monkeypatch):
    wide, text = run("plan", "--table", "--memory", "24GB").stdout, run("plan", "--help").stdout
    monkeypatch.setenv("COLUMNS", "40")
    assert run("plan", "--table", "--memory", "24GB").stdout == wide
    assert run("plan", "--help").stdout == text
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run("plan", "--table", "--memory", "24GB").stdout.count("\n") <= wide.count("\n") + 3
    assert "largest batch in 24GB" in wide


@pytest.mark.parametrize("columns", ["20", "40", "80"])
def test_a_narrow_terminal_gets_whole_words(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    terminal = type("Terminal", (io.StringIO,), {"isatty": lambda _: True})()
    Output(stdout=terminal).table(["budget", "largest batch in 24GB"], [["10%", "15"]])
    shown = Text.from_ansi(terminal.getvalue()).plain
    assert "…" not in shown
    assert {"budget", "largest", "batch", "24GB", "10%", "15"} <= set(shown.split())
    assert max(map(len, shown.splitlines())) <= int(columns)


@pytest.mark.parametrize("size", ["....KB", "0GB", "5", "lots"])
def test_shard_sizes_are_read_like_all_bytes(run, folder, size):
    result = run("convert", "missing.pth", "--vae", "missing.pth", "--out", "made", "--max-shard-size", size)
    assert result.exit_code == 2
    assert size in result.stderr
    assert "a unit" in result.stderr
