"""Progress bars: on a terminal, not elsewhere, and nowhere with --quiet."""

import io

import pytest

from configs import command_line, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(progress.tqdm, "silent", False)


def shown(stream, **keys):
    for _ in progress.tqdm(range(3), desc="counting", file=stream, **keys):
        pass
    return stream.getvalue()


def test_terminals_alone_show_bars(capsys):
    assert "counting: 100%" in shown(Terminal())
    assert shown(io.StringIO()) == "" and shown(Terminal(), disable=True) == ""


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_turns_them_off(monkeypatch, quiet):
    monkeypatch.setattr(command_line.logging, "basicConfig", lambda **keys: None)
    command_line.set_loudness(quiet=quiet, verbose=True)
    assert (shown(Terminal()) == "") == quiet
