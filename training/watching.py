"""What is looked for in each step's numbers: what is not finite, and losses that jump."""

import collections
import logging
import math
import os
import statistics

import inputs
from configs.errors import UserError
from training import metrics

BAD_STEPS = "bad_steps.jsonl"

# A spike is a loss so many standard deviations, and by such a share, above the mean of the losses
# of the steps before; so many of these are needed, and so many are looked at.
DEVIATIONS, SHARE = 6.0, 0.1
FEWEST, MOST = 50, 100


class Watch:
    """Stops a run, or counts what it leaves out, where numbers are not finite; tells of spikes.

    A step's rows follow from its number, so a line of `bad_steps.jsonl` in the run's directory has
    the file, record and byte offset of each.

    Args:
      config: the run's config: `on_nan` and `on_nan_limit`.
      start_window: from a step to the windows that were consumed before it.

    Attributes:
      skipped: updates that were left out by this process.
    """

    def __init__(self, config, start_window):
        self._config, self._start_window = config, start_window
        self._losses = collections.deque(maxlen=MOST)
        self.skipped = self._in_a_row = 0

    def see(self, step, loss, norm):
        """Takes the loss and the gradient's norm of the step that has just ended.

        Raises:
          UserError: one of them is not finite, and `on_nan` is "stop", or it was so too often.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self._in_a_row = 0
            self._look_for_spike(step, loss)
            self._losses.append(loss)
            return
        where = self._config.model_path
        what = f"the loss is {loss}" if not math.isfinite(loss) else (
            f"the gradient's norm is {norm}")
        rows = self._note(step, what, loss, norm)
        if self._config.on_nan == "stop":
            raise UserError(f"{where}: at step {step} {what}; {rows}; the last checkpoint is good: "
                            "lower lr, or set gradient_clipping, or on_nan to \"skip\", and go on "
                            "from it")
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row > self._config.on_nan_limit:
            raise UserError(f"{where}: at step {step} {what}, and {self._in_a_row - 1} updates in "
                            f"a row were left out already (on_nan_limit); {rows}; the last "
                            "checkpoint is good: lower lr, or set gradient_clipping, and go on "
                            "from it")
        logging.warning("warning: step %d: %s; its update is left out (%d so far, %d in a row); %s",
                        step, what, self.skipped, self._in_a_row, rows)

    def _look_for_spike(self, step, loss):
        if len(self._losses) < FEWEST:
            return
        mean, deviation = statistics.fmean(self._losses), statistics.pstdev(self._losses)
        if loss > mean + DEVIATIONS * deviation and loss > mean + SHARE * abs(mean):
            what = f"the loss is {loss:.4f}, after {mean:.4f} ± {deviation:.4f}"
            logging.warning("warning: step %d: %s; %s", step, what,
                            self._note(step, what, loss, None))

    def _note(self, step, what, loss, norm):
        """Adds a line to bad_steps.jsonl; returns a phrase that says where the rows are from."""
        config = self._config
        rows = inputs.origins(config, self._start_window(step - 1), config.train_batch_size)
        line = {"step": int(step), "what": what, "loss": str(loss), "gradient_norm": str(norm),
                "rows": rows}
        metrics.append_line(config.model_path, line, BAD_STEPS)
        path = os.path.join(config.model_path, BAD_STEPS)
        if not rows:
            return f"its rows are those of input_fn {config.input_fn}"
        first = rows[0]
        return (f"its {len(rows)} rows are listed in {path}, the first is of record "
                f"{first['record']} at byte {first['offset']} of {first['file']}")
