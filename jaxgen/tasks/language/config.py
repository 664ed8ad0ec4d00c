"""The settings of a language model's run."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from jaxgen.data.batches import BATCHES, WindowLengths
from jaxgen.errors import choose, flag_of
from jaxgen.runs.config import MAX_SIZE, MAX_STEPS, Fraction, Names, NotNegative, Positive, Size, TrainConfig
from jaxgen.runs.groups import Group
from jaxgen.tasks.base import VocabSize, changed_flags, check_at_most_one, check_header, check_level, check_tie
from jaxgen.text import Reading

#: Longer n-grams almost never occur twice.
MAX_ORDER = 32
#: Logits are computed for each softmax of a mixture.
MAX_SOFTMAXES = 64
#: Settings that only one kind of model uses: most are about layers and gradient descent.
ONLY = {
    "ngram": {"order"},
    "rnn": {*TrainConfig.model_fields} - {"batch_size", "log", "model", "run", "seed"}
    | {"ar", "cold_starts", "embed", "embed_dropout", "embed_row_dropout", "extend_vocabulary", "feature_columns"}
    | {"label_column", "label_smoothing", "skip_connections", "soft_cap", "softmaxes", "stride", "tar", "teacher"}
    | {"seq_len_spread", "seq_len_warmup", "teacher_share", "teacher_temperature", "tie"},
}
#: Settings that are arguments of ``build``, by kind of model.
BUILT_FROM = {
    "ngram": ("order",),
    "rnn": (
        *("cell", "cell_options", "layers_pattern", "block", "block_options"),
        *("hidden", "layers", "embed", "dropout", "embed_dropout", "tie", "soft_cap", "precision"),
        *("locked_dropout", "recurrent_dropout", "zoneout", "weight_dropout", "embed_row_dropout"),
        *("skip_connections", "softmaxes", "label_smoothing", "ar", "tar"),
    ),
}


_SMALL = {"cell": "layernorm-lstm", "hidden": 256, "layers": 1, "batch_size": 32, "seq_len": 64, "steps": 1100}
_SMALL |= {"optimizer": "muon", "lr": 1e-2, "weight_decay": 0.3, "cold_starts": 0.1}
_WORDS = {**_SMALL, "level": "word", "hidden": 512, "embed": 320, "tie": True, "batch_size": 64, "seq_len": 35}
_WORDS |= {"dropout": 0.4, "embed_dropout": 0.2, "lr": 6e-3, "weight_decay": 0.1, "cold_starts": 0.0}
_WORDS |= {"precision": "auto", "steps": 4200}
_LARGE = {"hidden": 1024, "layers": 3, "batch_size": 128, "seq_len": 256, "steps": 20000, "dropout": 0.4, "lr": 1e-3}


class LanguageConfig(TrainConfig):
    """Continues texts: a language model, recurrent or an n-gram baseline.

    Example:
        >>> jaxgen.LanguageConfig(data="book.txt", preset="tiny", layers=2).hidden
        128
    """

    task: ClassVar[str] = "language"

    common: ClassVar[tuple[str, ...]] = (
        *("data", "level", "documents", "preset", "cell", "layers", "hidden", "dropout", "steps", "minutes"),
        *("run", "resume"),
    )

    in_data: ClassVar[Group] = Group("Data")
    data: Names = ("python-docs",)
    """Built-in set (python-docs, python-source), named set (tinyshakespeare, ptb, ag_news, multi30k), or files,
    folders, globs and URLs (.gz too)."""
    val_data: Names | None = None
    """Validation data. Default: those of the named set if it has any, else the end of the data."""
    val_fraction: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    """Share of the data held out: the end of each file (documents: at random). Default: 0.1."""
    holdout: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    """Share of the training text to keep from training, at its end (documents: at random), beside the validation data:
    for weights of a mixture (--mix) and other choices after training. Default: none."""
    text_column: str | None = None
    """Column of CSV, TSV or JSONL files to read, by name or by position from 1."""
    label_column: str | None = None
    """Column with the label of each text, by name or by position from 1. The label sets the initial state, so that
    sample.py --label generates texts of that kind. Every row is then a document."""
    feature_columns: Names = ()
    """Columns with numbers, which set the initial state too, standardised: for sample.py --features."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether the first row of a table is a header. auto: yes if columns are given by name, or if the row has usual
    names of columns and none occurs again in its column."""
    newlines: Literal["lf", "keep"] | None = None
    """lf: the line ends CR LF and CR are read as LF, in prompts too. keep: they stay as they are. Default: lf, at byte
    level keep."""
    level: str = "char"
    """What a token is."""
    split_on: Literal["punctuation", "whitespace"] | None = None
    """What separates words at word level. punctuation (default): marks are tokens of their own. whitespace: the words
    of the text as they stand, with <unk> as the unknown word and line ends as <eos>, for perplexities as published."""
    vocab_size: VocabSize | None = None
    """Largest vocabulary at word level (default 20000, with --split-on whitespace all words) and bpe level (default
    8192)."""
    min_count: Positive | None = None
    """Tokens seen less often in the training text become <unk> (word level: default 2, with --split-on whitespace
    1; char level: default 1)."""
    layout: str | None = None
    """stream (default): contiguous lanes, state carried from window to window. windows: shuffled windows from a zero
    state. documents (default for rows of a table): separate texts, each ending with <eos>."""
    documents: Literal["line", "blank-line", "file", "row"] | None = None
    """How texts are cut into documents; implies --layout documents."""
    stride: Positive | None = None
    """Tokens between the starts of windows (layout windows). Default: --seq-len."""

    in_training: ClassVar[Group] = Group("Training")
    cold_starts: Fraction = 0.0
    """Share of the windows, drawn at random, that start from a zero state instead of the carried one (layout stream):
    for better predictions at the beginning of a text."""
    label_smoothing: Fraction = 0.0
    """Share of every training target that is spread evenly over the vocabulary (Szegedy et al. 2016)."""
    ar: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Activation regularisation: weight of the mean square of the outputs in the loss (Merity et al. 2017: 2)."""
    tar: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Temporal activation regularisation: weight of the mean square of their change from step to step (Merity et al.
    2017: 1)."""
    seq_len: Size = 64
    """Tokens of a window: how far gradients are propagated back."""
    seq_len_spread: NotNegative = 0
    """Standard deviation of random window lengths, in tokens (layout stream): each step draws one of six lengths, and
    its learning rate is scaled by length / --seq-len (Merity et al. 2018: 5 for a length of 70). 0: all the same."""
    seq_len_warmup: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Steps with shorter windows at the beginning: a quarter of --seq-len, a half, three quarters, each for a third of
    these steps (Li et al. 2022; layouts stream and windows)."""

    teacher: Names = ()
    """Runs whose probabilities the model learns too, runs/a or runs/a:0.7 runs/b:0.3 (distillation). The new run takes
    their tokens."""
    teacher_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.5
    """Share of --teacher in the loss; the rest is that of the text."""
    teacher_temperature: Annotated[float, Field(ge=0.1, le=100, allow_inf_nan=False)] = 1.0
    """Temperature at which the model learns the probabilities of --teacher. Above 1, unlikely tokens count more."""
    extend_vocabulary: bool = False
    """With --init-from: characters or words of the training text that the other run does not know get tokens too, with
    weights of a new model. The ids and weights of the others stay."""

    in_model: ClassVar[Group] = Group("Model")
    embed: Annotated[int, Field(ge=0, le=MAX_SIZE)] | None = None
    """Size of the token embedding. Default: --hidden. 0: one-hot vectors."""
    embed_dropout: Fraction = 0.0
    """Dropout of token embeddings in training, independent for every occurrence."""
    embed_row_dropout: Fraction = 0.0
    """Rate at which a row of the batch loses the embedding of a token, at all places of the window where it occurs (Gal
    & Ghahramani 2016)."""
    tie: bool = False
    """Use the embedding as the output matrix too; with --embed unlike --hidden, behind a projection."""
    skip_connections: bool = False
    """The output layer reads the outputs of all layers, not only of the last (Graves 2013)."""
    softmaxes: Annotated[int, Field(gt=0, le=MAX_SOFTMAXES)] = 1
    """Predict by a mixture of this many softmaxes (Yang et al. 2018)."""
    soft_cap: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Limit every logit to this number, smoothly, by tanh. 0: no limit."""
    order: Annotated[int, Field(gt=0, le=MAX_ORDER)] = 5
    """Longest n-grams of --model ngram, in tokens."""

    examples: ClassVar[tuple[str, ...]] = (
        "python train.py --data book.txt                     any text",
        "python train.py --data book.txt --level word        words as tokens",
        "python train.py --data names.txt --documents line   a text per line",
        "python train.py --model ngram --order 5             an n-gram baseline",
        "python train.py --run runs/language-1 --resume auto  resume a run",
    )
    presets: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "tiny": (
            "LayerNorm LSTM 1x128, 400 steps: seconds, to see that everything works",
            {**_SMALL, "hidden": 128, "steps": 400},
        ),
        "small": (
            "LayerNorm LSTM 1x256, 1,100 steps: about a minute on 2 CPU cores, readable text",
            _SMALL,
        ),
        "base": (
            "LayerNorm LSTM 1x384 with dropout, 1,550 steps: some minutes on 2 CPU cores, better text",
            {**_SMALL, "hidden": 384, "steps": 1550, "dropout": 0.2, "lr": 8e-3},
        ),
        "best": (
            "LayerNorm LSTM 2x512 with much dropout, 6,200 steps: half an hour on 2 CPU cores that multiply bfloat16, "
            "longer on others; the best text",
            {**_SMALL, "hidden": 512, "layers": 2, "steps": 6200, "dropout": 0.4, "lr": 6e-3, "precision": "auto"},
        ),
        "words": (
            "LayerNorm LSTM 1x512 for words, its embedding tied, 4,200 steps: half an hour on 2 CPU cores that "
            "multiply bfloat16, with 10,000 types",
            _WORDS,
        ),
        "medium": (
            "LSTM 2x512 with dropout, 6,000 steps: hours on 2 CPU cores, minutes on an accelerator",
            {"hidden": 512, "layers": 2, "batch_size": 64, "seq_len": 128, "steps": 6000, "dropout": 0.3, "lr": 2e-3},
        ),
        "large": (
            "LSTM 3x1024 with dropout, 20,000 steps: for an accelerator",
            _LARGE,
        ),
    }

    @property
    def reading(self) -> Reading:
        """How text is read; at byte level a byte order mark is kept."""
        return Reading.of_level(self.level, self.newlines)

    @property
    def is_conditioned(self) -> bool:
        """Whether texts have labels or features."""
        return self.label_column is not None or bool(self.feature_columns)

    @model_validator(mode="after")
    def _settings_fit(self) -> LanguageConfig:
        self._check_model()
        if self.layout is not None:
            choose(self.layout, BATCHES, "layout")
        check_tie(self)
        if self.stride is not None and self.layout != "windows":
            raise ValueError(f"--stride {self.stride} applies to --layout windows only: leave it out")
        check_level(self)
        WindowLengths(self.seq_len, self.seq_len_spread, self.seq_len_warmup)
        if self.extend_vocabulary and self.init_from is None:
            raise ValueError(
                "--extend-vocabulary extends the vocabulary of another run: give its folder as --init-from"
            )
        if self.documents is not None and self.layout not in (None, "documents"):
            raise ValueError(f"--documents {self.documents} does not apply to --layout {self.layout}")
        if self.is_conditioned:
            self._check_conditioned()
        if self.teacher and self.is_conditioned:
            raise ValueError("--teacher does not apply to texts with labels or features: leave one of the two out")
        for name in ("teacher_share", "teacher_temperature"):
            if not self.teacher and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{flag_of(name)} is about --teacher: give that too, or leave it out")
        check_at_most_one(self, ("val_fraction", "val_data"))
        check_header(self, "text_column")
        return self

    def _check_conditioned(self) -> None:
        """Raises ``ValueError`` for settings that contradict rows as documents, which labels and features need."""
        flag = "--feature-columns" if self.label_column is None else "--label-column"
        others = {"layout": (self.layout, "documents"), "documents": (self.documents, "row")}
        for name, (given, needed) in others.items():
            if given not in (None, needed):
                raise ValueError(
                    f"--{name} {given} does not apply to {flag}, with which every row is a document: leave it out"
                )
        columns = [self.text_column, self.label_column, *self.feature_columns]
        named = [column for column in columns if column is not None]
        if twice := [column for column in named if named.count(column) > 1]:
            raise ValueError(f"The column {twice[0]!r} is named twice: it can be only one of text, label and feature")

    def _check_model(self) -> None:
        """Raises ``ValueError`` for a setting of another kind of model, unless the preset set it."""
        choose(self.model, ONLY, "model")
        for other, names in ONLY.items():
            given = changed_flags(self, sorted(names)) if other != self.model else []
            if given:
                raise ValueError(
                    f"{given[0]} does not apply to --model {self.model}: leave it out, or give --model {other}"
                )
