"""Write text with a trained model: ``python sample.py --help``."""

import sys

from jaxgen.cli.sample import main

if __name__ == "__main__":
    sys.exit(main())
