"""Everything apportion raises on purpose.

    ApportionError
    ├── BadInput            the caller can mend it: a file, a flag, an array              (exit 2)
    │   ├── BadWorld        a world file: names file, line, key, value and the way out
    │   └── BadMarket       arrays that describe no market
    ├── Refused             evidence that does not hold: a broken log, a false signature  (exit 1)
    ├── Forked              two heads that cannot both be true; carries the proof         (exit 2 of verify)
    ├── Unverifiable        something needed for a verdict is missing                     (exit 3)
    ├── Overdrawn           an account would fall below zero; nothing was moved
    ├── LogUnavailable      the log cannot be written or is held by another process
    └── EnforcerRefused     the machine would not take a limit

A message names the thing in the caller's words, shows the value, and offers the way out.
"""


class ApportionError(Exception):
    """Root of the tree: anything below is reported as one line, never as a traceback."""

    exit_code = 1


class BadInput(ApportionError):
    """The caller can mend it."""

    exit_code = 2


class BadWorld(BadInput):
    """A world file that cannot be used as it stands."""


class BadMarket(BadInput, ValueError):
    """Arrays that describe no market."""


class Refused(ApportionError):
    """Evidence that does not hold."""


class Forked(ApportionError):
    """Two heads of one log that cannot both be true."""

    exit_code = 2
    proof: str = ""  # what convinces a third party, where there is one


class Unverifiable(ApportionError):
    """Something needed for a verdict is missing; never a silent yes."""

    exit_code = 3


class Overdrawn(ApportionError):
    """An account would fall below zero; nothing was moved."""


class LogUnavailable(ApportionError):
    """The log cannot be opened or written; what was acknowledged before is kept."""


class EnforcerRefused(ApportionError):
    """The machine would not take a limit."""
