"""What all commands share: exit codes, standard streams, messages and input lines."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, BinaryIO

from jaxgen.errors import DataError, JaxgenError, JaxgenWarning, UsageError, show_flags
from jaxgen.escaping import escape_controls
from jaxgen.trainer.signals import Interrupted, interruptible
from jaxgen.version import __version__

#: LF, CR LF or CR. After a CR at the end of a block, the next block may begin with the LF.
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


class Answer(SystemExit):
    """Ends a command with exit code 0 and ``text`` on standard output, instead of its work."""

    def __init__(self, text: str = "") -> None:
        super().__init__(0)
        self._text = text

    @property
    def text(self) -> str:
        """What to write, control characters escaped."""
        return escape_controls(self._text)


#: What helps a command that runs out of memory.
LESS_MEMORY = "use a smaller model, batch or file"


def run_command(
    command: Callable[[list[str]], None],
    args: Sequence[str] | None = None,
    *,
    text_only: bool = False,
    less_memory: str = LESS_MEMORY,
) -> int:
    """Run ``command`` with ``args``; an expected error becomes one sentence on standard error.

    Args:
        command: The work. It raises ``JaxgenError`` for what the user can correct.
        args: The arguments of the command line. Default: those of this process. With ``--version`` among them, only the
            version is shown.
        text_only: Standard output is data: exact UTF-8 wherever it is not a terminal.
        less_memory: What to do if there is not enough memory.

    Returns:
        The exit code.
    """
    hold_descriptors()
    args = list(sys.argv[1:] if args is None else args)
    if asks_version(args):
        return end_output(0, f"jaxgen {__version__}\n")
    try:
        with interruptible(), show_flags(), _printed_warnings():
            code = _exit_code(partial(command, args), text_only, less_memory)
    except Answer as answer:
        answer.code = end_output(0, answer.text)
        raise
    return end_output(code)


def asks_version(args: Sequence[str]) -> bool:
    """Whether ``--version`` is among the flags, or ``-V`` stands first."""
    return "--version" in takewhile(lambda arg: arg != "--", args) or args[:1] == ["-V"]


@contextlib.contextmanager
def _printed_warnings() -> Iterator[None]:
    """Print each ``JaxgenWarning`` as a sentence."""
    former = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, JaxgenWarning):
            log(str(message))
        else:
            former(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = former


def _exit_code(command: Callable[[], None], text_only: bool, less_memory: str) -> int:
    try:
        prepare_process()
        open_output(text_only)
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
    except BrokenPipeError:
        discard(sys.stdout)  # the reader has left (`| head`)
        return 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        log(f"error: The system refused{where}: {error.strerror or error}.")
        return 1
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)):
            log(f"error: There is not enough memory{_requested_memory(error)}: {less_memory}.")
            return 1
        plugins = sys.modules.get("jaxgen.plugins")
        if plugins is None or not plugins.LOADED or os.environ.get("JAXGEN_TRACEBACK") == "1":
            raise
        log(f"error: {plugins.failure(error)} JAXGEN_TRACEBACK=1 in the environment shows Python's traceback.")
        return UsageError.exit_code
    return 0


def _requested_memory(error: Exception) -> str:
    """The amount of memory that was requested, if the error names it."""
    found = re.search(r"allocat\w* (?:an array )?(?:of )?([0-9]+) ?(?:bytes|B\b)", str(error))
    return f" for {int(found[1]) / 1e9:,.1f} GB more" if found else ""


def prepare_process() -> None:
    """Configure JAX before its first use: quiet start, memory, host devices, compilation cache.

    No result depends on it, except through the number of host devices, which a run records.
    """
    if "JAXGEN_THEME" in os.environ:
        from jaxgen.plots import theme

        theme()  # an unknown one is refused before anything is computed
    quiet = _quiet_before_jax()
    from jaxgen.runtime import check_xla_flags, keep_compilations, keep_memory, offer_cores, pin_numerics

    wait_for_flags = check_xla_flags()  # while JAX is imported
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise UsageError(f"JAX cannot start. {error}: correct the environment variable of that name.") from None
    finally:
        wait_for_flags()
    keep_memory()
    pin_numerics()
    offer_cores()
    if quiet:
        keep_compilations()


@cache
def _quiet_before_jax() -> bool:
    """Whether XLA prints no errors about its cache. The first call decides, because JAX reads the variable once."""
    # Without it, every function loaded from the compilation cache prints two harmless error lines (jax-ml/jax#38445),
    # which can also fill a pipe that nobody reads. JAX itself sets 1, and child processes inherit that, so a 1 is not a
    # choice of the user.
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1")
    if level == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    return "jax" not in sys.modules or level == "3"


def hold_descriptors() -> None:
    """Open the null device in place of standard streams that are closed (`>&-`).

    Otherwise the next file to be opened gets that descriptor, and output of libraries is written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def open_output(text_only: bool) -> None:
    """Make standard output accept every character, independently of its encoding."""
    if sys.stdout is None:  # closed by the shell (`>&-`)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is None:  # in a notebook or a test
        return
    if text_only and not sys.stdout.isatty():
        # Windows would write \n as \r\n. Lone surrogates stand for bytes that are not UTF-8.
        reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
    else:
        reconfigure(errors="backslashreplace")


