"""Signals that ask a run to stop: it saves first; a second signal ends it at once."""

import contextlib
import signal
import threading

from configs.errors import Stopped
from mesh.compat import tf

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """A context in which SIGINT and SIGTERM are asked for politely.

    The first signal lets the step in hand end, and the run save; between legs, when everything is
    saved, it ends the run where it is. From then on signals do what they do by default.

    Attributes:
      asked: whether a signal has come.
      saved: the step that is saved while no training step runs, or None.
    """

    def __init__(self):
        self.asked = False
        self.saved = None
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # A signal that the caller has set to be ignored stays so (nohup, a shell's &).
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        del number, frame
        self.asked = True
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        if self.saved is not None:
            self.end(self.saved)

    @contextlib.contextmanager
    def leg(self, step):
        """A context in which training goes on from `step`, where it still is if machines fail.

        So a signal ends a run that waits to try again.
        """
        self.saved = None
        try:
            yield
        except tf.errors.OpError:
            self.saved = step
            if self.asked:
                self.end(step)
            raise

    def end(self, step):
        """Ends the run, which is saved at `step`.

        Raises:
          Stopped: always.
        """
        raise Stopped(f"stopped at step {step}, which is saved; the same command goes on from it")


class StopAtSignal(tf.train.SessionRunHook):
    """Ends a leg of training, as its last step would, after the step in which a signal came."""

    def __init__(self, stop):
        self._stop = stop

    def after_run(self, run_context, run_values):
        if self._stop.asked:
            run_context.request_stop()
