"""``jaxgen score``: what a model thinks of a text; tables or JSON on standard output, all else on standard error."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict

from jaxgen.cli.common import guarded, parse_more, say
from jaxgen.errors import UsageError

if TYPE_CHECKING:
    from jaxgen.cli.score_output import JsonWriter, Writer
    from jaxgen.run.scorer import Scorer
    from jaxgen.run.scores import Score

DESCRIPTION = """How likely a model finds a text: log-probability, perplexity, bits per character and per byte.

    jaxgen score book.txt other.txt                       a line for each, and one for all
    jaxgen score --text "To be, or not to be"             text on the command line
    cat book.txt | jaxgen score -                         text from standard input
    jaxgen score big.txt --state cold                     windows of 64 tokens side by side: fast
    jaxgen score big.txt --lanes 32                       one state, read in 32 places at once
    jaxgen score --text "To be" --per-token --top 3       every token, and what was likelier
    jaxgen score names.txt --lines                        every line is a text of its own
    jaxgen score --prompt "The king" --candidates " is" " are" " of"
    jaxgen score book.txt --json                          one object a text

A text is read in pieces: memory does not grow with it. A model of running text scores it as it stands behind a line
break; a model of documents scores its end, <eos>, too. Every character counts, the line break at a file's end too."""


