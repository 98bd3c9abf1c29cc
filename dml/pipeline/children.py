"""The programs that a command starts, side by side, and that end with it."""

import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any


class EndedError(RuntimeError):
    """A program was to start after its command had been told to end."""


class Children:
    """Programs that threads start, each in a new session with all that it starts in turn.

    Inside ``with``, Ctrl-C and SIGTERM end them all before they end the command: a program would otherwise go on by
    itself, and the same command, started again, would work beside it. Those that wait for a place never start.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def __enter__(self) -> "Children":
        self._before = {number: signal.signal(number, self._leave) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def start(self, words: Sequence[str], **given: Any) -> "subprocess.Popen[str]":
        """Start a program, given as to :class:`subprocess.Popen`; hand it to :meth:`wait`.

        Raises:
            EndedError: the command was told to end.
        """
        if self._ended:
            raise EndedError("no program starts any more: the command was told to end")
        process = subprocess.Popen(words, start_new_session=True, **given)
        self._running.add(process)
        if self._ended:  # while it started
            _end(process)
        return process

    def wait(self, process: "subprocess.Popen[str]") -> int:
        """Wait for a program, and return its exit status."""
        try:
            return process.wait()
        finally:
            self._running.discard(process)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        self._ended = True
        for process in tuple(self._running):
            _end(process)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
