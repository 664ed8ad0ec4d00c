"""What a language model computes at each step: states, gates, probabilities. Models with units held at a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Float, Int, PyTree

from jaxgen.cells.base import Cell, name_arrays
from jaxgen.cells.linear import LinearCell
from jaxgen.errors import UsageError, choose
from jaxgen.models.layers import RecurrentModel, cell_state
from jaxgen.types import Array, Carry, Params

#: The largest number of float32.
LARGEST = float(np.finfo(np.float32).max)


class Seen(NamedTuple):
    """What a step has computed: for each layer its state and gates by name, and log-probabilities of the next token."""

    states: list[dict[str, Float[Array, "B units"]]]
    gates: list[dict[str, Float[Array, "B units"]]]
    logp: Float[Array, "B V"]


def state_arrays(model: Any, carry: Sequence[Carry]) -> list[dict[str, Array]]:
    """The arrays of the state of each layer by name; of a model without such a method, those of its carry."""
    return model.state_arrays(carry) if hasattr(model, "state_arrays") else [name_arrays(each) for each in carry]


def inspect_step(model: Any, params: Params, carry: Carry, token: Int[Array, "B"]) -> tuple[Carry, Seen]:
    """One step of a language model: the new carry and what the step has computed.

    The gates are those that cells compute from their own input (``Cell.gates``), which is caught where ``project``
    returns it.
    """
    inputs: dict[Any, tuple[Cell, PyTree, Array]] = {}

    def catch(call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        cell = context.module
        if context.method_name == "project" and isinstance(cell, Cell):
            inputs[cell.path] = cell.clone(parent=None), cell.weights(), result[0]
        return result

    with nn.intercept_methods(catch):  # without a table: looked up in it, the input would not be projected
        after, hidden = model.apply({"params": params}, token[None], carry, method="states")
    logits = model.apply({"params": params}, hidden[0], method="logits")
    gates: list[dict[str, Array]] = [{} for _ in carry]
    if len(inputs) == len(gates):
        layers = model.make_layers() if hasattr(model, "make_layers") else [None] * len(gates)
        own = [each if layer is None else cell_state(layer, each) for layer, each in zip(layers, carry)]
        gates = [cell.gates(weights, each, z) for (cell, weights, z), each in zip(inputs.values(), own)]
    return after, Seen(
        _in_rows(state_arrays(model, after)), _in_rows(gates), jax.nn.log_softmax(logits.astype(jnp.float32))
    )


def _in_rows(layers: list[dict[str, Array]]) -> list[dict[str, Float[Array, "B units"]]]:
    """The arrays with one axis of units, in their order, which ``jax.tree.map`` would not keep."""
    return [{name: array.reshape(array.shape[0], -1) for name, array in layer.items()} for layer in layers]


def inspect_steps(model: Any, params: Params, carry: Carry, tokens: Int[Array, "T B"]) -> tuple[Carry, Seen]:
    """``inspect_step`` over time: the last carry, and what each step has computed, with T in front."""
    return lax.scan(partial(inspect_step, model, params), carry, tokens)


# --- units held at a value


class Unit(NamedTuple):
    """A number of a state: of the array with this name of a layer, from 0."""

    layer: int
    array: str
    number: int

    def __str__(self) -> str:
        return f"{self.layer}:{self.array}:{self.number}"


def hold_units(model: RecurrentModel, values: Mapping[Unit, float]) -> RecurrentModel:
    """The same model with units of its states held at ``values`` from the first step on.

    After each step of the cell the unit has its value, for the next step and, if the cell's output is its state or is
    read from it (``LinearCell``), for the layers above.

    Raises:
        UsageError: if the model is not made of jaxgen's cells, or there is no such unit.
    """
    if not isinstance(model, RecurrentModel):
        raise UsageError(f"Units of {type(model).__name__} cannot be held: that needs a subclass of RecurrentModel.")
    if model.zoneout:
        raise UsageError("Units of a model with zoneout cannot be held: its cells mix the states of two steps.")
    pattern = model.cells_of_pattern
    factories = [pattern[layer % len(pattern)] for layer in range(model.layers)]
    layers = model.make_layers()
    for layer in sorted({unit.layer for unit in values}):
        if not 0 <= layer < model.layers:
            raise UsageError(f"There is no layer {layer}: the model has the layers 0 to {model.layers - 1}.")
        held = {unit: value for unit, value in values.items() if unit.layer == layer}
        factories[layer] = _holding(factories[layer], layers[layer], model.hidden, held)
    return model.clone(cell=tuple(factories), form="scan")


def _holding(factory: Any, layer: Any, hidden: int, values: Mapping[Unit, float]) -> Any:
    """A factory of the cells of ``factory`` that hold these units."""
    kind = getattr(factory, "func", factory)
    if not (isinstance(kind, type) and issubclass(kind, Cell)):
        raise UsageError(f"Units of {getattr(kind, '__name__', kind)} cannot be held: that needs a cell of jaxgen.")
    cell = factory(features=getattr(layer, "inner", hidden))
    places, held = _places(cell), []
    for unit, value in values.items():
        numbers = places[choose(unit.array, places, f"array of the state of layer {unit.layer} that can be held")]
        if not 0 <= unit.number < numbers.size:
            raise UsageError(
                f"There is no unit {unit}: {unit.array} of layer {unit.layer} has the units 0 to {numbers.size - 1}."
            )
        if not abs(value) <= LARGEST:
            raise UsageError(f"The unit {unit} cannot be held at {value}: give a number of float32.")
        held.append((int(numbers[unit.number]), float(value)))
    holding: Any = kind
    return partial(_holding_class(holding), **getattr(factory, "keywords", {}), held=tuple(held))


def _places(cell: Cell) -> dict[str, np.ndarray]:
    """For each array that is shown of a state, the places of its numbers in the state as one vector."""
    leaves, structure = jax.tree.flatten(_single(cell))
    ends = np.cumsum([math.prod(leaf.shape) for leaf in leaves])
    indices = [np.arange(end - math.prod(leaf.shape), end).reshape(leaf.shape) for end, leaf in zip(ends, leaves)]
    return {name: np.ravel(each) for name, each in cell.state_arrays(jax.tree.unflatten(structure, indices)).items()}


def _single(cell: Cell) -> Carry:
    """The shapes of a state without a batch."""
    return jax.eval_shape(lambda: cell.initialize_carry(jax.random.key(0), (cell.features,)))


@lru_cache
def _holding_class(kind: Any) -> Any:
    """A subclass of ``kind`` that holds numbers of its state; it has the same parameters."""
    reads_state = issubclass(kind, LinearCell) and kind.step is LinearCell.step

    class Holding(kind):
        #: Places in the state as one vector, and values.
        held: tuple[tuple[int, float], ...] = ()

        @nn.nowrap
        def step(self, weights: PyTree, carry: Carry, z: Array) -> tuple[Carry, Array]:
            after, y = super().step(weights, carry, z)
            held = self.hold(after)
            if reads_state:
                return held, self.read(weights, self.to_state(held), z.astype(jax.tree.leaves(held)[0].dtype))
            pairs = zip(jax.tree.leaves(after), jax.tree.leaves(held))
            return held, next((new for old, new in pairs if old is y), y)

        @nn.nowrap
        def hold(self, carry: Carry) -> Carry:
            leaves, structure = jax.tree.flatten(carry)
            kept, start = [], 0
            for leaf, like in zip(leaves, jax.tree.leaves(_single(self))):
                size, batch = math.prod(like.shape), leaf.shape[: leaf.ndim - len(like.shape)]
                flat = leaf.reshape(*batch, size)
                for place, value in self.held:
                    if start <= place < start + size:
                        flat = flat.at[..., place - start].set(value)
                kept.append(flat.reshape(leaf.shape))
                start += size
            return jax.tree.unflatten(structure, kept)

    Holding.__name__ = Holding.__qualname__ = kind.__name__
    return Holding
