"""A figure of the marginals of several data sets, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ehrctx.events.marginals import GAPS, Marginals
from ehrctx.report.figures import panel_grid, shared_legend

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
DASHES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)))


def marginals_figure(found: Sequence[Marginals]) -> Figure:
    """Lengths as distribution functions; shares of gaps; shares of events with a number, and by rank of the code."""
    figure, panels, _ = panel_grid(3, 3, 3.1, sharey=False)
    lengths, gaps, codes = panels
    for place, one in enumerate(found):
        name = one.table["data"][0]
        style = {"color": COLOURS[place % 4], "linestyle": DASHES[place % 4], "linewidth": 1.4, "label": name}
        lengths.plot(one.lengths, np.arange(1, len(one.lengths) + 1) / len(one.lengths), **style)
        shares = one.gaps / max(1, one.gaps.sum())
        width = 0.8 / len(found)
        x = np.arange(len(shares)) + width * (place - (len(found) - 1) / 2)
        gaps.bar(x, shares, width, color=COLOURS[place % 4])
        codes.plot(np.arange(1, len(one.codes) + 1), one.codes["share"].to_numpy(), marker=".", **style)
    lengths.set_xscale("log")
    lengths.set_xlabel("events of a subject")
    lengths.set_title("Lengths (share of subjects)", loc="left")
    gaps.set_xticks(
        range(len(GAPS) + 1), ["0", *(f"≤ {name}" for name in list(GAPS)[1:]), "longer"], rotation=30, ha="right"
    )
    gaps.set_title("Gaps between events (share)", loc="left")
    codes.set_yscale("log")
    codes.set_xlabel("rank of the code")
    codes.set_title("Commonest codes (share of events)", loc="left")
    shared_legend(figure, lengths)
    return figure
