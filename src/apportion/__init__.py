"""apportion shares a live virtual world's machines among the tasks that want them.

import apportion
market = apportion.Market(demand=[[2, 1], [1, 3]], capacity=[[2, 2]], weight=[2, 1])
print(apportion.clear(market))

for round in apportion.play(apportion.load("examples/launch-day.yaml")):  # in virtual time, nothing written
    print(round.number, round.allocation.served, round.outcome.experience)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apportion.clearing.clear import clear as clear
    from apportion.core.allocation import Allocation as Allocation
    from apportion.core.errors import ApportionError as ApportionError
    from apportion.core.market import Market as Market
    from apportion.engine import Engine as Engine
    from apportion.serve.build import play as play
    from apportion.worlds.world import load as load

__version__ = "0.1.0"

_HOME = {
    "Market": "apportion.core.market",
    "Allocation": "apportion.core.allocation",
    "ApportionError": "apportion.core.errors",
    "clear": "apportion.clearing.clear",
    "load": "apportion.worlds.world",
    "play": "apportion.serve.build",
    "Engine": "apportion.engine",  # for those who bring executor, policy and journal themselves
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    """Import on first use: `apportion verify` must not wait for a solver it never calls."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'apportion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
