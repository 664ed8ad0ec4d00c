"""``python -m jaxgen`` is the installed command ``jaxgen``."""

from jaxgen.cli.main import run

if __name__ == "__main__":
    run()
