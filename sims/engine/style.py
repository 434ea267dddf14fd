"""Figures without a window; one colour, marker and title for each group of the data."""

import matplotlib

matplotlib.use("Agg")

# Okabe and Ito's colours.
GROUP_LOOKS = {"aligned": ("#E69F00", "o"), "conflicting": ("#0072B2", "s")}
INTERVAL = 1.96
PANELS = {
    "shifted": "shifted distribution P* (thin: its two groups)",
    "aligned": "aligned group: attribute = label",
    "conflicting": "conflicting group: attribute = -label",
}
