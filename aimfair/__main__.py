"""``python -m aimfair``."""

import sys

from aimfair.commands.cli import main

sys.exit(main())
