"""Record: a class of named fields, declared as a dataclass is, and made without compiling anything.

`dataclass` writes the methods of every class as text and compiles it: 0.5 to 1.3 ms a class, which was a fifth of the
time that it took to load a small model. The methods here are written once and go by the names of the fields::

    class Size(Record):
        width: int
        height: int = 1

    assert Size(3) == Size(width=3, height=1) and Size(3).with_(height=2).height == 2

Every annotation of the class is a field. A default stands in the class, shared by all: it must be nothing that can be
changed. Records are frozen (type checkers see to it) and compared by their fields, unless the class says otherwise:
`class Pen(Record, frozen=False, eq=False)`. What a new record must fulfil, `__post_init__` checks. A class of which
very many are made may write its own `__init__`, three times as fast.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        """For those who check types: the classes are made as dataclasses are."""
        return lambda cls: cls


Self = TypeVar("Self", bound="Record")


@dataclass_transform(frozen_default=True)
class Record:
    """See the module's text."""

    _fields: ClassVar[tuple[str, ...]] = ()
    _least: ClassVar[int] = 0  # fields without a default, which stand first

    def __init_subclass__(cls, *, frozen: bool = True, eq: bool = True) -> None:
        fields = (*cls._fields, *cls.__annotations__)
        least = sum(not hasattr(cls, name) for name in fields)
        own: dict[str, Any] = {"_fields": fields, "_least": least, "__match_args__": fields}
        if eq:
            own |= {"_values": property(attrgetter(*fields)), "__eq__": _equal, "__hash__": _hash if frozen else None}
        for name, value in own.items():
            setattr(cls, name, value)

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self._fields
        if named or not self._least <= len(values) <= len(fields):
            self._check_call(values, named)
            for name, value in named.items():
                setattr(self, name, value)
        for name, value in zip(fields, values):
            setattr(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Called for each new record."""

    def _check_call(self, values: tuple[Any, ...], named: dict[str, Any]) -> None:
        fields, name = self._fields, type(self).__name__
        if len(values) > len(fields):
            raise TypeError(f"{name} has {len(fields)} fields, not {len(values)}")
        for field in named:
            if field not in fields[len(values) :]:
                why = "is given twice" if field in fields else "is no field of it"
                raise TypeError(f"{name}: '{field}' {why}")
        missing = [f for f in fields[len(values) : self._least] if f not in named]
        if missing:
            raise TypeError(f"{name} lacks {', '.join(missing)}")

    def with_(self: Self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self)(**{name: getattr(self, name) for name in self._fields} | changes)

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self._fields)})"


def _equal(self: Any, other: Any) -> Any:
    return self._values == other._values if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(self._values)
