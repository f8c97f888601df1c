"""How an index is written, in numbers; docs/index-format.md says it in words."""

FORMAT = 1
MANIFEST = "manifest.json"
ROWS = 256  # features in a row group of a site's table: what is read to know one of them
PASSAGES = 64  # passages in a row group
COARSE = 2  # bins of a tally in a bin of the written histogram, which are quarters of an octave
STEPS = 0xFF  # an example's value is maximum * (written / STEPS) ** 2
LEVELS = 8  # an activation near a peak is about maximum * ((written + 0.5) / LEVELS) ** 2
BESIDE = 5  # tokens on each side of a random example whose activations are kept; of the strongest, all of the window
SHARES = 0xFF  # of 1: what a companion's share is written in
