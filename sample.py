"""Write text with a trained model: ``python sample.py --help``."""

if __name__ == "__main__":
    from jaxgen.cli.main import run

    run("sample")
