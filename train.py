"""Train a recurrent generative network: ``python train.py --help``."""

if __name__ == "__main__":
    from jaxgen.cli.main import run

    run("train")
