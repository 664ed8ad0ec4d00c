"""What each parameter of a model is, so that an optimizer can treat matrices, embeddings and outputs differently."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import optax
from flax import linen as nn
from jax.tree_util import DictKey, GetAttrKey, SequenceKey
from jaxtyping import PyTree

from jaxgen.cells.base import Cell
from jaxgen.training.task import Task, param_shapes
from jaxgen.types import Array, Params

Role = Literal["matrix", "embedding", "output", "other"]


class Kind(NamedTuple):
    """The kind of a parameter: a matrix [..., D, K] consists of ``gates`` matrices [..., D, K / gates] side by side."""

    role: Role
    gates: int = 1


#: The kinds of a model's parameters, by the names on their path. A tuple, because it is part of a static argument.
Kinds: TypeAlias = tuple[tuple[tuple[str, ...], Kind], ...]


def param_kinds(task: Task) -> Kinds:
    """The kinds of the parameters of ``task``. How many gates a kernel has, its cell says (``Cell.num_gates``)."""
    cells: dict[tuple[str, ...], Cell] = {}

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, Cell):
            cells[context.module.path] = context.module
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        params = param_shapes(task)

    def kind_of(path: tuple[str, ...], leaf: Array) -> Kind:
        role = role_by_name(path, leaf)
        owner = next((cells[path[:end]] for end in range(len(path), -1, -1) if path[:end] in cells), None)
        return Kind(role) if owner is None or role != "matrix" else Kind(role, owner.num_gates(leaf.shape))

    named = ((names(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
    return tuple((path, kind_of(path, leaf)) for path, leaf in named)


def role_by_name(path: tuple[str, ...], leaf: Array) -> Role:
    """The role of a parameter, from its place in the tree and its shape."""
    if "embedding" in path[-1]:
        return "embedding"
    above = path[: path.index("stack")] if "stack" in path else path  # the blocks in a stack have outputs of their own
    if any(name.startswith("output") for name in above):
        return "output"
    # The columns of a convolution over time are independent of each other.
    return "matrix" if leaf.ndim == 2 and "kernel" in path[-1] and "convolution" not in path else "other"


#: What the layers of a stack are called.
_LAYER = re.compile(r"(?:cells|forwards|backwards)_(\d+)")


def depths(params: Params) -> PyTree:
    """How far each parameter is from the output, in layers: 0 for what stands above the layers, 1 for the highest."""

    def height(path: tuple[Any, ...], leaf: Array) -> int | None:
        found = [int(match[1]) for name in names(path) if (match := _LAYER.fullmatch(name))]
        return found[0] + 1 if found else 0 if role_by_name(names(path), leaf) == "embedding" else None

    heights = jax.tree_util.tree_map_with_path(height, params)
    top = max(jax.tree.leaves(heights), default=0) + 1
    return jax.tree.map(lambda h: 0 if h is None else top - h, heights, is_leaf=lambda h: h is None)


def names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names on a path of ``jax.tree_util``."""
    return tuple(str(_name(key)) for key in path)


def _name(key: Any) -> Any:
    match key:
        case DictKey(key=name) | GetAttrKey(name=name) | SequenceKey(idx=name):
            return name
    return key


def map_kinds(function: Callable[..., Any], kinds: Kinds, params: Params, *rest: PyTree) -> PyTree:
    """``function(kind, leaf, ...)`` for every parameter; one that ``kinds`` does not have gets its role by its name."""
    known = dict(kinds)

    def call(path: tuple[Any, ...], leaf: Array, *more: Array) -> Any:
        where = names(path)
        return function(known.get(where) or Kind(role_by_name(where, leaf)), leaf, *more)

    return jax.tree_util.tree_map_with_path(call, params, *rest)


def matrices_apart(
    matrices: optax.GradientTransformation, others: optax.GradientTransformation, kinds: Kinds
) -> optax.GradientTransformation:
    """One rule for the parameters that are matrices, and one for all others."""

    def rule_of(kind: Kind, _: Array) -> str:
        return "matrix" if kind.role == "matrix" else "other"

    return optax.partition({"matrix": matrices, "other": others}, lambda params: map_kinds(rule_of, kinds, params))
