"""How long clearing takes beside the solvers that one would pick: `apportion bench clearing`, by the name it had.

python benchmarks/clearing.py [--sizes S,M,L,XL,1M] [--objectives ...] [--gaps 0.001,0.0001] [--seeds 0..2] [--peers ...]
"""

import sys

from apportion.serve.cli import main

sys.argv[1:1] = ["bench", "clearing"]
main()
