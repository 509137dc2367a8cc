from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import native
import numpy as np
import pytest
from support import python_environment, run_python


def test_other_threads_run_in_the_middle_of_a_step() -> None:
    decoder = native.decoder(isa="scalar")
    batch = native.sequence(2000, 63)
    cache = native.cache(63)
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(1e-4):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        # With the lock held for the whole call, no tick could fall well inside one.
        for _ in range(50):
            begin = time.perf_counter()
            batch.run(decoder, cache)
            end = time.perf_counter()
            quarter = (end - begin) / 4
            if any(begin + quarter < at < end - quarter for at in ticks):
                return
            ticks.clear()
    finally:
        stop.set()
        thread.join()
    pytest.fail("a step keeps other threads from running")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_one_decoder_serves_several_threads(threads: int) -> None:
    decoder = native.decoder(threads=threads)
    batches = [native.sequence(10 + 30 * i, 4, seed=i) for i in range(4)]
    expected = [batch.run(native.decoder(), native.cache()).tobytes() for batch in batches]

    def serve(index: int) -> bool:
        # A cache of its own: who may write which page is the caller's business.
        cache = native.cache()
        results = {batches[index].run(decoder, cache).tobytes() for _ in range(25)}
        return results == {expected[index]}

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(serve, range(4)))


def test_decoders_run_side_by_side() -> None:
    batch = native.sequence(100, 4)
    expected = batch.run(native.decoder(), native.cache()).tobytes()

    def serve(threads: int) -> bool:
        decoder, cache = native.decoder(threads=threads), native.cache()
        return {batch.run(decoder, cache).tobytes() for _ in range(10)} == {expected}

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(serve, [1, 2, 3, 4]))


def test_decoders_come_and_go() -> None:
    batch = native.batch()
    outcomes = {batch.run(native.decoder(threads=3), native.cache()).tobytes() for _ in range(30)}
    assert len(outcomes) == 1
    for _ in range(20):
        native.decoder(threads=4)  # its workers never get to do anything


FORK = """
import os, sys, warnings
import native
from ryzanstein import ValidationError

# From Python 3.12 on, forking with threads warns of what is tested here.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
decoder = native.decoder(threads=int(sys.argv[1]))
before = native.batch().run(decoder, native.cache()).tobytes()
child = os.fork()
if child == 0:
    try:
        native.batch().run(decoder, native.cache())
    except ValidationError as error:
        fresh = native.decoder(threads=2)
        right = native.batch().run(fresh, native.cache()).tobytes() == before
        del decoder, fresh
        print(error, flush=True)
        os._exit(0 if right else 3)
    os._exit(4)
_, status = os.waitpid(child, 0)
assert native.batch().run(decoder, native.cache()).tobytes() == before
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_forked_child_is_told_to_load_its_own(threads: str) -> None:
    package = python_environment()["PYTHONPATH"]
    tests = str(Path(native.__file__).parent)
    done = run_python("-c", FORK, threads, PYTHONPATH=os.pathsep.join([package, tests]))
    assert (done.returncode, done.stderr) == (0, "")
    assert "loaded before fork(); load it in the child process instead" in done.stdout


def test_hidden_states_are_filled_by_every_thread() -> None:
    batch = native.sequence(50, 4)
    outcomes = set()
    for threads in (1, 2, 5):
        hidden = np.full((2, 50, native.HIDDEN), np.nan, np.float32)
        batch.run(native.decoder(threads=threads), native.cache(), hidden_states=hidden)
        assert np.isfinite(hidden).all()
        outcomes.add(hidden.tobytes())
    assert len(outcomes) == 1
