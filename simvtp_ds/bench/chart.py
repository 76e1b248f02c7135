"""What the bench of the data side found, as a table and as a bar chart."""

from __future__ import annotations

from pathlib import Path

from simvtp_ds.files import replacing


def table(report: dict) -> str:
    """Markdown, a row a reader and set; clips a second of wall time and of processor time, one worker and all."""
    lines = [
        f"| files | reader | 1 worker: clips/s | clips/CPU s (spread) | {report['workers']} workers: clips/s "
        "| clips/CPU s | levels off | right frames |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, readers in report["sets"].items():
        for reader, found in readers.items():
            if "missing" in found:
                lines.append(f"| {name} | {reader} | n/a: {found['missing']} | | | | | |")
                continue
            one, many = found["one"], found["all"]
            off, right = found.get("mean_difference"), found.get("right_frames")
            lines.append(
                f"| {name} | {reader} | {one['clips_per_s']:.1f} | {one['clips_per_cpu_s']:.1f} "
                f"({one['spread']:.0%}) | {many['clips_per_s']:.1f} | {many['clips_per_cpu_s']:.1f} | "
                f"{'' if off is None else f'{off:.2f}'} | {'' if right is None else f'{right:.0%}'} |"
            )
    lines += ["", "| clips per CPU second, one worker | ratio |", "|---|---|"]
    lines += [f"| {what} | {ratio:.2f} |" for what, ratio in report["ratios"].items()]
    return "\n".join(lines)


def plot(report: dict, path: Path) -> None:
    """A group of bars a set, a bar a reader: clips per CPU second of one worker, with the range over the rounds."""
    from matplotlib.figure import Figure

    sets = report["sets"]
    names = [name for name in next(iter(sets.values())) if any("one" in found[name] for found in sets.values())]
    figure = Figure(figsize=(10, 1.2 + 1.1 * len(sets)), layout="constrained")
    axes = figure.subplots()
    for place, reader in enumerate(names):
        for row, found in enumerate(sets.values()):
            height = row + 0.8 * (place - (len(names) - 1) / 2) / len(names)
            one = found[reader].get("one")
            value, (low, high) = (one["clips_per_cpu_s"], one["range"]) if one else (0.0, (0.0, 0.0))
            axes.barh(height, value, 0.76 / len(names), color=f"C{place}", label="" if row else reader)
            axes.plot([low, high], [height, height], color="black", linewidth=0.8)
            said = f"{value:.1f}" if one else "n/a"
            axes.annotate(said, (high, height), (4, 0), textcoords="offset points", va="center", size=7)
    axes.set_yticks(range(len(sets)), list(sets))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("clips per CPU second, one worker, one thread")
    axes.set_title(f"{report['num_frames']} frames, stride {report['frame_stride']}, to {report['image_size']} pixels")
    axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
