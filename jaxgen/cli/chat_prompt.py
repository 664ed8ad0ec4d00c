"""The prompt of a chat on a terminal with prompt_toolkit (extra ``chat``): history, completion, a status line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.lexers import SimpleLexer

from jaxgen.fsutil import user_cache
from jaxgen.trainer.signals import Interrupted

#: The colour of what the user types, readable on white and on black. What the model writes has the terminal's own.
TYPED = "fg:#0087af"
#: Lines below the prompt that are free for completions.
MENU = 5


def toolkit_prompt(
    mark: str, status: Callable[[], str], completions: Callable[[str], Mapping[str, str]]
) -> Callable[[], str]:
    """What asks for a line.

    Args:
        mark: What stands before the line.
        status: The text of the line below.
        completions: The commands that begin with a text, each with its usage.

    Returns:
        A function that returns the line. It raises ``EOFError`` and ``KeyboardInterrupt`` as ``input`` does.
    """
    session = PromptSession[str](
        [(TYPED, mark)],
        bottom_toolbar=status,
        completer=CommandCompleter(completions),
        enable_suspend=True,
        history=_history(),
        lexer=SimpleLexer(TYPED),
        reserve_space_for_menu=MENU,
    )
    return partial(session.prompt, pre_run=partial(_restore_terminal, session))


class CommandCompleter(Completer):
    """Completes the names of commands while they are typed."""

    def __init__(self, completions: Callable[[str], Mapping[str, str]]) -> None:
        self._completions = completions

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        line = document.text_before_cursor
        for command, usage in self._completions(line).items():
            if command != line:
                yield Completion(command, -len(line), display_meta=usage)


class _History(FileHistory):
    """Lines in a file. One that cannot be read or written changes nothing else."""

    def load_history_strings(self) -> Iterable[str]:
        with contextlib.suppress(OSError):
            return list(super().load_history_strings())
        return []

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: bytes that are not UTF-8
            super().store_string(string)


def _history() -> _History:
    """The lines of earlier chats in the user's cache folder, in a file that others cannot read."""
    path = user_cache() / "chat-history"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    return _History(str(path))


def _restore_terminal(session: PromptSession[str]) -> None:
    """Let SIGTERM end the prompt: without a handler the terminal would stay as prompt_toolkit has set it."""
    stop = Interrupted(signal.SIGTERM, "the chat")
    with contextlib.suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: session.app.exit(exception=stop))
