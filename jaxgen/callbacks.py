"""Callbacks for ``jaxgen.train(data, callbacks=[...])``: the base class and those that come with jaxgen.

``Callback`` is the class to subclass. ``EarlyStopping`` ends a run that does not get better. The others send what a run
records to files and services, as ``log=("csv", "wandb")`` does.

Example:
    >>> config = jaxgen.LanguageConfig(data="book.txt", cell="elman", hidden=8, steps=2, batch_size=4, seq_len=8)
    >>> mine = [jaxgen.callbacks.EarlyStopping(patience=3), jaxgen.callbacks.CSV()]
    >>> jaxgen.start(config, callbacks=mine).train().step
    2
"""

from jaxgen.trainer.callbacks import Callback as Callback
from jaxgen.trainer.callbacks import EarlyStopping as EarlyStopping
from jaxgen.trainer.trackers import CSV as CSV
from jaxgen.trainer.trackers import MLflow as MLflow
from jaxgen.trainer.trackers import TensorBoard as TensorBoard
from jaxgen.trainer.trackers import Tracker as Tracker
from jaxgen.trainer.trackers import Trackio as Trackio
from jaxgen.trainer.trackers import Wandb as Wandb
