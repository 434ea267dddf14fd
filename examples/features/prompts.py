"""What two prompts say of the attribute: python examples/features/prompts.py runs/cifar10 [runs/named ...]

The first folder has features of captions, with two classes and two attributes. The others have prompts. A linear reader
of a caption's features t is b = (Cov(t) + s I)^-1 Cov(t, a), with a = -1 or +1 for the attribute, and s as in
`sims.diagnose`. Printed is b . (p_1 - p_0) / 2 for the prompts p_0, p_1: 1 if they differ as much as the attributes do,
0 if they say nothing of them. The whitened rule scores an image by its class and, with this weight, by its attribute.
"""

import pathlib
import sys

import numpy as np

SHRINKAGE = 0.01


def main(folder: str, *others: str) -> None:
    """Print the number for the class means of the captions, with attributes in equal parts, and for all prompts."""
    read = {name: np.load(pathlib.Path(folder, f"{name}.npy")) for name in ("text", "labels", "attributes")}
    text, labels, attributes = read["text"].astype(float), read["labels"], read["attributes"]
    classes, kinds = np.unique(labels), np.unique(attributes)
    moved = text - text.mean(0)
    cov = moved.T @ moved / len(moved)
    cov += SHRINKAGE * np.trace(cov) / len(cov) * np.eye(len(cov))
    reader = np.linalg.solve(cov, moved.T @ np.where(attributes == kinds[1], 1, -1) / len(moved))
    means = [np.mean([text[(labels == c) & (attributes == a)].mean(0) for a in kinds], axis=0) for c in classes]
    prompts = {"class means": np.stack(means)}
    prompts |= {name: np.load(pathlib.Path(name, "prompts.npy")).astype(float) for name in (folder, *others)}
    for name, (first, second) in prompts.items():
        print(f"{reader @ (second - first) / 2:+.2f}  {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
