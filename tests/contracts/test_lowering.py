"""Training and decoding of every cell, in every form and block, lower for accelerators that need not be there."""

from __future__ import annotations

import pytest

from jaxgen.cells import CELLS, forms_of
from jaxgen.models import LanguageModel
from jaxgen.models.blocks import BLOCKS, block_factory
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.testing.cells import lower_training_and_decoding

FORMS = [(cell, form) for cell in CELLS for form in forms_of(CELLS[cell](features=8))]


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("cell", "form"), FORMS)
def test_training_and_decoding_lower(cell, form, block, platform):
    model = LanguageModel(7, CELLS[cell], 8, block=block_factory(block, {}), form=form)
    lower_training_and_decoding(LanguageTask(model), [platform])


PRESETS = [
    pytest.param(preset, cell, form, marks=pytest.mark.runs if cell == "lstm" else pytest.mark.slow)
    for preset in ("medium", "large")
    for cell, form in FORMS
]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(("preset", "cell", "form"), PRESETS)
def test_training_and_decoding_lower_with_the_sizes_of_a_preset(preset, cell, form, platform):
    sizes = LanguageConfig(preset=preset)
    model = LanguageModel(
        100, CELLS[cell], sizes.hidden, layers=sizes.layers, dropout=sizes.dropout, embed=sizes.embed, form=form
    )
    lower_training_and_decoding(LanguageTask(model), [platform], sizes.batch_size, sizes.seq_len)
