"""Training runs: the last row, the best checkpoint, and the ends of a run."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from builders import language_config, write
from edited import edit

from jaxgen import jitted
from jaxgen.errors import CheckpointError, DataError, DivergedError, JaxgenWarning, UsageError
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.loading import MAX_ATTEMPTS, LoadedRun
from jaxgen.inference.sampler import Sampler
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.logs import MetricsLog
from jaxgen.sampling.transforms.constraints import Forbid
from jaxgen.trainer import callbacks as pictures
from jaxgen.trainer import minutes
from jaxgen.trainer.callbacks import Evaluated, Finished, Note, Sampled, Started
from jaxgen.trainer.evaluate import EvalSchedule, build_optimizer
from jaxgen.trainer.run import resume, start
from jaxgen.trainer.signals import StopSignals
from jaxgen.trainer.trainer import MAX_STEPS_PER_CALL, RunTrainer, steps_per_call
from jaxgen.training.optimizer import OPTIMIZERS

settings = partial(language_config, lr=0.02, warmup=2, steps=7)


def rows(run: Path) -> list[dict[str, Any]]:
    return MetricsLog(run / "metrics.jsonl").read()


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_the_last_row_of_metrics_is_the_evaluation_at_the_last_step(book, tmp_path):
    start(settings(book, tmp_path / "run", eval_every=3, sample_every=0)).train()
    assert [row["step"] for row in rows(tmp_path / "run")] == [3, 6, 7]
    assert CheckpointStore(tmp_path / "run" / "checkpoints").latest() == 7


def test_relative_paths_stay_what_they_were_when_the_current_folder_changes(book, tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("book.txt").write_bytes(book.read_bytes())
    trainer = start(settings("book.txt", "run", eval_every=3))
    loaded = LoadedRun.open("run")
    monkeypatch.chdir(tmp_path / "there")
    trainer.train()
    assert os.listdir(tmp_path / "there") == []
    assert [row["step"] for row in rows(tmp_path / "here" / "run")] == [3, 6, 7]
    assert loaded.params()[0] > 0
    assert resume("../here/run").train().step == 7  # and its data are found where they were
    (tmp_path / "here" / "book.txt").rename(tmp_path / "moved.txt")
    with pytest.raises(DataError, match="here"):
        resume("../here/run")
    moved = loaded.config.model_copy(update={"data": ("../moved.txt",)})
    resume("../here/run", moved)
    monkeypatch.chdir(tmp_path)
    resume("here/run")


def test_samples_come_with_each_evaluation_unless_asked_otherwise(book, tmp_path):
    events: list[Any] = []
    start(settings(book, tmp_path / "run", eval_every=3), events.append).train()
    assert [event.step for event in events if isinstance(event, Sampled)] == [3, 6]
    assert isinstance(next(event for event in events if not isinstance(event, Note)), Started)
    assert isinstance(events[-1], Finished)


def test_eval_every_zero_evaluates_at_the_end_only(book, tmp_path):
    events: list[Any] = []
    start(settings(book, tmp_path / "run", eval_every=0), events.append).train()
    assert [event.row["step"] for event in events if isinstance(event, Evaluated)] == [7]
    assert not [event for event in events if isinstance(event, Sampled)]


def test_a_run_of_no_steps_leaves_its_first_weights(book, tmp_path):
    finished = start(settings(book, tmp_path / "run", steps=0)).train()
    assert finished.step == 0
    assert len(Sampler.load(tmp_path / "run").sample("", GenerationConfig(length=5))[0]) == 5


def test_the_sampler_loads_the_best_checkpoint_not_the_last(book, tmp_path, monkeypatch):
    metrics = RunTrainer._metrics

    def worse_with_time(self: RunTrainer, params: Any, final: bool) -> dict[str, float]:
        found = metrics(self, params, final)
        return found if final else {**found, "val_loss": found["val_loss"] + float(self.state.step)}

    monkeypatch.setattr(RunTrainer, "_metrics", worse_with_time)
    finished = start(settings(book, tmp_path / "run", eval_every=2, sample_every=0)).train()
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    step, params = LoadedRun.open(tmp_path / "run").params()
    assert (finished.best_step, step) == (2, 2)
    assert same(params, store.restore_params(2)[0])
    assert not same(params, store.restore_params(7)[0])
    saved = LoadedRun.open(tmp_path / "run")
    drawn = GenerationConfig(length=20, temperature=0.0)
    assert Sampler.load(tmp_path / "run").sample("The", drawn) == Sampler(saved.task, saved.codec, params).sample(
        "The", drawn
    )


def test_weights_are_looked_for_again_where_training_dropped_what_was_found(book, tmp_path, monkeypatch):
    """Others sample from a run while it is trained: what was the best is dropped once another is better."""
    trained = start(settings(book, tmp_path / "run", eval_every=0, sample_every=0))
    trained.train()
    store = CheckpointStore(tmp_path / "run" / "checkpoints", run_digest=trained.resolved["run_digest"])
    state, host = store.restore()
    store.save(8, state, host, metric=-1.0)
    find, dropped = CheckpointStore.best, []

    def better_meanwhile(self: CheckpointStore) -> int | None:
        found = find(self)
        if len(dropped) < 2:
            dropped.append(found)
            for more in (1, 2, 3):  # so many that the one found is dropped
                step = 8 + 3 * len(dropped) + more
                CheckpointStore(self.directory, run_digest=store.run_digest).save(step, state, host, -2.0 * step)
        return found

    monkeypatch.setattr(CheckpointStore, "best", better_meanwhile)
    assert LoadedRun.open(tmp_path / "run").params()[0] == 17
    assert dropped == [8, 14]


def test_weights_are_looked_for_so_often_and_no_more(book, tmp_path, monkeypatch):
    start(settings(book, tmp_path / "run", sample_every=0)).train()
    names, asked = iter(range(10**6)), []
    monkeypatch.setattr(CheckpointStore, "names", lambda self: next(names))  # as if something were saved all the time
    monkeypatch.setattr(CheckpointStore, "best", lambda self: asked.append(1) or 999)
    with pytest.raises(CheckpointError, match="999"):
        LoadedRun.open(tmp_path / "run").params()
    assert len(asked) == MAX_ATTEMPTS
    monkeypatch.setattr(CheckpointStore, "names", lambda self: [])
    with pytest.raises(CheckpointError, match="999"):
        LoadedRun.open(tmp_path / "run").params()
    assert len(asked) == MAX_ATTEMPTS + 1


@pytest.mark.filterwarnings("ignore:The vocabulary of --init-from")
@pytest.mark.parametrize("model", [pytest.param({}, marks=pytest.mark.slow), {"tie": True}, {"embed": 0}])
def test_a_vocabulary_grows_and_the_weights_of_its_old_tokens_stay(book, tmp_path, model):
    start(settings(book, tmp_path / "old", steps=2, **model)).train()
    other = write(tmp_path / "other.txt", Path(book).read_text() + "Żółć ąę\n" * 40)
    more = {"init_from": str(tmp_path / "old"), "extend_vocabulary": True, **model}
    trainer = start(settings(other, tmp_path / "new", steps=4, **more))
    saved = LoadedRun.open(tmp_path / "old")
    olds, news = (jax.tree.leaves(tree) for tree in (saved.params()[1], trainer.state.params))
    for old, new in zip(olds, news):
        np.testing.assert_array_equal(np.asarray(new)[tuple(map(slice, old.shape))], old)
    sizes = saved.codec.vocab_size, trainer.data.codec.vocab_size
    assert sizes[1] == sizes[0] + 6
    assert [pair for o, n in zip(olds, news) for pair in zip(o.shape, n.shape) if pair[0] != pair[1]] in (
        [sizes] * 2,
        [sizes] * 3,
    )
    trainer.train()
    resumed = resume(tmp_path / "new", settings(other, tmp_path / "new", steps=6, **more))
    assert resumed.data.codec.vocab_size == sizes[1]
    with pytest.raises(UsageError, match="does not fit"):
        start(settings(other, tmp_path / "wide", hidden=16, **more))


def test_a_new_run_can_begin_with_the_best_weights_of_another(book, tmp_path):
    start(settings(book, tmp_path / "old", sample_every=0)).train()
    trainer = start(settings(book, tmp_path / "new", init_from=str(tmp_path / "old")))
    _, old = LoadedRun.open(tmp_path / "old").params()
    assert same(trainer.state.params, old)
    assert int(trainer.state.step) == 0
    with pytest.raises(
        UsageError,
        match="--init-from",
    ):
        start(settings(book, tmp_path / "wide", init_from=str(tmp_path / "old"), hidden=16))
    with pytest.raises(UsageError, match="--level"):
        start(settings(book, tmp_path / "words", init_from=str(tmp_path / "old"), level="word"))
    assert not (tmp_path / "wide").exists()
    assert not (tmp_path / "words").exists()


def test_a_run_with_larger_batches_can_go_on_from_one_with_small_ones(book, tmp_path):
    small = settings(book, tmp_path / "small", batch_size=2, schedule="constant", sample_every=0)
    start(small).train()
    trainer = start(settings(book, tmp_path / "large", batch_size=8, warmup=0, init_from=str(tmp_path / "small")))
    assert same(trainer.state.params, LoadedRun.open(tmp_path / "small").params()[1])
    assert {leaf.shape[0] for leaf in jax.tree.leaves(trainer.state.carry)} == {8}
    assert trainer.train().step == trainer.total_steps
    with pytest.raises(UsageError, match="--batch-size"):
        resume(tmp_path / "small", small.model_copy(update={"batch_size": 8}))


@pytest.mark.parametrize("eval_every", [1, 0], ids=["seen by the evaluation", "seen in the training loss"])
def test_a_diverged_run_says_so_and_saves_nothing_of_it(book, tmp_path, eval_every):
    """The warm-up starts at zero: the first step changes nothing, the second sends the weights to infinity."""
    wild = {
        "cell": "elman-relu",
        "optimizer": "sgd",
        "lr": 1e30,
        "weight_decay": 0.0,
        "clip": 0.0,
        "warmup": 2,
        "steps": 20,
    }
    run = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"nan|inf") as error:
        start(settings(book, run, eval_every=eval_every, sample_every=0, **wild)).train()
    assert error.value.exit_code == 5
    store = CheckpointStore(run / "checkpoints")
    assert store.steps() == ([0, 1] if eval_every else [0])
    assert [row["step"] for row in rows(run)] == store.steps()[1:]
    for step in store.steps():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(store.restore(step)[0]))


def test_training_works_on_another_thread(book, tmp_path):
    done: list[Any] = []
    thread = threading.Thread(
        target=lambda: done.append(start(settings(book, tmp_path / "run", sample_every=0)).train())
    )
    thread.start()
    thread.join()
    assert done[0].step == 7


def test_a_run_folder_in_use_is_refused_before_it_is_touched(book, tmp_path):
    start(settings(book, tmp_path / "run"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="holds a run"):
        start(settings(book, tmp_path / "run"))
    assert sorted(tmp_path.rglob("*")) == before


def test_interrupting_the_measurement_leaves_no_run_directory(book, tmp_path, monkeypatch):
    def stopped(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(minutes, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        start(settings(book, tmp_path / "run", steps=None, minutes=1.0))
    assert not (tmp_path / "run").exists()


def test_a_finite_loss_far_beyond_guessing_is_warned_of_once_and_advised_on(book, tmp_path):
    notes: list[Any] = []
    wild = {
        "optimizer": "sgd",
        "lr": 1000.0,
        "weight_decay": 0.0,
        "clip": 0.0,
        "steps": 30,
        "eval_every": 5,
        "warmup": 0,
    }
    finished = start(settings(book, tmp_path / "run", **wild), notes.append).train()
    assert sum(event.text.count("guessing uniformly") for event in notes if isinstance(event, Note)) == 1
    advice, *_ = finished.advice  # of the small text too
    assert "guessing uniformly" in advice


def test_what_the_measurement_compiles_the_run_does_not_compile_again(book, tmp_path, monkeypatch):
    monkeypatch.setattr(minutes, "fitting_steps", lambda *_: 30)
    trainer = start(settings(book, tmp_path / "run", steps=None, minutes=60.0, hidden=11))
    assert trainer.total_steps == trainer.resolved["horizon"] == 30
    functions = [trainer._train_steps, *(make(trainer.task) for make in (jitted.jit_eval_step, jitted.jit_prefill))]
    before = [function._cache_size() for function in functions]
    trainer.train()
    assert [function._cache_size() for function in functions] == before
    assert before[0] == 1


def test_when_the_minutes_are_over_the_run_ends_saved_and_can_go_on_as_if_interrupted(book, tmp_path, monkeypatch):
    monkeypatch.setattr(minutes, "fitting_steps", lambda *_: 30)
    notes: list[Any] = []
    whole = start(settings(book, tmp_path / "whole", steps=30, eval_every=10))
    whole.train()
    late = start(settings(book, tmp_path / "late", steps=None, minutes=60.0, eval_every=10), notes.append)
    clock = itertools.count()
    late._is_late = lambda: next(clock) > 3
    finished = late.train()
    assert 0 < finished.step < 30
    assert any("is over" in note.text for note in notes if isinstance(note, Note))
    again = resume(str(tmp_path / "late"))
    again.train()
    assert same(again.state, whole.state)
    logs = [MetricsLog(tmp_path / name / "metrics.jsonl").read() for name in ("whole", "late")]
    assert [[row["val_loss"] for row in log] for log in logs] == [[row["val_loss"] for row in logs[0]]] * 2


def test_settings_of_the_model_that_were_altered_are_refused(book, tmp_path):
    start(settings(book, tmp_path / "run"))
    edit(tmp_path / "run", "config", "hidden", value=16)
    with pytest.raises(CheckpointError, match="hidden"):
        LoadedRun.open(tmp_path / "run")


@pytest.mark.parametrize(
    ("parameters", "tokens", "expected"),
    [(1_000, 64, MAX_STEPS_PER_CALL), (346_000, 2_048, 9), (2_000_000, 4_096, 1), (10**9, 10**5, 1)],
)
def test_larger_models_take_fewer_steps_a_call_and_never_less_than_one(parameters, tokens, expected):
    assert steps_per_call(parameters, tokens) == expected


def test_the_first_signal_is_remembered_and_the_second_acts_as_usual():
    former = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is former


def test_signals_are_left_alone_on_another_thread():
    seen: list[Any] = []

    def enter() -> None:
        with StopSignals() as signals:
            seen.append((signals.received, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def test_a_model_that_the_machine_cannot_hold_is_refused_before_a_folder_exists(book, tmp_path, monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("weights live in the device's memory")
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 2, "SC_PAGE_SIZE": 1024}.__getitem__)
    with pytest.raises(UsageError, match="--hidden"):
        start(settings(book, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_speed_of_the_call_that_compiles_is_written_nowhere(book, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxgen.trainer.trainer.MAX_STEPS_PER_CALL", 3)
    monkeypatch.setattr("jaxgen.trainer.progress_state.MIN_SECONDS", 1e-9)
    start(settings(book, tmp_path / "run", eval_every=3, sample_every=0, steps=6)).train()
    first, second = (row["tokens_per_second"] for row in rows(tmp_path / "run"))
    assert first is None
    assert second > 0


def test_transforms_given_from_python_act(book, tmp_path):
    start(settings(book, tmp_path / "run", eval_every=0)).train()
    sampler = Sampler.load(tmp_path / "run")
    only = sampler.tokenizer.encode("a")[0]
    others = tuple(i for i in range(sampler.tokenizer.vocab_size) if i != only)
    assert sampler.sample("The ", GenerationConfig(length=5, temperature=1.5, transforms=(Forbid(others),))) == [
        "aaaaa"
    ]


def test_runs_that_differ_in_seed_length_and_learning_rate_alone_share_what_is_compiled(book, tmp_path):
    one, other = (start(settings(book, tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    faster = start(settings(book, tmp_path / "faster", lr=0.03, steps=50, final_lr=0.5))
    clipped = start(settings(book, tmp_path / "clipped", clip=0.5))
    assert one._train_steps is other._train_steps is faster._train_steps
    assert one._train_steps is not clipped._train_steps
    assert not same(one.state.params, other.state.params)


def test_an_optimizer_registered_anew_under_its_name_is_the_new_one(book, tmp_path, monkeypatch):
    config = settings(book, tmp_path / "run")
    former = build_optimizer(config)
    monkeypatch.setitem(OPTIMIZERS, config.optimizer, type("Mine", (OPTIMIZERS[config.optimizer],), {}))
    assert build_optimizer(config) is not former


def test_a_task_that_cannot_be_compared_compiles_for_itself():
    class Unhashable:
        __hash__ = None
        prefill = staticmethod(lambda *args: args)

    assert jitted.jit_prefill(Unhashable()) is not jitted.jit_prefill(Unhashable())


@pytest.mark.slow
def test_a_run_in_bfloat16_says_so_and_goes_on_in_it(book, tmp_path):
    start(settings(book, tmp_path / "run", precision="bfloat16", steps=2, sample_every=0)).train()
    assert LoadedRun.open(tmp_path / "run").task.model.precision == "bfloat16"


@pytest.mark.parametrize(
    ("native", "units", "chosen"), [(True, 8, "bfloat16"), (False, 8, "float32"), (True, 9, "float32")]
)
def test_automatic_precision_is_decided_once(book, tmp_path, monkeypatch, native, units, chosen):
    monkeypatch.setattr("jaxgen.runs.config.AUTO_UNITS", units)
    monkeypatch.setattr("jaxgen.runs.config.multiplies_bfloat16", lambda: native)
    config = settings(book, tmp_path / "run", precision="auto", hidden=8, steps=0)
    start(config).train()
    monkeypatch.setattr("jaxgen.runs.config.multiplies_bfloat16", lambda: not native)  # on another machine
    monkeypatch.setattr("jaxgen.inference.loading.multiplies_bfloat16", lambda: chosen != "bfloat16")
    warned = pytest.warns(JaxgenWarning, match="bfloat16") if chosen == "bfloat16" else contextlib.nullcontext()
    with warned:
        again, loaded = resume(tmp_path / "run", config), LoadedRun.open(tmp_path / "run")
    assert again.learner.model.precision == loaded.task.model.precision == chosen


def test_the_picture_shows_the_last_evaluation(book, tmp_path, monkeypatch):
    drawn = []

    def draw(rows, path, title, target, best):
        drawn.append([row["step"] for row in rows])
        path.write_bytes(b"a picture")

    monkeypatch.setattr(pictures, "draw_losses", draw)
    start(settings(book, tmp_path / "run", eval_every=2, sample_every=0)).train()
    assert drawn[-1] == [2, 4, 6, 7]
    assert (tmp_path / "run" / "loss.png").read_bytes() == b"a picture"


def test_a_picture_that_cannot_be_drawn_is_told_once_and_ends_no_training(book, tmp_path, monkeypatch):
    """No tick of an axis fits, at every evaluation but the last."""

    def draw(rows, path, title, target, best):
        if len(rows) < 4:
            raise ValueError("no tick fits\nat all")
        path.write_bytes(b"a picture")

    monkeypatch.setattr(pictures, "draw_losses", draw)
    events: list[Any] = []
    start(settings(book, tmp_path / "run", eval_every=2, sample_every=0), events.append).train()
    assert sum("no tick fits" in event.text for event in events if isinstance(event, Note)) == 1
    assert isinstance(events[-1], Finished)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").latest() == 7
    assert (tmp_path / "run" / "loss.png").read_bytes() == b"a picture"


def test_a_picture_that_cannot_be_written_is_told_at_the_end_too(book, tmp_path, loss_plots):
    events: list[Any] = []
    run = start(settings(book, tmp_path / "run", eval_every=0), events.append)
    (tmp_path / "run" / "loss.png").mkdir()
    with loss_plots():
        run.train()
    assert sum("Is a directory" in event.text for event in events if isinstance(event, Note)) == 1


def test_metrics_that_cannot_be_written_end_a_training(book, tmp_path):
    run = start(settings(book, tmp_path / "run", eval_every=2))
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        run.train()
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [0]


@pytest.mark.parametrize(("steps", "between"), [(7, 1), (10, 1), (25, 2), (1000, 100)])
def test_by_default_there_are_ten_evaluations_with_at_least_one_step_between_them(steps, between, tmp_path):
    schedule = EvalSchedule.of(language_config(tmp_path, tmp_path), steps, steps)
    assert (schedule.evaluation, schedule.sample) == (between, between)
