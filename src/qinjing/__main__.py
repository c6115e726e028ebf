"""`python -m qinjing` is the command `qinjing`."""

import sys

from qinjing.cli import main

sys.exit(main())
