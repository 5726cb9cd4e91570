"""``aimfair`` and ``python -m aimfair``."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in the background of a script
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while libraries are imported: ends at once, without a traceback


def main() -> int:
    from aimfair.commands import cli

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
