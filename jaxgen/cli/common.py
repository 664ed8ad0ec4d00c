"""What all commands share: exit codes, messages, reading flags."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args

from jaxgen.errors import JaxgenError, UsageError, choose
from jaxgen.trainer.signals import interruptible

#: Line breaks that are none to a terminal, and characters that turn the writing direction around.
TRICKS = frozenset("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def run_command(command: Callable[[], None], *, text_alone: bool = False) -> int:
    """Run ``command`` and turn every expected failure into one sentence on standard error and its exit code.

    ``text_alone``: standard output is data, exact UTF-8 wherever it is not a terminal.
    """
    hold_descriptors()
    try:
        with interruptible():
            code = _told(command, text_alone)
    except SystemExit as stop:  # the flag parser's, behind its help or its message
        stop.code = end_output(stop.code if isinstance(stop.code, int) else 1)
        raise
    return end_output(code)


def _told(command: Callable[[], None], text_alone: bool) -> int:
    try:
        prepare_process()
    except JaxgenError as error:
        log(f"error: {error}")
        return error.exit_code
    from jaxgen.trainer.progress_state import Interrupted

    open_output(text_alone)
    try:
        command()
    except JaxgenError as error:
        log(f"error: {error}")
        return error.exit_code
    except Interrupted as stop:
        log(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        log("Stopped.")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        log(f"error: There is not enough memory{_how_much(error)}: give a smaller model, batch or file.")
        return 1
    except BrokenPipeError:
        discard(sys.stdout)  # whoever read it has gone (`| head`)
        return 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        log(f"error: The system refused{where}: {error.strerror or error}.")
        return 1
    return 0


def _how_much(error: Exception) -> str:
    """How much memory was asked for, where the error says it."""
    found = re.search(r"allocat\w* (?:an array )?(?:of )?([0-9]+) ?(?:bytes|B\b)", str(error))
    return f" for {int(found[1]) / 1e9:,.1f} GB more" if found else ""


def prepare_process() -> None:
    """What makes JAX start and run quickly, and quietly.

    Nothing here changes a result, but for the number of cores on offer: what a run makes of it is recorded with it.
    """
    # JAX reads it when it is imported. Without it every function taken from the cache of compiled ones prints two
    # harmless lines of errors (jax-ml/jax#38445), which also fill a pipe that nobody reads. JAX sets 1 itself, and a
    # process started by one that imported JAX inherits it: 1 is nobody's wish.
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1")
    too_late = "jax" in sys.modules and level != "3"
    if level == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise UsageError(f"JAX cannot start. {error}: correct the environment variable of that name.") from None
    from jaxgen.runtime import keep_compilations, keep_memory, offer_cores

    keep_memory()
    offer_cores()
    if not too_late:
        keep_compilations()


def hold_descriptors() -> None:
    """Put the null device where standard input, output or errors were closed (`>&-`).

    The next files to be opened would take their places, and what libraries write as output would be written into them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one


def open_output(text_alone: bool) -> None:
    """Let standard output take every character, whatever encoding the system chose for it."""
    if sys.stdout is None:  # closed by the shell (`>&-`)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is None:  # a notebook's or a test's
        return
    if text_alone and not sys.stdout.isatty():
        reconfigure(encoding="utf-8", newline="")  # Windows would write \n as \r\n
    else:
        reconfigure(errors="backslashreplace")


def end_output(code: int, last: str = "") -> int:
    """Write ``last`` and what waits for standard output; returns the exit code, 1 where that fails and it was 0.

    That nobody reads it any more changes nothing.
    """
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            discard(sys.stderr)
    if sys.stdout is None:
        return code
    try:
        sys.stdout.write(last)
        sys.stdout.flush()
    except (OSError, ValueError) as error:  # the second for a file that is closed
        discard(sys.stdout)
        if code == 0 and not isinstance(error, BrokenPipeError):
            log(f"error: Standard output cannot be written: {reason(error)}.")
            return 1
    return code


def reason(error: Exception) -> str:
    """Why the system refused, in its own words."""
    return getattr(error, "strerror", None) or str(error)


def log(text: str) -> None:
    """A line on standard error, if there is one that can be written; what could disturb a terminal is escaped."""
    if sys.stderr is not None:
        try:
            print(escape_controls(text), file=sys.stderr, flush=True)
        except (OSError, ValueError):  # a full disk, a closed pipe, a terminal that is gone
            discard(sys.stderr)


def write_out(text: str, *, flush: bool = False) -> None:
    """Write to standard output: on a terminal with what could disturb it escaped, U+FFFD for what no UTF-8 can hold."""
    from jaxgen.tokenizers.base import without_surrogates

    sys.stdout.write(escape_controls(text) if sys.stdout.isatty() else without_surrogates(text))
    if flush:
        sys.stdout.flush()


def escape_controls(text: str) -> str:
    """Text with what could disturb a terminal escaped, line breaks and tabs kept: a model may write anything.

    All that the commands show of a model, of data and of files goes through here.
    """
    return "".join(repr(c)[1:-1] if _disturbs(c) else c for c in text.replace("\r\n", "\n"))


