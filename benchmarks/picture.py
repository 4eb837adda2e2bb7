"""The picture of a comparison: speed against bytes."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, StrMethodFormatter


def draw_picture(path: Path, found: dict[str, Any], title: str) -> None:
    """Images a second of one core against kilobytes an image; FFCV's points among ours.

    Args:
        path: of the .png.
        found: {name: benchmarks.decoders.Figures}; FFCV's begin with its name, ours with the filter
            area end with that.
        title: what was decoded.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.5), dpi=130)
    for name, figures in found.items():
        theirs = name.startswith("FFCV")
        if not theirs and not name.endswith("area"):
            continue
        x, y = figures.bytes / 1e3, 1e6 / figures.microseconds
        axes.plot(x, y, "s" if theirs else "o", color="tab:gray" if theirs else "tab:blue")
        decibels = f"{figures.psnr['area']:.1f} dB"
        axes.annotate(
            f"{name.removesuffix(', area')}\n{y:,.0f}/s, {decibels}", (x, y),
            textcoords="offset points", xytext=(7, -4), fontsize=8,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="kB an image", ylabel="images/s of one core")
    axes.set_xticks([50, 100, 200, 500], ["50", "100", "200", "500"])
    axes.set_xlim(right=axes.get_xlim()[1] * 2)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.3)  # room for the uppermost label
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