class ScoreConfig(BaseModel):
    """Flags of ``jaxgen score``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: str | None = None
    """Folder of the run. Default: the newest in runs/."""
    text: tuple[str, ...] = ()
    """Texts to score instead of files."""
    label: tuple[str, ...] = ()
    """Score the texts as ones of this label, of a run trained with --label-column; or of one between labels:
    Sports:0.3 World:0.7. Default: the mean of the training texts."""
    features: tuple[float, ...] = ()
    """Score the texts as ones with these numbers, one for each of the --feature-columns of the run."""
    lines: bool = False
    """Every line of a file is a text of its own, as names.txt was for a model trained with --documents line. Lines
    of white space alone are left out. The table sums them up by file, --json and --per-token have each."""
    prompt: str | None = None
    """Text to read before each text; it is not scored itself."""
    candidates: tuple[str, ...] = ()
    """Continuations of the prompt to rank, the likeliest first. Give the space in front of a word with it."""
    state: Literal["carried", "cold"] = "carried"
    """carried: one state from the beginning to the end. cold: it starts afresh in every window, with the token before
    alone, as short texts would; the text scores worse, and is done sooner."""
    window: int | None = None
    """Tokens of a window of --state cold (default: 64)."""
    lanes: int = 1
    """Places of one text that are read side by side. 1: exactly the carried state. More: the state starts afresh every
    4,096 tokens, warmed by the 256 before: sooner, and almost the same. How many changes
    nothing but rounding."""
    per_token: bool = False
    """Write every token with its log-probability in nats and its probability."""
    top: int | None = None
    """Likeliest tokens to write beside each token, with their probabilities (with --per-token); at most 1,000."""
    unk: Literal["error", "skip", "keep"] = "error"
    """What to do with what the model has never seen. skip: leave it out, of the log-probability and of the
    counts. keep: score it as the token <unk>; bits are then a lower bound, for <unk> could be anything."""
    end: Literal["yes", "no"] | None = None
    """Whether the end of a text is scored, by a model that knows ends. Default: yes, and for candidates no."""


JSON = """Write an object a text on a line of its own, log-probabilities in nats; with --per-token its tokens too. Bytes
that are no UTF-8, which byte-level models read, are U+FFFD in its text."""
FILES = "Text files to score (UTF-8, gzip too); - is standard input."


def main(args: Sequence[str] | None = None) -> int:
    """Score; returns the exit code."""
    return guarded(lambda: score(list(sys.argv[1:] if args is None else args)), text_alone=True)


def score(args: list[str]) -> None:
    import tyro

    files: Any = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help=FILES, metavar="FILE ...")]
    more = [("files", files, ()), ("json", Annotated[bool, tyro.conf.arg(help=JSON)], False)]
    config, found = parse_more(ScoreConfig, args, prog="jaxgen score", description=DESCRIPTION, more=more)
    check(config, found["files"])

    from jaxgen.cli.conditions import conditioned
    from jaxgen.cli.score_output import JsonWriter, Speed, Writer
    from jaxgen.data.pieces import check_readable
    from jaxgen.run.host import need_backend
    from jaxgen.run.sampler import Sampler
    from jaxgen.run.scorer import Scorer

    check_readable(found["files"])
    need_backend()
    options = {"state": config.state, "lanes": config.lanes, "top": config.top or 0, "unk": config.unk}
    if config.window is not None:
        options["window"] = config.window
    end = {"yes": True, "no": False, None: False if config.candidates else None}[config.end]
    sampler = conditioned(Sampler.load(config.run, "score"), config.label, config.features)
    scorer = Scorer(sampler, end=end, **options)
    writer = (JsonWriter if found["json"] else Writer)(scorer, config.per_token)
    speed = Speed(scorer)
    score_all = score_candidates if config.candidates else score_lines if config.lines else score_texts
    total = score_all(scorer, config, found["files"], writer)
    for note in notes(total, config):
        say(note)
    say(speed.told(total.tokens))


def check(config: ScoreConfig, files: Sequence[str]) -> None:
    """Raise ``UsageError`` for flags that contradict each other."""
    given = [name for name, value in (("files", files), ("--text", config.text), ("--lines", config.lines)) if value]
    if config.candidates and given:
        raise UsageError(
            f"--candidates ranks continuations of --prompt, and {given[0]} scores texts: give one of them."
        )
    if files and config.text:
        raise UsageError("Files and --text were given together: give one of them.")
    if config.lines and not files:
        raise UsageError("--lines splits files into texts, but no file was given: give one, or - for standard input.")
    if not (files or config.text or config.candidates):
        raise UsageError(
            "There is nothing to score: give files, - for standard input, --text TEXT, or --prompt TEXT --candidates "
            "A B."
        )
    if files.count("-") > 1:
        raise UsageError("Standard input (-) was given twice, but can be read once: give it once.")
    if config.window is not None and config.state != "cold":
        raise UsageError(f"--window {config.window} has a meaning with --state cold alone: leave it out, or give both.")
    if config.lanes > 1 and (config.state == "cold" or config.lines or config.candidates):
        other = "--lines" if config.lines else "--candidates" if config.candidates else "--state cold"
        raise UsageError(f"--lanes has no meaning with {other}, which reads many places at once anyway: leave it out.")
    if config.prompt is not None and (config.lanes > 1 or config.state == "cold"):
        other = "--lanes" if config.lanes > 1 else "--state cold"
        raise UsageError(f"--prompt needs one state that is carried through the text, and {other} starts it afresh.")
    if config.candidates and config.state == "cold":
        raise UsageError("--candidates are read on from the prompt: leave out --state cold.")
    if config.top is not None and not config.per_token:
        raise UsageError(f"--top {config.top} has a meaning with --per-token alone: leave it out, or give both.")
    if config.candidates and config.per_token:
        raise UsageError("--per-token writes the tokens of texts, not of candidates: leave it out.")


def notes(total: Score, config: ScoreConfig) -> Iterator[str]:
    """What the user may not expect of this score."""
    if total.unknown:
        left_out = "left out ({:,} of them): what was skipped is in neither the log-probability nor the counts."
        kept = "scored as <unk> ({:,} of them): bits are a lower bound."
        yield "note: unknown tokens were " + (left_out if config.unk == "skip" else kept).format(total.unknown)
    if total.forced:
        yield (
            f"note: the text was cut {total.forced} times where there was no white space for a million characters; "
            "a few tokens there may be others than in the text as a whole."
        )


def score_texts(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: Writer | JsonWriter) -> Score:
    """Score every file, or every text of ``--text``; returns the score of all together."""
    from jaxgen.cli.score_output import Watched
    from jaxgen.run.scores import Score

    total = Score()
    for number, text in enumerate(files or config.text, start=1):
        name = text if files else f"text {number}"
        pieces = Watched(text, scorer.sampler.tokenizer, bar=not config.per_token) if files else [text]
        where = f"The file {text}" if files else f"Text {number}"
        reading = scorer.stream(pieces, config.prompt or "", where)
        writer.reading(name, reading, None if files else text)
        total += reading.score
    if len(files or config.text) > 1:
        writer.together("all", total)
    return total


def score_lines(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: Writer | JsonWriter) -> Score:
    """Score every line of every file as a text of its own; returns the score of all together."""
    from jaxgen.cli.score_output import Watched
    from jaxgen.data.pieces import read_lines
    from jaxgen.run.scores import Score

    total = Score()
    for path in files:
        held: deque[str] = deque()  # scoring reads ahead of what it gives back

        def lines(path: str = path, held: deque[str] = held) -> Iterator[str]:
            for line in read_lines(Watched(path, scorer.sampler.tokenizer, bar=not config.per_token)):
                held.append(line)
                yield line

        of_file, number = Score(), 0
        for score, tokens in scorer.score_each(lines(), config.prompt or "", f"The file {path}, text"):
            number += 1
            writer.one(path, number, score, tokens, held.popleft())
            of_file += score
        writer.together(f"{path} ({number:,} texts)", of_file)
        total += of_file
    if len(files) > 1:
        writer.together("all", total)
    return total


def score_candidates(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: Writer | JsonWriter) -> Score:
    """Rank the continuations of the prompt; returns the score of all together."""
    from jaxgen.run.scores import Score

    ranked = scorer.rank(config.prompt or "", config.candidates)
    writer.ranking(config.prompt or "", ranked)
    if any(each.tied for each in ranked):
        say("note: candidates with = behind their rank are equally likely; of those the one given first comes first.")
    return sum((each.score for each in ranked), Score())
