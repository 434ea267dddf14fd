"""Figures without a window; one colour, marker and title for each group of the data."""

import matplotlib

matplotlib.use("Agg")

# Okabe and Ito's colours; markers as well, for prints without colour.
LOOKS = [
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"),
    ("#E69F00", "v"), ("#56B4E9", "P"), ("#000000", "X"),
]  # fmt: skip
GROUP_LOOKS = {"aligned": ("#E69F00", "o"), "conflicting": ("#0072B2", "s")}
INTERVAL = 1.96
PANELS = {
    "shifted": "shifted distribution P* (thin: its two groups)",
    "aligned": "aligned group: attribute = label",
    "conflicting": "conflicting group: attribute = -label",
}
