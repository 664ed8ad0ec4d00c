"""The settings of a training run: one strict definition for the command line, TOML files and ``config.json``."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

import jax
import jaxlib
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from jaxgen.errors import CheckpointError, UsageError, check_kind, choose, flag_of, near_name, to_python
from jaxgen.fsutil import json_sha256
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.groups import Group, groups_of
from jaxgen.runtime import multiplies_bfloat16, numerics, processor_name
from jaxgen.text import STANDARD, Reading
from jaxgen.version import __version__

Positive = Annotated[int, Field(gt=0)]
#: Larger sizes are typing errors, and would exhaust the memory before any message.
MAX_SIZE, MAX_LAYERS = 65_536, 64
Size = Annotated[int, Field(gt=0, le=MAX_SIZE)]
#: Longer runs are typing errors too; steps are counted in int32.
MAX_STEPS, MAX_EPOCHS, MAX_MINUTES = 2 * 10**9, 10**6, 10**6
#: Decoupled weight decay that takes a larger share of the weights in one step leaves nothing to train.
MAX_DECAY = 0.2
#: ``--precision auto`` rounds from this many units on. Measured (docs/performance.md): a step with 256 units takes 1.2
#: to 1.4 times as long in float32, with 128 sometimes hardly more.
AUTO_UNITS = 256
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
#: The largest number of beams per input: those of a whole block of inputs are computed together.
MAX_BEAM = 64
Beam = Annotated[int, Field(ge=0, le=MAX_BEAM)]
#: JAX silently wraps larger seeds.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


#: One name or several. A single name needs no list, for example in a TOML file: data = "book.txt".
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]

#: The largest configuration file that is read.
MAX_CONFIG_BYTES = 2**20
#: The longest name of a file or folder, in bytes, and the longest part of a wrong value in a message, in characters.
MAX_NAME, MAX_SHOWN = 255, 200

Config = TypeVar("Config", bound=BaseModel)


class TrainConfig(BaseModel):
    """The settings that all tasks share. The docstring of a field is its help text on the command line."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Only the settings that differ from those of the preset: all of them fill a screen."""
        for name, value in super().__repr_args__():
            if name not in type(self).model_fields or value not in (None, self.preset_value(name)):
                yield name, value

    task: ClassVar[str]
    #: Named settings: name -> (what to expect, values). Flags and files override them; ``steps`` is only a default.
    presets: ClassVar[dict[str, tuple[str, dict[str, Any]]]]
    #: Example command lines for the help text.
    examples: ClassVar[tuple[str, ...]] = ()
    #: Fields that a resumed run may change.
    may_change: ClassVar[frozenset[str]] = frozenset(
        {"steps", "epochs", "minutes", "eval_every", "sample_every", "patience", "on_nan", "log", "run"}
    )

    #: Fields that name data files. A resumed run may find the same data elsewhere.
    places: ClassVar[frozenset[str]] = frozenset({"data", "val_data", "test_data", "captions", "val_captions"})

    #: The flags that ``--help`` shows; ``--help-all`` has the others too.
    common: ClassVar[tuple[str, ...]] = (
        *("data", "preset", "cell", "layers", "hidden", "dropout", "batch_size", "lr", "steps", "minutes"),
        *("run", "resume"),
    )

    in_data: ClassVar[Group] = Group("Data")  # the fields of the tasks

    in_model: ClassVar[Group] = Group("Model")
    model: str = "rnn"
    """The model: a recurrent network, or a baseline to compare it with."""
    cell: str = "lstm"
    """Recurrent cell."""
    cell_options: dict[str, float | str] = {}
    """Options of the cell, as NAME VALUE pairs, for example: forget_bias 2.0."""
    layers: Annotated[int, Field(gt=0, le=MAX_LAYERS)] = 1
    """Number of recurrent layers."""
    layers_pattern: str | None = None
    """Cells of the layers from the lowest upwards, instead of --cell, for example: gru,gru,lstm. Repeated over
    --layers, whose default is their number. Each takes those of the --cell-options that it has."""
    block: str = "plain"
    """What surrounds the cell of each layer. plain: nothing. residual: normalisation, convolution, residual connections
    and a feed-forward network. griffin: the same with gates (De et al. 2024)."""
    block_options: dict[str, bool | float | str] = {}
    """Options of the block, as NAME VALUE pairs: norm (rms, layer), mlp and expand (widths as multiples of --hidden),
    conv (width of the convolution; 0: none), glu, gate and exact_gelu (true, false)."""
    hidden: Size = 256
    """Units per layer."""
    dropout: Fraction = 0.0
    """Dropout rate of each layer's outputs (between layers and after the last)."""
    locked_dropout: bool = False
    """--dropout and --embed-dropout drop the same units at all steps of a text or window (Gal & Ghahramani 2016)."""
    recurrent_dropout: Fraction = 0.0
    """Dropout rate of the state inside a cell before it meets the recurrent matrix, the same units at all steps of a
    text or window (Gal & Ghahramani 2016)."""
    zoneout: Fraction = 0.0
    """Rate at which a unit of a cell keeps its old state at a step (Krueger et al. 2016)."""
    weight_dropout: Fraction = 0.0
    """Dropout rate of the weights in recurrent matrices, drawn for each training step (Merity et al. 2018)."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """bfloat16 rounds the inputs of matrix products: faster on processors that support it, less exact. auto: bfloat16
    where the processor multiplies it natively and --hidden is 256 or more, else float32; decided when a run starts."""

    in_training: ClassVar[Group] = Group("Training")
    seed: Seed = 0
    """Seed of everything random: initial weights, the order of the data, dropout, samples."""
    batch_size: Size = 32
    """Rows per batch."""
    accumulate: Positive = 1
    """Micro-batches into which the rows of a batch are split: with N, a step has the same result, up to rounding, and
    takes the memory of 1/N of the rows."""
    steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] | None = None
    """Training steps (one batch each). Give this, --epochs or --minutes; the default is the preset's."""
    epochs: Annotated[float, Field(gt=0, le=MAX_EPOCHS, allow_inf_nan=False)] | None = None
    """Passes over the training data, instead of --steps."""
    minutes: Annotated[float, Field(gt=0, le=MAX_MINUTES, allow_inf_nan=False)] | None = None
    """Time of the whole command, instead of --steps: a few steps, an evaluation and samples are timed, then the number
    of steps is fixed."""
    optimizer: str = "adamw"
    """Optimizer."""
    optimizer_options: dict[str, Finite] = {}
    """Options of the optimizer, as NAME VALUE pairs, for example: b2 0.99. Every optimizer has layer_decay (a factor on
    the learning rate for each layer below the top), l2, and weight decays by kind of parameter: decay_matrix,
    decay_embedding, decay_output, decay_other."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4e-3
    """Peak learning rate."""
    schedule: str = "cosine"
    """Learning rate schedule after the warm-up."""
    schedule_options: dict[str, Finite] = {}
    """Options of the schedule, as NAME VALUE pairs: decay (wsd: share of the steps in which it falls), rise and start
    (one-cycle: share of the steps in which it rises, and from which share of the peak), drops (stepwise)."""
    warmup: NotNegative = 100
    """Warm-up steps, in which the learning rate rises to its peak; at most a tenth of the run."""
    final_lr: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """Learning rate at the last step, as a share of the peak (not with constant). Default: 0.02."""
    average: str = "none"
    """Average of the weights, evaluated beside the weights themselves; the better ones are those of a checkpoint. ema:
    exponential moving average. tail: mean since a share of the run. nt-asgd: mean since the evaluations no longer
    improve (Merity et al. 2018). two-tailed: mean of the last steps, as many as evaluations favour
    (Melis 2022)."""
    average_options: dict[str, Finite] = {}
    """Options of the average, as NAME VALUE pairs: decay (ema), start (tail), patience (nt-asgd)."""
    clip: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Gradients are clipped to this global norm. 0: no clipping."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Decoupled weight decay of matrices and embeddings (Loshchilov & Hutter 2019)."""

    patience: Positive | None = None
    """Stop after this many evaluations in a row without a new best."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """When the loss, a gradient or a weight is not finite: stop, or roll back to the last evaluation or sample with
    half the learning rate (5 times at most)."""
    init_from: str | None = None
    """Start from the best weights of another run, given by its folder."""

    in_output: ClassVar[Group] = Group("Output")
    run: Annotated[str, Field(min_length=1)] | None = None
    """Folder of the run. Default: the next free runs/TASK-N."""
    eval_every: NotNegative | None = None
    """Steps between evaluations, each followed by a checkpoint. Default: a tenth of the run. 0: only at the end."""
    sample_every: NotNegative | None = None
    """Steps between printed samples. Default: with each evaluation. 0: only at the end."""
    log: Names = ()
    """Also send the metrics, settings and samples to these trackers. csv writes metrics.csv; the others need the extra
    of their name, for example jaxgen[wandb]. none, for a resumed run: to none any more."""

    in_devices: ClassVar[Group] = Group("Several devices")
    devices: Positive | None = None
    """Number of devices (CPU cores or accelerators) that share each batch. Default: the largest number that divides the
    batch and leaves each device 8 rows or more; one for a model with more than 3,000 parameters per token of a batch,
    which spreading would slow down."""

    in_general: ClassVar[Group] = Group("General")
    preset: str = "small"
    """Named settings, listed by --help."""

    if not TYPE_CHECKING:  # type checkers derive the arguments from the fields

        def __init__(self, *positional: Any, **values: Any) -> None:
            """The settings that are given, else those of the preset. Raises ``UsageError`` for all that is wrong.

            ``model_fields_set`` has the names of those that are given.
            """
            if positional:
                raise UsageError(
                    f"Settings have names: give {type(self).__name__}(data={positional[0]!r}), for example."
                )
            given = {name: _plain(value) for name, value in values.items()}
            name = given.get("preset", type(self).model_fields["preset"].default)
            preset = dict(self.presets[choose(name, self.presets, "preset")][1])
            preset.pop("steps", None)  # a default, which epochs and minutes replace; see ``num_steps``
            if isinstance(pattern := given.get("layers_pattern"), str):
                preset["layers"] = pattern.count(",") + 1
            try:
                super().__init__(**{**preset, **given})
            except ValidationError as error:
                raise UsageError(describe_errors(error, type(self))) from None
            self.model_fields_set.intersection_update(given)

        def __setattr__(self, name: str, value: object = None) -> None:
            """Raise ``UsageError``."""
            raise UsageError(f"Settings do not change: make others with model_copy(update={{{name!r}: …}}).")

        __delattr__ = __setattr__

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The same settings with some others, checked as new ones are; those of another preset follow it."""
        del deep  # the settings are immutable
        update = {} if update is None else update
        check_kind("model_copy", update, Mapping, "a dictionary, for example model_copy(update={'steps': 100})")
        return type(self)(**{**{name: getattr(self, name) for name in self.model_fields_set}, **update})

    @field_validator("run", "init_from")
    @classmethod
    def _can_be_a_folder(cls, value: str | None, info: ValidationInfo) -> str | None:
        check_folder(value, flag_of(str(info.field_name)))
        return value

    @field_validator("log")
    @classmethod
    def _none_is_empty(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return () if names == ("none",) else names

    @field_validator("cell_options", "block_options")
    @classmethod
    def _are_finite(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"the option {name!r} must be a finite number")
        return options

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        given = [f"--{name}" for name in ("steps", "epochs", "minutes") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given together: give one of them")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"--batch-size {self.batch_size} rows cannot be split into --accumulate {self.accumulate} equal parts"
            )
        if self.layers_pattern is not None and self.cell != self.preset_value("cell"):
            raise ValueError(f"--cell {self.cell} and --layers-pattern were given together: give one of them")
        if self.final_lr is not None and self.schedule == "constant":
            raise ValueError(f"--final-lr {self.final_lr} has no meaning with --schedule constant: leave it out")
        if self.schedule == "one-cycle" and self.warmup != self.preset_value("warmup"):
            raise ValueError(f"--warmup {self.warmup} has no meaning with --schedule one-cycle: leave it out")
        if self.average_options and self.average == "none":
            raise ValueError("--average-options were given without --average: give one, or leave them out")
        if (share := self.lr * self.weight_decay) > MAX_DECAY:
            raise ValueError(
                f"--weight-decay {self.weight_decay:g} at --lr {self.lr:g} takes {share:.0%} of each weight in a step: "
                f"give --weight-decay 0, or one below {MAX_DECAY / self.lr:.2g}"
            )
        if "weight_decay" in self.optimizer_options:
            raise ValueError("weight decay has a flag of its own: give --weight-decay, not --optimizer-options")
        return self

    def preset_value(self, name: str) -> Any:
        """The value that a setting has if it is not given."""
        default = type(self).model_fields[name].get_default(call_default_factory=True)
        return self.presets[self.preset][1].get(name, default)

    def model_arguments(self, names: Iterable[str]) -> dict[str, Any]:
        """The settings of these names as arguments of a model; ``precision`` is decided for this machine."""
        arguments = {name: getattr(self, name) for name in names}
        if arguments.get("precision") == "auto":
            rounds = self.hidden >= AUTO_UNITS and multiplies_bfloat16()
            arguments["precision"] = "bfloat16" if rounds else "float32"
        return arguments

    @property
    def micro_batch_size(self) -> int:
        """The rows whose gradients are computed at once."""
        return self.batch_size // self.accumulate

    @property
    def reading(self) -> Reading:
        """How the run reads text."""
        return STANDARD

    def changes(self, other: TrainConfig) -> list[str]:
        """The names of the fields in which ``other`` differs, without those in ``may_change``."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [name for name in mine if mine[name] != theirs[name] and name not in self.may_change]


def check_folder(path: str | None, flag: str = "--run") -> None:
    """Raise ``UsageError`` for a name that no folder can have; ``flag`` is the flag that gave it."""
    if path is None:
        return
    problem = "a NUL character" if "\0" in path else None
    try:
        if any(len(os.fsencode(part)) > MAX_NAME for part in Path(path).parts):
            problem = f"a name of more than {MAX_NAME} bytes"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        problem = "half a character"
    if problem:
        raise UsageError(f"{flag} has {problem}: give another name for the folder.")


def describe_errors(error: ValidationError, kind: type[BaseModel]) -> str:
    """Pydantic's errors as sentences: what was given, what is allowed."""
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
        message = message.replace("a valid tuple", "a name or a list of names")
        flag = flag_of(where.split(".")[0]) if where else ""
        if item["type"] == "extra_forbidden":
            lines.append(f"{where!r} is no setting of this task{_suggest(where, kind.model_fields)}")
        elif flag:
            allowed = [word for word in re.findall(r"'([^']*)'", message) if item["type"] == "literal_error"]
            given, shown = str(item["input"])[:MAX_SHOWN], repr(item["input"])
            shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]} …"
            lines.append(f"{flag} is {shown}: {message.removesuffix('.')}{_suggest(given, allowed)}")
        else:
            lines.append(message.removesuffix("."))
    return "; ".join(lines) + "."


