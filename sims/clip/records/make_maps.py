"""Make the class maps in sims/clip/records/maps from WordNet 3.0.

    python -m sims.clip.records.make_maps /usr/share/wordnet imagenet_synsets.txt

Needs data.noun of Debian's package wordnet-base, and ImageNet-1K's wnids, one a line, as in the wheel of timm:
timm/data/_info/imagenet_synsets.txt. A wnid is n and the place of a noun in WordNet 3.0.
coco.csv: an ImageNet class belongs to a category of COCO if the category's synset is the class itself or above it. Of
two such categories the nearer one has it. imagenet_names.txt: all names that WordNet gives the class.
"""

import pathlib

from sims.clip.records.reading import read_lines, reason
from sims.engine import files
from sims.engine.flags import UsageError, run_main

MAPS = pathlib.Path(__file__).parent / "maps"
# COCO's categories in its order, with the synsets that they mean; several where WordNet or ImageNet part what COCO does
# not. `cat` is the domestic cat and `cow` is cattle. ImageNet's cup is filed under punch, its television under systems.
COCO = {
    "person": "n00007846", "bicycle": "n02834778", "car": "n02958343", "motorcycle": "n03790512",
    "airplane": "n02691156", "bus": "n02924116", "train": "n04468005", "truck": "n04490091", "boat": "n02858304",
    "traffic light": "n06874185", "fire hydrant": "n03346898", "stop sign": "", "parking meter": "n03891332",
    "bench": "n02828884", "bird": "n01503061", "cat": "n02121808", "dog": "n02084071", "horse": "n02374451",
    "sheep": "n02411705", "cow": "n02402425", "elephant": "n02503517", "bear": "n02131653", "zebra": "n02391049",
    "giraffe": "n02439033", "backpack": "n02769748", "umbrella": "n04507155", "handbag": "n02774152",
    "tie": "n03815615", "suitcase": "n02773838", "frisbee": "n03397947", "skis": "n04228054",
    "snowboard": "n04251791", "sports ball": "n02778669", "kite": "n03621473", "baseball bat": "n02799175",
    "baseball glove": "n02800213", "skateboard": "n04225987", "surfboard": "n04363559",
    "tennis racket": "n04409806", "bottle": "n02876657", "wine glass": "n04592099",
    "cup": "n03147509 n07930864 n03797390", "fork": "n03383948", "knife": "n03623556", "spoon": "n04284002",
    "bowl": "n02880940", "banana": "n07753592", "apple": "n07739125", "sandwich": "n07695965",
    "orange": "n07747607", "broccoli": "n07714990", "carrot": "n07730207", "hot dog": "n07697537",
    "pizza": "n07873807", "donut": "n07639069", "cake": "n07628870", "chair": "n03001627", "couch": "n04256520",
    "potted plant": "n03991062", "bed": "n02818832", "dining table": "n03201208", "toilet": "n04446521",
    "tv": "n04405907 n04404412", "laptop": "n03642806", "mouse": "n03793489", "remote": "n04074963",
    "keyboard": "n03085013", "cell phone": "n02992529", "microwave": "n03761084", "oven": "n03862676",
    "toaster": "n04442312", "sink": "n04223580", "refrigerator": "n04070727", "book": "n02870092",
    "clock": "n03046257", "vase": "n04522168", "scissors": "n04148054", "teddy bear": "n04399382",
    "hair drier": "n03483316", "toothbrush": "n04453156",
}  # fmt: skip


def read_nouns(file: pathlib.Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """({wnid: names}, {wnid: the wnids directly above}) of WordNet's data.noun. Raises: UsageError."""
    names, above = {}, {}
    try:
        for line in file.read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):  # the license
                continue
            fields = line.split("|")[0].split()
            wnid, count = f"n{fields[0]}", int(fields[3], 16)
            names[wnid] = [fields[4 + 2 * i].replace("_", " ") for i in range(count)]
            pointers = fields[5 + 2 * count :]
            triples = [pointers[4 * i : 4 * i + 3] for i in range(int(fields[4 + 2 * count]))]
            above[wnid] = [f"n{place}" for kind, place, part in triples if kind in ("@", "@i") and part == "n"]
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"{file} is no data.noun of WordNet ({reason(error)}); install wordnet-base.") from None
    return names, above


def nearest(wnid: str, above: dict[str, list[str]], owners: dict[str, str]) -> str | None:
    """The owner of the synsets nearest above a class, itself included; None if none is above it.

    Raises: ValueError if two owners are equally near.
    """
    level = {wnid}
    while level:
        reached = {owners[each] for each in level if each in owners}
        if len(reached) > 1:
            raise ValueError(f"{wnid} is as near to {' as to '.join(sorted(reached))}.")
        if reached:
            return reached.pop()
        level = {upper for each in level for upper in above[each]}
    return None


def _main(wordnet: str, synsets: str) -> None:
    names, above = read_nouns(pathlib.Path(wordnet) / "data.noun")
    wnids = read_lines(synsets, "synsets")
    owners = {wnid: category for category, meant in COCO.items() for wnid in meant.split()}
    for where, listed in ((synsets, wnids), ("the table of COCO's synsets", owners)):
        for wnid in listed:
            if wnid not in names:
                raise UsageError(f"{where} has {wnid!r}, which is no noun of this WordNet; 3.0 is needed.")
    of = {wnid: nearest(wnid, above, owners) for wnid in wnids}
    lines = ["category,wnid"]
    for category in COCO:
        lines += [f"{category},{wnid}" for wnid in wnids if of[wnid] == category] or [f"{category},"]
    files.write_text(MAPS / "coco.csv", "\n".join(lines) + "\n")
    files.write_text(MAPS / "imagenet_names.txt", "".join(f"{wnid} {', '.join(names[wnid])}\n" for wnid in wnids))
    used = {category for category in of.values() if category}
    print(f"{sum(each is not None for each in of.values())} of {len(wnids)} classes in {len(used)} categories; {MAPS}")


if __name__ == "__main__":
    run_main(__doc__, lambda: None, _main, operands=("the folder of data.noun", "a file of wnids"))
