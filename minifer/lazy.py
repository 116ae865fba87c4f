"""A property that is computed once, without a lock.

`functools.cached_property` takes one before Python 3.12, for all instances of a class together. A child that is forked
while another thread computes such a property would wait for ever when it reads it (see locks.py). Two threads may
compute one twice here, with equal results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functools import cached_property as cached_property
else:

    class cached_property:
        """The method's result, kept in the instance under the method's name."""

        def __init__(self, method: Callable[[Any], Any]) -> None:
            self.method, self.name, self.__doc__ = method, method.__name__, method.__doc__

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            if instance is None:
                return self
            found = instance.__dict__[self.name] = self.method(instance)
            return found
