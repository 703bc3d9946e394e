"""Work on several processes whose results come in the order of the work.

Nothing here imports TensorFlow: every worker process imports this module.
"""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading


def in_order(make, job, batches, payload, processes):
    """Works on batches in several processes; the order of results never depends on them.

    Args:
        make: a function of a module that turns `job` into the function to apply; called once a
            process.
        job: what `make` needs; it is pickled, as payloads and results are.
        batches: an iterable, read only as far ahead as keeps the processes busy.
        payload: what of a batch is sent to a process.
        processes: how many.

    Yields:
        (batch, what the function returned for its payload).
    """
    # spawn, not fork: a forked copy of a process that holds TensorFlow's threads may hang
    pool = concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _start_worker, (make, job))
    waiting = collections.deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(_work, payload(batch))))
            if len(waiting) > 2 * processes:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_function = None  # what a worker process applies


def _start_worker(make, job):
    """Makes the function once a process; ends the process with its parent, however that ends."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers itself
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _function = make(job)


def _work(payload):
    """Applies the function in a worker process."""
    return _function(payload)
