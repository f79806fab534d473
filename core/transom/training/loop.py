"""The loop of a run: steps, and what is written of them and when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, final

from transom.errors import TransomError
from transom.training.interrupt import stop_on_signal
from transom.training.metrics import Row
from transom.transformer.auxiliary_loss import auxiliary_losses

if TYPE_CHECKING:
    from transom.training.progress import Reporter
    from transom.training.run_folder import RunFolder
    from transom.training.tensorboard import EventFiles
    from transom.training.trainer import StepResult, Trainer

__all__ = ["TrainingLoop"]


@final
class TrainingLoop:
    """Trains to the last step, or until it is asked to stop.

    Args:
        trainer: does the steps.
        folder: of the run, for its metrics.
        save: writes a checkpoint of the trainer's step, or begins to.
        reporter: is told how it goes.
        events: for TensorBoard.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        save: Callable[[], None],
        reporter: Reporter,
        events: EventFiles | None = None,
    ) -> None:
        self._trainer, self._settings = trainer, trainer.settings
        self._metrics, self._save_checkpoint = folder.metrics, save
        self._reporter, self._events = reporter, events
        rows = self._metrics.rows()
        self._seconds = float(rows[-1]["seconds"]) if rows else 0.0
        self._logged = (trainer.step, self._seconds)
        self._saved_step = trainer.step

    def run(self) -> None:
        """Train; then, and when asked to stop, save.

        Raises:
            KeyboardInterrupt: it was asked to stop before the last step; the steps done are saved.
            TransomError: the loss is no longer a number; nothing more is saved.
            OutputError: something cannot be written; what was written before is untouched.
        """
        with stop_on_signal(self._reporter.note) as stop:
            while self._trainer.step < self._settings.steps and not self._trainer.team.any(stop.received):
                result = self._timed_step()
                self._log_if_due(result)
                self._save_if_due(result)
            if self._saved_step < self._trainer.step:
                self._save(result)
            self._trainer.team.wait()
        if self._trainer.step < self._settings.steps:
            raise KeyboardInterrupt

    def _timed_step(self) -> StepResult:
        began = time.perf_counter()
        result = self._trainer.train_step()
        self._seconds += time.perf_counter() - began
        self._reporter.advance(self._trainer.step)
        return result

    def _log_if_due(self, result: StepResult) -> None:
        looks = self._due(self._settings.eval_every)
        if looks or self._due(self._settings.log_every):
            row = self._row(result) | ({"validation_loss": self._trainer.validate()} if looks else {})
            self._metrics.append(row)
            self._reporter.row(row)
            if self._events:
                self._events.append(row)

    def _save_if_due(self, result: StepResult) -> None:
        if self._due(self._settings.checkpoint_every):
            self._save(result)

    def _save(self, result: StepResult) -> None:
        self._check_finite(result)
        # A checkpoint promises that the metrics of its steps are there.
        self._metrics.flush_to_disk()
        self._save_checkpoint()
        self._saved_step = self._trainer.step

    def _row(self, result: StepResult) -> Row:
        self._check_finite(result)
        step, seconds = self._trainer.step, self._seconds
        tokens = (step - self._logged[0]) * self._trainer.tokens_per_step
        speed = tokens / max(seconds - self._logged[1], 1e-9)
        self._logged = (step, seconds)
        return {
            "step": step,
            "loss": float(result.loss),
            "learning_rate": result.learning_rate,
            "gradient_norm": float(result.gradient_norm),
            "tokens": step * self._trainer.tokens_per_step,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(speed, 1),
            **{name: float(value) for name, value in auxiliary_losses(self._trainer.model).items()},
        }

    def _due(self, every: int) -> bool:
        step = self._trainer.step
        return step == self._settings.steps or (every > 0 and step % every == 0)

    def _check_finite(self, result: StepResult) -> None:
        if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
            what = f"the loss of step {self._trainer.step} is {float(result.loss)}"
            raise TransomError(
                f"{what}, and the norm of its gradients {float(result.gradient_norm)}.",
                hint="a lower train.learning_rate; --resume goes on from the last checkpoint",
                step=self._trainer.step,
            )
