"""`python -m lumiglue`, and `torchrun --nproc-per-node N -m lumiglue train ...`."""

import sys

from lumiglue.cli import main

if __name__ == "__main__":
    sys.exit(main())
