"""The log and the progress bar."""

import io
import logging
from contextlib import redirect_stderr
from types import SimpleNamespace

import numpy as np
import pytest

from vqjax.training.console import LOGGER_NAME, ProgressBar, setup_logging


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def logger():
    """The logger, afterwards as it was."""
    logger = logging.getLogger(LOGGER_NAME)
    state = logger.handlers[:], logger.propagate, logger.level
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.propagate, logger.level = state


@pytest.fixture
def clock(monkeypatch):
    """The bar's clock, which stands still until a test moves it."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
    return clock


def test_log_goes_to_the_console_and_is_appended_to_the_file(tmp_path, capsys):
    for message in ("first run", "second run"):
        setup_logging(tmp_path / "run").info(message)
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split("INFO ")[1] for line in lines] == ["first run", "second run"]
    assert capsys.readouterr().err.count("second run") == 1


def test_log_of_another_workdir_does_not_go_into_the_first_one(tmp_path):
    setup_logging(tmp_path / "a").info("of a")
    logging.getLogger(f"{LOGGER_NAME}.training").warning("of a too")
    setup_logging(tmp_path / "b").info("of b")
    assert "of a too" in (tmp_path / "a" / "log.txt").read_text()
    assert "of b" not in (tmp_path / "a" / "log.txt").read_text()


def test_other_processes_log_no_file_and_only_warnings(tmp_path, capsys):
    logger = setup_logging(tmp_path / "run", is_main_process=False)
    logger.info("usual")
    logger.warning("odd")
    assert not (tmp_path / "run").exists()
    error = capsys.readouterr().err
    assert "odd" in error and "usual" not in error


def test_plain_lines_come_every_interval_and_at_the_end(clock, capsys):
    with ProgressBar("tokenizer", 100, 40, 32, interval=10.0) as bar:
        for step in range(41, 101):
            clock.now += 0.5
            bar.update(step, loss=np.float32(1 / step))
    assert capsys.readouterr().err.splitlines() == [
        "tokenizer 60/100, loss 0.0167, 2.00 steps/s, 64 images/s, 00:20 left",
        "tokenizer 80/100, loss 0.0125, 2.00 steps/s, 64 images/s, 00:10 left",
        "tokenizer 100/100, loss 0.0100, 2.00 steps/s, 64 images/s, 00:00 left",
    ]


def test_lines_of_a_log_file_are_whole(clock, capsys):
    """No carriage return, no bar, and no second last line; a stopped run has none for its end."""
    for last in (20, 17):
        with ProgressBar("prior", 20, 0, 32, interval=5.0) as bar:
            for step in range(1, last + 1):
                clock.now += 1
                bar.update(step)
    shown = capsys.readouterr().err
    assert "\r" not in shown and "|" not in shown
    steps = [line.split(",")[0] for line in shown.splitlines()]
    assert steps == [f"prior {step}/20" for step in (5, 10, 15, 20, 5, 10, 15)]


def test_terminal_gets_a_bar_that_goes_on_from_the_start_step():
    with redirect_stderr(Terminal()) as terminal, ProgressBar("prior", 10, 5, 32) as bar:
        for step in range(6, 11):
            bar.update(step, loss=0.25)
    shown = terminal.getvalue().split("\r")
    assert "5/10" in shown[1] and "10/10" in shown[-1]
    assert "loss 0.2500" in shown[-1] and "images/s" in shown[-1]
    assert "100%" in shown[-1]


def test_log_messages_do_not_tear_the_bar(tmp_path):
    with redirect_stderr(Terminal()) as terminal:
        logger = setup_logging(tmp_path)
        handlers = logger.handlers[:]
        with ProgressBar("prior", 10, 0, 32) as bar:
            bar.update(5)
            logger.info("evaluated")
    # The bar is wiped off its line before the message is printed on it.
    before = terminal.getvalue().split("evaluated")[0]
    assert "prior" in before and "prior" not in before.rsplit("\r", 1)[1]
    assert "evaluated\n" in terminal.getvalue()
    assert "evaluated" in (tmp_path / "log.txt").read_text()
    assert logger.handlers == handlers


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_other_processes_show_nothing(stream):
    with (
        redirect_stderr(stream()) as shown,
        ProgressBar("prior", 10, 0, 32, is_main_process=False, interval=0.0) as bar,
    ):
        for step in range(1, 11):
            bar.update(step, loss=1.0)
    assert shown.getvalue() == ""
