"""jaxgen: generative recurrent networks in JAX and Flax.

Train a model and sample from it::

    model = train("book.txt", level="word", minutes=2)    a whole run in a folder, resumable
    model.generate("Once upon", temperature=0.7, seed=1)  the same seed gives the same text
    load("runs/language-1").score("To be")                how probable is this text?

Cells (``LSTM``, ``GRU``, ``Elman``) are Flax modules with a pure step function; ``unroll`` runs any of them, and
Flax's own, over time. ``train_step`` is one optax update as a pure function. The rest is in the submodules.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxgen.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Load a subpackage or an API name at its first use, so that commands can configure the process before JAX."""
    if not name.startswith("_") and find_spec(f"jaxgen.{name}") is not None:
        return import_module(f"jaxgen.{name}")
    if name == "__all__":
        return _api_names()
    if name not in ("__version__", *_api_names()):
        near = import_module("jaxgen.errors").near_name(name, _api_names())
        right = _CALLS.get(name) or (f"jaxgen.{near}" if near else None)
        raise AttributeError(f"module 'jaxgen' has no attribute {name!r}" + (f": use {right}" if right else ""))
    return getattr(import_module("jaxgen.api"), name)


def _api_names() -> list[str]:
    return [name for name in dir(import_module("jaxgen.api")) if not name.startswith("_")]


def __dir__() -> list[str]:
    return sorted(["__version__", *_api_names()])


_WRITE = 'jaxgen.load(run).generate("The ", length=100)'
_TRAIN = 'jaxgen.train("book.txt")'
_CALLBACKS = ("CSV", "EarlyStopping", "MLflow", "TensorBoard", "Trackio", "Wandb")
#: What to call instead of names that the API does not have.
_CALLS = {
    **dict.fromkeys(("sample", "generate", "complete", "stream"), _WRITE),
    **dict.fromkeys(("fit", "run"), _TRAIN),
    **{name: f"jaxgen.callbacks.{name}" for name in _CALLBACKS},
    "predict": "jaxgen.load(run).predict(text)",
    "score": "jaxgen.load(run).score(text)",
    "chat": "jaxgen.ChatSession(jaxgen.Sampler.load(run)).send(text)",
    "Config": "jaxgen.LanguageConfig, ClassifyConfig, TranslateConfig or CaptionConfig",
}
