"""A whole run: from a spec to a trained checkpoint, or from where a run stopped to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

from torch import nn

from transom.checkpoint.manifest import DataPosition, Manifest, read_manifest
from transom.checkpoint.store import list_checkpoints, open_checkpoint, prune_checkpoints
from transom.distributed.launch import restarts
from transom.errors import DataError
from transom.pretrained.spec import read_spec
from transom.specs.load import load_spec
from transom.specs.lock import Lock, Mode, read_lock
from transom.specs.plan import Plan, plan
from transom.specs.spec import ModelSpec
from transom.text.tokenizer import Tokenizer, load_tokenizer
from transom.training.corpus import Split, read_corpus, split_corpus
from transom.training.loop import TrainingLoop
from transom.training.loss_curve import draw_loss_curve
from transom.training.objective import Objective, check_objective, objective_of
from transom.training.progress import Reporter, SilentReporter
from transom.training.randomness import seeded_generators
from transom.training.run_folder import RunFolder
from transom.training.settings import (
    beside_use,
    check_same_run,
    located,
    other_use_of_weights,
    sequence_length,
    with_settings,
)
from transom.training.team import Team, team_of
from transom.training.tensorboard import open_event_files
from transom.training.trainer import Trainer
from transom.training.world import check_pipeline, check_sequences, sizes_of_run, split_over

__all__ = ["RunResult", "train"]

_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended.

    Args:
        folder: of the run.
        checkpoint: the newest.
        curve: the picture of the loss; `None` when matplotlib is not installed.
        parameters: numbers that were trained.
        steps: of the optimizer, done.
        tokens: trained on, counting repetitions.
        seconds: of training, without validation and saving; of all its parts together.
        loss: of the last step; `None` when the metrics were deleted.
        validation_loss: after the last step.
        bigram_loss: of a bigram model on the same validation tokens; `None` when the corpus is too large to count, or
            something else than the next token is learned.
    """

    folder: Path
    checkpoint: Path
    curve: Path | None
    parameters: int
    steps: int
    tokens: int
    seconds: float
    loss: float | None
    validation_loss: float
    bigram_loss: float | None