def end_output(code: int, last: str = "") -> int:
    """Write ``last`` and flush the standard streams.

    Returns:
        The exit code: ``code``, or 1 if it was 0 and standard output cannot be written. A reader that has left is no
        error.
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
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        discard(sys.stdout)
        if code == 0 and not isinstance(error, BrokenPipeError):
            log(f"error: Standard output cannot be written: {reason(error)}.")
            return 1
    return code


def reason(error: Exception) -> str:
    """The system's explanation of an error."""
    return getattr(error, "strerror", None) or str(error)


def log(text: str, *, painted: bool = False) -> None:
    """Write a line to standard error; does nothing if that is impossible.

    Control characters are escaped, unless they are the codes of colours in a text of our own (``painted``).
    """
    if sys.stderr is not None:
        try:
            print(text if painted else escape_controls(text), file=sys.stderr, flush=True)
        except (OSError, ValueError):  # a full disk, a closed pipe, a terminal that is gone
            discard(sys.stderr)


def name_newest(given: str | None, found: object) -> None:
    """Say which run a command found, if none was given."""
    if given is None:
        log(f"The newest run: {found}")


def write_out(text: str, *, flush: bool = False) -> None:
    """Write to standard output: control characters escaped on a terminal, lone surrogates as U+FFFD elsewhere."""
    from jaxgen.tokenizers.base import without_surrogates

    sys.stdout.write(escape_controls(text) if sys.stdout.isatty() else without_surrogates(text))
    if flush:
        sys.stdout.flush()


def json_line(value: object) -> str:
    """``value`` as JSON on one line, with its line break."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def one_line(text: str) -> str:
    """Text on one line: ``escape_controls``, and line breaks and tabs escaped too."""
    return escape_controls(text).replace("\n", "\\n").replace("\t", "\\t")


def left_aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines; each column is as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


def discard(file: IO[str]) -> None:
    """Send everything written to ``file`` to the null device; Python exits with 120 if closing a stream fails."""
    with contextlib.suppress(OSError, ValueError):  # in a test or a notebook it has no descriptor
        descriptor = file.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


class SafeStream:
    """A text stream that never raises.

    After its first failed write it discards everything, and ``on_failure`` is called with the error.
    """

    def __init__(self, file: IO[str], on_failure: Callable[[Exception], None]) -> None:
        self._file, self._on_failure, self._failed = file, on_failure, False

    def write(self, text: str) -> int:
        """Write ``text`` unless an earlier write failed."""
        self._try(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush unless an earlier write failed."""
        self._try(self._file.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            action()
        except (OSError, ValueError) as error:
            self._failed = True
            self._on_failure(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def read_byte_lines(path: str, max_bytes: int) -> Iterator[bytes]:
    """The lines of a file (gzip too) as they arrive, without a byte order mark and line ends; ``-`` is standard input.

    Raises:
        DataError: The file cannot be read, or a line has more than ``max_bytes`` bytes.
    """
    name = "Standard input" if path == "-" else f"The file {path}"
    if path == "-" and sys.stdin is None:
        raise DataError("Standard input is closed: give the name of a file.")
    try:
        with contextlib.ExitStack() as stack:
            stream: BinaryIO | gzip.GzipFile = sys.stdin.buffer
            if path != "-":  # a file is opened once, because it may be a pipe
                stream = file = stack.enter_context(Path(path).open("rb"))
                if file.peek(2)[:2] == b"\x1f\x8b":
                    stream = gzip.GzipFile(fileobj=file)
            number, rest, block = 1, b"", b" "
            while block:
                block = stream.readline(max_bytes + 1)
                *lines, rest = _LINE_END.split(rest + block)
                for line in lines:
                    yield line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                    number += 1
                if len(rest) > max_bytes:
                    raise DataError(
                        f"{name} has more than {max_bytes // 2**20} MiB in line {number:,}, the most that is read. "
                        "Give a file with one input on each line."
                    )
            rest = rest.removeprefix(codecs.BOM_UTF8) if number == 1 else rest
            if rest:
                yield rest.removesuffix(b"\r")
    except OSError as error:
        raise DataError(f"{name} cannot be read: {reason(error)}. Check the path and its permissions.") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{name} is damaged gzip ({error}). Copy or download it again.") from None
