"""Properties that are computed once, and hold no lock while they are."""

from __future__ import annotations

import threading

from minifer.lazy import cached_property


class Thing:
    def __init__(self) -> None:
        self.asked = 0

    @cached_property
    def size(self) -> int:
        """How large it is."""
        self.asked += 1
        return 7


def test_it_is_computed_once_for_each_instance():
    one, two = Thing(), Thing()
    assert (one.size, one.size, one.asked, two.asked) == (7, 7, 1, 0)
    assert two.size == 7 and Thing.__dict__["size"].__doc__ == "How large it is."


def test_no_lock_is_held_meanwhile():
    """Another thread reads the property of another instance while one is being computed."""
    inside, leave = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, wait: bool) -> None:
            self.wait = wait

        @cached_property
        def value(self) -> int:
            if self.wait:
                inside.set()
                assert leave.wait(20)
            return 1

    thread = threading.Thread(target=lambda: Slow(True).value)
    thread.start()
    assert inside.wait(20)
    quick = threading.Thread(target=lambda: Slow(False).value)
    quick.start()
    quick.join(5)
    held = quick.is_alive()
    leave.set()
    thread.join()
    assert not held
