"""How often sampled texts have the label that they were conditioned on, judged by a classifier of real texts.

    python train.py --data ag_news --label-column 1 --run runs/titles
    python -m benchmarks.labels runs/titles            needs the extra [bench]; prints a table in Markdown

The judge is a bag of words (tf-idf, logistic regression, scikit-learn with its own defaults) of the real titles with
their topics; how many held-out real titles it recognises says how much can be asked of sampled ones.
"""

from __future__ import annotations

import argparse

from benchmarks import machine
from jaxgen import GenerationConfig, Sampler
from jaxgen.tasks.classify.data import ClassifyConfig, read_labelled


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labels", description="Whether texts follow labels.")
    parser.add_argument("run", help="a language run on ag_news with --label-column 1")
    parser.add_argument("--number", type=int, default=250, help="texts of each label (default: 250)")
    parser.add_argument("--temperature", type=float, default=0.7, help="of sampling (default: 0.7)")
    asked = parser.parse_args()
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    splits = read_labelled(ClassifyConfig(data=("ag_news",), text_column=("2",), val_rows=1000))
    words = TfidfVectorizer()
    judge = LogisticRegression(max_iter=1000).fit(words.fit_transform(splits.train.columns[0]), splits.train.columns[1])

    def recognised(texts: list[str], labels: list[str]) -> float:
        given = judge.predict(words.transform(texts))
        return sum(a == b for a, b in zip(given, labels)) / len(labels)

    sampler = Sampler.load(asked.run)
    settings = GenerationConfig(length=100, temperature=asked.temperature)
    print(machine.line(machine.facts()) + "\n")
    print("| titles | recognised by the judge |\n|---|---|")
    print(f"| real, held out | {recognised(*map(list, splits.val.columns)):.1%} |")
    for label in sorted({*splits.train.columns[1]}):
        texts = sampler.conditioned(label).sample(settings=settings, num_samples=asked.number)
        print(
            f"| sampled as {label}, for example: {texts[0].strip()} | {recognised(texts, [label] * len(texts)):.1%} |"
        )


if __name__ == "__main__":
    main()