def _suggest(name: str, known: Iterable[str]) -> str:
    nearest = near_name(name, known)
    return f" (did you mean {nearest!r}?)" if nearest else ""


def _plain(value: Any) -> Any:
    """A setting in the types of the fields: no paths, lists, or scalars of NumPy and JAX."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return to_python(value)


def validate(kind: type[Config], values: dict[str, Any], source: str = "") -> Config:
    """Validate plain values strictly. Raises one ``UsageError`` for all that is wrong, prefixed with ``source``."""
    try:
        return kind(**{name: _plain(value) for name, value in values.items()})
    except UsageError as error:
        raise UsageError(f"{source}{error}") from None
    except ValidationError as error:
        raise UsageError(f"{source}{describe_errors(error, kind)}") from None


def read_toml(path: str) -> dict[str, Any]:
    """The settings in a TOML file; dashes in names count as underscores.

    Raises ``UsageError`` for a file that cannot be read, or a setting that is given with both spellings.
    """
    try:
        if "\0" not in path and Path(path).exists() and not Path(path).is_file():  # a pipe or a device has no end
            raise ValueError("it is not a regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {MAX_CONFIG_BYTES // 2**20} MB")
        values = tomllib.loads(STANDARD.text(data.decode("utf-8")))
    except OSError as error:
        raise UsageError(f"The configuration file {path} cannot be read: {error.strerror}.") from None
    except RecursionError:
        raise UsageError(f"The configuration file {path} is nested too deeply: give values and lists.") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The configuration file {path} is not UTF-8 at byte {error.start}: save it in UTF-8."
        ) from None
    except ValueError as error:  # also for a name with a NUL character and a number of thousands of digits
        reason = str(error).split(";")[0]
        raise UsageError(f"The configuration file {path!r} cannot be read as TOML: {reason}.") from None
    written: dict[str, str] = {}
    for name in values:
        if (first := written.setdefault(name.replace("-", "_"), name)) != name:
            raise UsageError(f"The configuration file {path} has {first!r} and {name!r}, one setting: leave one out.")
    return {setting: values[name] for setting, name in written.items()}


def to_toml(config: TrainConfig, sources: Mapping[str, str] = {}) -> str:
    """The settings as a TOML file that ``read_toml`` reads, by groups; those that are not set are comments.

    ``sources`` says where a setting comes from; the others are defaults of the class. Raises ``UsageError`` for a text
    that is not UTF-8.
    """
    lines = []
    for group, names in groups_of(type(config)).items():
        lines += ["", f"# {group}"]
        for name in names:
            value = getattr(config, name)
            line = f"# {name} =" if value is None else f"{name} = {_toml(value, name)}"
            lines.append(f"{line:<35s}  # {sources.get(name, 'not set' if value is None else 'default')}")
    return "\n".join(lines[1:]) + "\n"


def _toml(value: Any, name: str) -> str:
    """A setting as a value of TOML; ``name`` is for the message."""
    if isinstance(value, str):
        if not value.isprintable() and re.search("[\ud800-\udfff]", value):
            raise UsageError(f"{flag_of(name)} is not UTF-8, which a TOML file cannot hold: rename the file.")
        quoted = json.dumps(value, ensure_ascii=False)
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml(each, name) for each in value)}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{_toml(key, name)} = {_toml(each, name)}" for key, each in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return str(value).lower()


def run_digest(config: TrainConfig, resolved: Mapping[str, Any], weights: str | None) -> str:
    """The digest that binds checkpoints to their run: of all that its first start fixes.

    Equal runs have the same digest. Paths, the number of steps, devices and an accepted change of data do not enter.

    Args:
        config: The settings.
        resolved: What was resolved from the data; only the options of the model, tokenizer, digest of data and
            plugins count.
        weights: The digest of the weights of ``--init-from``.
    """
    free = {*config.may_change, *config.places, "preset", "devices", "init_from", "teacher"}
    fixed = config.model_dump(mode="json", exclude=free)
    data = [resolved["model"], resolved["tokenizer"], resolved["data"]["sha256"], weights]
    data += [resolved["plugins"]] if "plugins" in resolved else []
    data += [resolved["teacher"]["checkpoint"]] if "teacher" in resolved else []
    return json_sha256([config.task, fixed, *data])


def environment_diff(resolved: dict[str, Any]) -> str:
    """How the environment of a run has changed since it was started, in words; empty if it has not.

    Compares versions, the kind of device, on a CPU the processor, and what is set that can change bits, as far as
    ``resolved`` records them.
    """
    then, now = resolved.get("versions"), versions()
    known = dict(then) if isinstance(then, dict) else {}
    here: dict[str, object] = {name: now[name] for name in ("jax", "jaxlib", "python")}
    here["device"] = known["device"] = jax.devices()[0].device_kind
    for name in ("device", "processor"):
        if isinstance(resolved.get(name), str):
            known[name] = resolved[name]
    if known["device"] == here["device"] and jax.default_backend() == "cpu":
        here["processor"] = processor_name()
    set_then, set_now = resolved.get("environment"), numerics()
    set_then = set_then if isinstance(set_then, dict) else {}
    for name in sorted({*set_then, *set_now}):
        known[name], here[name] = set_then.get(name, "its default"), set_now.get(name, "its default")
    others = [name for name, value in here.items() if known.get(name, value) != value]
    return " and ".join(f"{name} {known[name]} and continues with {here[name]}" for name in others)


def versions() -> dict[str, str]:
    """The versions of jaxgen, JAX and Python."""
    return {
        "jaxgen": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
    }


def write_config(run: RunDirectory, config: TrainConfig, resolved: dict[str, Any]) -> None:
    """Write ``config.json``. A folder with this file is a run."""
    content = {"task": config.task, "config": config.model_dump(mode="json"), "resolved": resolved}
    run.write_json("config.json", with_digest(content))


def with_digest(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with its digest, which replaces an earlier one."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return {"sha256": json_sha256(rest), **rest}


def read_config(run: RunDirectory) -> dict[str, Any]:
    """What ``write_config`` wrote. Raises ``CheckpointError`` if anything in it has changed since.

    An altered number would otherwise change how the run continues, without any other sign.
    """
    content = run.read_json("config.json")
    if not isinstance(content, dict) or not isinstance(content.get("sha256"), str):
        raise CheckpointError(
            f"{run.config_path} does not describe a run of this version of jaxgen: it has no digest. Copy the run "
            "again, or train it again."
        )
    if content != with_digest(content):
        raise CheckpointError(
            f"{run.config_path} has been altered: its digest is not that of its content. Copy the run again. To change "
            "settings, give flags with --resume, or start a new run, perhaps with --init-from."
        )
    return content
