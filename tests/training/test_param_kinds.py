"""The kinds of a model's parameters."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import pytest

from jaxgen.cells import CELLS
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tasks.translate.objective import TranslateTask
from jaxgen.training.param_kinds import Kind, map_kinds, param_kinds

GATES = {"lstm": 4, "capped-lstm": 4, "gru": 3, "elman": 1, "mingru": 2, "minlstm": 3, "layernorm-lstm": 4}


def build(**options):
    return LanguageTask.build(vocab_size=5, hidden=8, cell_options={}, **options)


@cache
def kinds_of(**options):
    return dict(param_kinds(build(layers=1, **options)))


@pytest.mark.parametrize(("cell", "gates"), GATES.items())
def test_a_kernel_has_the_gates_of_its_cell(cell, gates):
    found = {path: kind for path, kind in kinds_of(cell=cell).items() if kind.role == "matrix"}
    assert found
    assert {kind.gates for kind in found.values()} == {gates}


def test_embedding_output_and_biases_are_no_matrices():
    roles = {path[-1] if path[0] != "output" else "output": kind.role for path, kind in kinds_of(cell="lstm").items()}
    assert roles == {
        "embedding": "embedding",
        "output": "output",
        "bias": "other",
        "kernel": "matrix",
        "recurrent_kernel": "matrix",
    }


def test_matrices_of_a_block_stand_alone():
    found = kinds_of(cell="mingru", block="griffin")
    alone = [path for path, kind in found.items() if kind == Kind("matrix", 1)]
    cells = [path for path, kind in found.items() if kind == Kind("matrix", 2)]
    assert len(alone) >= 2
    assert len(cells) == 1


def test_the_output_of_a_decoder_and_convolutions_are_no_matrices():
    sizes = {"source_vocab": 5, "vocab_size": 5, "hidden": 8, "layers": 1, "embed": 8}
    task = TranslateTask.build(**sizes, cell="lstm", cell_options={})
    outputs = [kind.role for path, kind in param_kinds(task) if "output" in path and "stack" not in path]
    assert outputs
    assert {*outputs} == {"output"}
    blocks = kinds_of(cell="mingru", block="griffin")
    convolutions = [kind.role for path, kind in blocks.items() if "convolution" in path]
    assert convolutions
    assert {*convolutions} == {"other"}


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_kinds_whose_gates_divide_the_columns(cell):
    kinds, shapes = kinds_of(cell=cell), jax.eval_shape(build(layers=1, cell=cell).init, jax.random.key(0))
    pairs = tuple(kinds.items())
    divides = map_kinds(lambda kind, leaf: kind.role != "matrix" or leaf.shape[-1] % kind.gates == 0, pairs, shapes)
    assert all(jax.tree.leaves(divides))
    assert len(kinds) == len(jax.tree.leaves(shapes))


def test_unknown_parameters_have_the_kinds_of_their_names():
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "output": {"kernel": jnp.ones((3, 4))}}
    roles = map_kinds(lambda kind, _: kind.role, (), params)
    assert roles == {"dense": {"kernel": "matrix", "bias": "other"}, "output": {"kernel": "output"}}
