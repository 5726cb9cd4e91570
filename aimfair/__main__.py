"""``python -m aimfair``."""

import sys

from aimfair.cli import main

sys.exit(main())