def train(
    spec: str | Path | Mapping[str, Any] | ModelSpec,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    steps: int | None = None,
    data: str | Sequence[str] | None = None,
    seed: int | None = None,
    init_from: str | Path | None = None,
    hooks: Sequence[str | Mapping[str, Any]] = (),
    use: Mapping[str, str | Sequence[str]] | None = None,
    device: str = "cpu",
    lock: str | Path | Lock | None = None,
    lock_mode: Mode = "compatible",
    tp: int | None = None,
    pp: int | None = None,
    dp: int | None = None,
    cp: int | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train the model of a spec as its ``train`` section says.

    Args:
        spec: as for `transom.load_spec`; or a folder with a model to go on with: of Hugging Face's form, a run or a
            checkpoint, whose spec it is and with whose weights training begins.
        out: folder of the run, which must be empty or absent unless `resume`; `None` = ``runs/NAME``.
        resume: go on from the newest checkpoint in the folder, under the spec that lies there: of steps and data,
            what this call gives wins, else what the run has, never what `spec` says. On one CPU, with the same versions
            and number of threads, the run ends as if it had never stopped, bit for bit.
        steps: in place of ``train.steps``; `None` = unchanged, as for the following.
        data: in place of ``train.data``; the run keeps absolute paths.
        seed: in place of ``train.seed``; a resumed run cannot change it.
        init_from: in place of ``train.init_from``.
        hooks: entries after the spec's ``hooks``.
        use: entries over the spec's ``use``.
        device: where to train.
        lock: a lock or its file, whose choices are taken, as for `transom.plan`.
        lock_mode: how closely the plan must agree with it.
        tp: ranks that share each layer's weights, of the processes that ``torchrun`` started; `None` = the config's.
        pp: ranks that share the layers, in a pipeline; `None` = the config's.
        dp: ranks that see other data; `None` = as many as are left. The run is that of one process but for rounding,
            whatever the numbers, and may be resumed with others.
        cp: ranks that share each sequence; `None` = the config's.
        reporter: is told how it goes, on the first rank; `None` = nobody.

    Returns:
        how it ended; the same on every rank.

    Raises:
        TransomError: something is wrong with spec, data, folder or checkpoint; nothing was written.
        OutputError: the disk is full or refuses; the last checkpoint is untouched.
        KeyboardInterrupt: it was asked to stop; what was done is saved.
    """
    given = read_spec(spec)
    if init_from is None and isinstance(spec, str | Path) and Path(spec).is_dir():
        init_from = spec
    sizes = sizes_of_run(given.config, tp=tp, pp=pp, dp=dp, cp=cp)
    with team_of(sizes, device) as team:
        reporter = reporter if reporter and team.is_first else SilentReporter()
        folder = RunFolder(Path("runs") / given.name if out is None else Path(out), writes=team.is_first)
        with team.agreed():
            resume = resume or (restarts() > 0 and folder.spec.is_file())
            if resume:
                given = with_settings(given, hooks=hooks)
                given = _own_spec(folder, given, {"steps": steps, "data": data}, seed, reporter)
            else:
                folder.check_free()
                given = with_settings(given, init_from=init_from, hooks=hooks)
            given = beside_use(given, use, sizes, device=device, lock=lock, lock_mode=lock_mode)
            wanted = located(with_settings(given, steps=steps, data=data, seed=seed, use=use))
            planned = plan(split_over(wanted, sizes), device=device, lock=lock, lock_mode=lock_mode)
            prepared = _prepare(wanted, planned)
            sizes.check_batch(wanted.train.batch_size)
            check_pipeline(wanted.train, planned.config, sizes)
            check_sequences(prepared.objective, prepared.length, planned.config, sizes)
        if sizes.ranks > 1:
            reporter.note(f"{team.describe()}; plan {planned.fingerprint}")
        return _trained(prepared, folder, reporter, device, team, resume)


def _trained(
    prepared: _Prepared, folder: RunFolder, reporter: Reporter, device: str, team: Team, resume: bool
) -> RunResult:
    with ExitStack() as held:
        with team.agreed():
            held.enter_context(folder.alone())
            if not resume:
                folder.check_free()
        held.enter_context(seeded_generators(prepared.spec.train.seed))
        return _Run(prepared, folder, reporter, device, team).finish()


def _own_spec(
    folder: RunFolder, given: ModelSpec, settings: Mapping[str, Any], seed: int | None, reporter: Reporter
) -> ModelSpec:
    folder.check_resumable()
    own = load_spec(folder.spec)
    newest = list_checkpoints(folder.checkpoints)[-1:]
    lines = check_same_run(
        located(own),
        located(with_settings(given, **settings)),
        asked=[name for name, value in settings.items() if value is not None],
        seed=seed,
        done=read_manifest(newest[0]).step if newest else 0,
        source=str(folder.spec),
    )
    for line in lines:
        reporter.note(f"resuming: {line}")
    return own


@dataclass(frozen=True)
class _Prepared:
    """Everything that can be found wrong before anything is written."""

    spec: ModelSpec
    plan: Plan
    lock: Lock
    tokenizer: Tokenizer
    split: Split
    length: int
    objective: Objective


def _prepare(spec: ModelSpec, made: Plan) -> _Prepared:
    length = sequence_length(spec)
    settings = spec.train
    objective = objective_of(spec, length)
    tokenizer = load_tokenizer(settings.tokenizer)
    tokens = read_corpus(
        settings.sources,
        tokenizer,
        vocab_size=spec.vocab_size,
        token_dtype=settings.token_dtype,
        reserved=objective.reserved,
    )
    split = split_corpus(tokens, settings.validation_fraction, length)
    return _Prepared(spec, made, Lock.from_plan(made), tokenizer, split, length, objective)


@final
class _Run:
    """The part of a run in which there is a model, and things are written."""

    def __init__(self, prepared: _Prepared, folder: RunFolder, reporter: Reporter, device: str, team: Team) -> None:
        self.spec, self.lock, self.tokenizer = prepared.spec, prepared.lock, prepared.tokenizer
        self.folder, self.reporter, self.team = folder, reporter, team
        self.fingerprint = prepared.split.train.fingerprint()
        with team.agreed():
            team.check(prepared.plan)
            self.model: nn.Module = team.built(prepared.plan, self.spec.train.seed, device)
            check_objective(self.spec, self.model)
            self._begin()
        self.trainer = Trainer(
            self.model,
            self.spec.train,
            prepared.split,
            sequence_length=prepared.length,
            device=device,
            team=team,
            objective=prepared.objective,
        )
        self.bigram = self.trainer.bigram_loss(self.spec.vocab_size) if team.is_first else None
        self._restore(prepared.plan)

    def finish(self) -> RunResult:
        """Train to the end."""
        with self.team.agreed():
            self.folder.begin(self.spec, self.lock)
            self.folder.metrics.rewind(self.trainer.step)
        self.reporter.start(self.spec.name, self.trainer.step, self.spec.train.steps)
        if self.bigram is not None:
            self.reporter.note(f"validation loss of a bigram model: {self.bigram:.4f}")
        events = open_event_files(self.folder.events, step=self.trainer.step) if self.team.is_first else None
        try:
            TrainingLoop(self.trainer, self.folder, self._save, self.reporter, events).run()
        except KeyboardInterrupt:
            self._draw()
            raise
        except BaseException:
            with suppress(Exception):  # what broke the run is the news
                self.team.wait()
            raise
        finally:
            self.reporter.stop()
            if events:
                events.close()
        return self._result(self._draw())

    def _begin(self) -> None:
        """Take over the weights that the spec begins with, unless there is a checkpoint to go on from."""
        folder = self.spec.train.init_from
        if folder is None or list_checkpoints(self.folder.checkpoints):
            return
        made_for = self.team.begin_with(self.model, Path(folder))
        self.reporter.note(f"beginning with the weights in {folder}")
        for line in other_use_of_weights(made_for, self.spec):
            self.reporter.note(line)

    def _restore(self, plan: Plan) -> None:
        if not list_checkpoints(self.folder.checkpoints):
            return
        checkpoint = open_checkpoint(self.folder.checkpoints)
        position = checkpoint.manifest.data
        trained_on = None if position is None else position.fingerprint
        if trained_on != self.fingerprint:
            raise DataError(
                "the data is not what the run was trained on.",
                asked_by="train.data",
                hint="the data as it was, or a new run with --out",
                expected=trained_on,
                found=self.fingerprint,
            )
        self.team.load(checkpoint, self.model, self.trainer.optimizer, self.spec.train.seed)
        self.trainer.step = checkpoint.manifest.step
        for line in read_lock(checkpoint.manifest.lock).differences(plan):
            self.reporter.note(f"resuming: {line}")

    def _save(self) -> None:
        tokenizer = self.tokenizer.file
        manifest = Manifest(
            transom=version("transom"),
            torch=version("torch"),
            step=self.trainer.step,
            spec=self.spec.to_dict(),
            lock=self.lock.to_dict(),
            tokenizer=_TOKENIZER_FILE if tokenizer else "bytes",
            data=DataPosition(
                seed=self.spec.train.seed,
                sequences=self.trainer.step * self.trainer.sequences_per_step,
                fingerprint=self.fingerprint,
            ),
        )
        files = {_TOKENIZER_FILE: tokenizer.read_bytes()} if tokenizer else {}
        self.team.save(
            self.folder.checkpoints, manifest, self.model, self.trainer.optimizer, files, afterwards=self._prune
        )

    def _prune(self) -> None:
        prune_checkpoints(self.folder.checkpoints, self.spec.train.keep_checkpoints)

    def _draw(self) -> bool:
        if not self.team.is_first:
            return False
        rows = self.folder.metrics.rows()
        drawn = draw_loss_curve(rows, self.folder.curve, title=self.spec.name, bigram=self.bigram)
        if not drawn:
            self.reporter.note("no loss curve: matplotlib is not installed (pip install 'transom[plot]')")
        return drawn

    def _result(self, drawn: bool) -> RunResult:
        rows = self.folder.metrics.rows() if self.team.is_first else []
        last = self.team.told(rows[-1] if rows else {})
        return RunResult(
            folder=self.folder.path,
            checkpoint=list_checkpoints(self.folder.checkpoints)[-1],
            curve=self.team.told(self.folder.curve if drawn else None),
            parameters=self.team.parameters(self.model),
            steps=self.trainer.step,
            tokens=self.trainer.step * self.trainer.tokens_per_step,
            seconds=float(last.get("seconds", 0.0)),
            loss=last.get("loss"),
            validation_loss=last["validation_loss"] if "validation_loss" in last else self.trainer.validate(),
            bigram_loss=self.team.told(self.bigram),
        )
