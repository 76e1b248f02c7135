"""What the bench of the step found, as a table and as a chart."""

from __future__ import annotations

from pathlib import Path

from simvtp_ds.files import replacing

PARTS = ("forward", "backward", "optimizer")


def table(report: dict) -> str:
    """Markdown: a row a variant, then a row a ratio."""
    lines = [
        "| step | seconds (spread) | forward | backward | optimizer | peak GiB | TFLOP | share of matmul peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in report["variants"].items():
        parts = " | ".join(f"{found[part]['median']:.2f}" for part in PARTS)
        flops, share = found["model_flops"], found["share_of_peak"]
        lines.append(
            f"| {name} | {found['seconds']['median']:.2f} ({found['seconds']['spread']:.0%}) | {parts} | "
            f"{found['peak_bytes'] / 2**30:.2f} | {'n/a' if flops is None else f'{flops / 1e12:.3f}'} | "
            f"{'n/a' if share is None else f'{share:.0%}'} |"
        )
    peaks = ", ".join(f"{dtype} {rate / 1e12:.3f}" for dtype, rate in report["matmul_peak"].items())
    lines += ["", f"Matmul peak, TFLOP/s: {peaks}.", "", "| ratio | time (spread) | peak memory |", "|---|---|---|"]
    for what, found in report["ratios"].items():
        time = found["seconds"]
        lines.append(f"| {what} | {time['median']:.2f} ({time['spread']:.0%}) | {found['peak_memory']:.2f} |")
    return "\n".join(lines)


def plot(report: dict, path: Path) -> None:
    """Two bars a variant: seconds by part, and peak memory."""
    from matplotlib.figure import Figure

    variants = report["variants"]
    figure = Figure(figsize=(10, 1.6 + 0.45 * len(variants)), layout="constrained")
    times, memory = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    done = [0.0] * len(variants)
    for part in PARTS:
        values = [found[part]["median"] for found in variants.values()]
        times.barh(list(variants), values, left=done, label=part)
        done = [before + value for before, value in zip(done, values, strict=True)]
    times.set_xlabel("seconds a step (medians)")
    times.legend(fontsize=8)
    times.invert_yaxis()
    gib = [found["peak_bytes"] / 2**30 for found in variants.values()]
    memory.bar_label(memory.barh(list(variants), gib, color="C4"), fmt="%.1f", fontsize=8, padding=2)
    memory.margins(x=0.15)
    memory.set_xlabel("peak memory, GiB")
    figure.suptitle(f"{report['preset']}, {report['clips']} clips, {report['device']}", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
