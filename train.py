"""Train a recurrent generative network: ``python train.py --help``."""

import sys

from jaxgen.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
