"""Features of real handwriting whose background tells the class: python examples/features/digits.py features.npz

The images are the 1,797 digits of scikit-learn, 8 x 8 pixels, on a bright or a dark ground. The class is odd or even.
An odd digit has the bright ground with probability .9, an even one the dark ground. A caption always names the class,
the digit itself with probability .8, and the ground and the stroke, thick or thin, with probability .5 each. The image
features are the pixels, the text features say which words a caption has.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits

WORDS = ["odd", "even", *map(str, range(10)), "bright", "dark", "thick", "thin"]
MENTIONS = {"digit": 0.8, "ground": 0.5, "stroke": 0.5}


def main(file: str) -> None:
    """Write the features into a file of NumPy arrays."""
    rng = np.random.default_rng(0)
    digits = load_digits()
    ink = digits.images.reshape(-1, 64) / 16
    parity = np.array(["even", "odd"])[digits.target % 2]
    usual = rng.uniform(size=len(ink)) < 0.9
    bright = (parity == "odd") == usual
    image = ink + np.where(bright, 0.5, 0.0)[:, None] * (1 - ink)
    stroke = np.where(ink.sum(1) > np.median(ink.sum(1)), "thick", "thin")
    words = {"digit": digits.target.astype(str), "ground": np.where(bright, "bright", "dark"), "stroke": stroke}
    captions = [[word] for word in parity]
    for detail, rate in MENTIONS.items():
        for i in np.flatnonzero(rng.uniform(size=len(ink)) < rate):
            captions[i].append(words[detail][i])
    text = np.array([[word in caption for word in WORDS] for caption in captions], float)
    lines = np.array([" ".join(caption) for caption in captions])
    np.savez(file, image=image, text=text, captions=lines, labels=parity, attributes=words["ground"])


if __name__ == "__main__":
    main(*sys.argv[1:])
