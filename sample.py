"""Write text with a trained model: ``python sample.py --help``."""

import os
import signal

if __name__ == "__main__":
    former = signal.getsignal(signal.SIGINT)
    if former is signal.default_int_handler:
        # While modules load, Ctrl-C must not raise: NumPy turns KeyboardInterrupt into an ImportError with a traceback.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from jaxgen.cli.main import run

    run("sample", former)
