"""The colours and marks that sites have in every picture; no package is needed for them."""

# Okabe and Ito 2008: told apart by colour-blind readers; the markers tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
BRIGHT = COLOURS[:-1]
"""The sites' colours: black is that of all of them together."""
