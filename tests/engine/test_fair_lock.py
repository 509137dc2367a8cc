from __future__ import annotations

import threading
import time

from ryzanstein.engine.fair_lock import FairLock


def test_threads_take_turns() -> None:
    """Each thread asks again as soon as it lets go; nobody comes twice before all others."""
    lock, order = FairLock(), []
    start = threading.Barrier(4)

    def work(name: int) -> None:
        start.wait()
        for _ in range(20):
            with lock:
                order.append(name)
                time.sleep(0.0005)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    middle = order[8:-12]
    rounds = [set(middle[i : i + 4]) for i in range(0, len(middle) // 4 * 4, 4)]
    assert all(len(names) == 4 for names in rounds)


def test_without_blocking() -> None:
    lock = FairLock()
    assert lock.acquire(blocking=False)
    assert not lock.acquire(blocking=False)
    lock.release()
    assert lock.acquire(blocking=False)
    with lock._guard:  # as when a finaliser runs inside the lock's own code
        assert not lock.acquire(blocking=False)
    lock.release()


def test_who_gives_up_waiting_does_not_keep_the_lock() -> None:
    lock = FairLock()
    lock.acquire()
    entered = threading.Event()

    def wait() -> None:
        with lock:
            entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not lock._queue:
        time.sleep(0.001)
    turn = threading.Lock()
    lock._queue.appendleft(turn)
    lock._give_up(turn)  # interrupted while it waited
    lock.release()
    assert entered.wait(5)
    waiting.join()
    lock.acquire()
    lock._give_up(threading.Lock())  # interrupted right after the lock was handed over
    assert lock.acquire(blocking=False)
