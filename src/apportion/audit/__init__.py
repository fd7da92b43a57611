"""Re-does a log's arithmetic and trusts nothing in it but the mathematics.

    level 0   every byte: entries, tables and rows hash to heads that the log's key signed; no head contradicts another
    level 1   append-only: what was remembered, witnessed or shown before is a prefix of what is there
    level 2   the economics, in exact integers: shares fit, floors are kept, guarantees and bids stay within their limits,
              every charge is settled again, balances carry over and no micro-credit is made or lost; and the gap, in balls
    level 3   the model that decided, replayed

What does not hold raises Refused and names the entry and the field; what cannot be checked for want of something
raises Unverifiable; what is left out is said in the verdict. There is no other way to "accepted".
"""

from apportion.audit.verify import Verdict, verify

__all__ = ["Verdict", "verify"]
