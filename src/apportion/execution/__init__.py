"""An Allocation in, an Outcome out: grants are enforced by the machine and what it delivered is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # the guardian imports this package and must stay a few MB: no arrays at run time
    from apportion.core.allocation import Allocation
    from apportion.core.round import Outcome


@runtime_checkable
class Executor(Protocol):
    """Makes grants true. It never blocks a round: whoever plays rounds does the waiting.

    Tasks are known by `allocation.market.tasks`, resources by `allocation.market.resources`. The law that every
    executor is tested against is in tests/test_execution.py.
    """

    def grant(self, allocation: Allocation) -> None:
        """Put these grants in force, now."""
        ...

    def observe(self) -> Outcome:
        """Tell what was delivered and experienced since the last grant."""
        ...

    def close(self) -> None:
        """Stop what was started and lift every limit; calling it twice is fine."""
        ...