def _disturbs(c: str) -> bool:
    return c not in "\n\t" and (c in TRICKS or unicodedata.category(c) in ("Cc", "Cs", "Cn"))


def discard(file: Any) -> None:
    """Send what is written to ``file``, and what waits in it, nowhere: Python ends with 120 where closing it fails."""
    with contextlib.suppress(OSError, ValueError):  # a test's or a notebook's is no file of the system
        descriptor = file.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


class SafeStream:
    """A stream of text that takes everything: from its first failure on it goes nowhere, and ``lost`` is told why."""

    def __init__(self, file: Any, lost: Callable[[Exception], None]) -> None:
        self._file, self._lost, self._gone = file, lost, False

    def write(self, text: str) -> int:
        """Write ``text``, if anything can still be written."""
        self._try(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what waits, if anything can still be written."""
        self._try(self._file.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        if self._gone:
            return
        try:
            action()
        except (OSError, ValueError) as error:
            self._gone = True
            self._lost(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def flag_value(args: Sequence[str], flag: str) -> str | None:
    """The value that ``args`` give ``--flag`` (the last one), read before the real parsing."""
    value = None
    for i, arg in enumerate(args):
        name, _, given = arg.partition("=")
        if name.replace("_", "-") != flag:  # both spellings are read
            continue
        if arg != name:
            value = given
        elif i + 1 < len(args):
            value = args[i + 1]
    return value


def parse(
    kind: Any,
    args: Sequence[str],
    *,
    prog: str,
    description: str,
    default: Any = None,
    also: Mapping[str, Any] = {},
    names: Mapping[str, Iterable[str]] = {},
) -> Any:
    """Typed flags for the configuration ``kind``, every wrong value in one sentence; ``default`` holds the values that
    flags override. ``also`` names flags that are checked and explained here but read elsewhere: name -> type;
    ``names`` the entries of the registry that a setting chooses from.

    Raises ``UsageError``, and ``SystemExit`` (2) after a flag that does not exist or is no number.
    """
    more = [(name, annotation, None) for name, annotation in also.items()]
    return parse_more(kind, args, prog=prog, description=description, default=default, more=more, names=names)[0]


def parse_more(
    kind: Any,
    args: Sequence[str],
    *,
    prog: str,
    description: str,
    more: Sequence[tuple[str, Any, Any]],
    default: Any = None,
    names: Mapping[str, Iterable[str]] = {},
) -> tuple[Any, dict[str, Any]]:
    """As ``parse``, and the values of flags that are in no configuration: (name, type, default) each."""
    import tyro

    from jaxgen.runs.config import validate

    fields = kind.model_fields.items()
    flags: list[Any] = [_flag(name, field, default, list(names.get(name, ()))) for name, field in fields]
    flags += [(name, annotation, dataclasses.field(default=default)) for name, annotation, default in more]
    plain: Any = dataclasses.make_dataclass(kind.__name__, flags)
    values = [str(getattr(default, name)) for name in kind.model_fields] if default is not None else []
    with _harmless("".join([*map(str, args), *values])):
        parsed = tyro.cli(
            plain,
            args=list(args),
            prog=prog,
            description=description,
            config=(tyro.conf.DisallowNone,),
        )
    config = validate(kind, {name: getattr(parsed, name) for name in kind.model_fields})
    for name, known in names.items():
        if (chosen := getattr(config, name, None)) is not None:
            choose(chosen, known, name)
    return config, {name: getattr(parsed, name) for name, _, _ in more}


@contextlib.contextmanager
def _harmless(shown: str) -> Iterator[None]:
    """What the flag parser writes is escaped, where there is need for it in the arguments and values that it shows."""
    if escape_controls(shown) == shown:  # as a rule: then it sees the terminal, its colours and its width
        yield
        return
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        for written, file in ((out.getvalue(), sys.stdout), (err.getvalue(), sys.stderr)):
            if written and file is not None:
                with contextlib.suppress(OSError, ValueError):
                    print(escape_controls(written), end="", file=file, flush=True)


def _flag(name: str, field: Any, default: Any, names: list[str]) -> tuple[str, Any, Any]:
    """One setting as a plain flag: its checks come later, so that they are told in our words and not the parser's."""
    import tyro

    kind: Any = field.annotation
    choices = _choices(kind)
    if choices:
        kind = str | None if type(None) in get_args(kind) else str
    value = field.get_default(call_default_factory=True) if default is None else getattr(default, name)
    metavar = "{" + ",".join(choices or names) + "}" if choices or names else None
    annotated: Any = Annotated[kind, tyro.conf.arg(help=field.description, metavar=metavar)]
    return name, annotated, dataclasses.field(default_factory=lambda: value)


def _choices(annotation: Any) -> list[str]:
    """The strings of a ``Literal``, also of one that may be left out."""
    found = []
    for part in get_args(annotation):
        found += [part] if isinstance(part, str) else _choices(part)
    return found
