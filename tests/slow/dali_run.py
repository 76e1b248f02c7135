"""Runs our DALI graph under whatever DALI this interpreter has: JOB.json in, clips out. Needs numpy and DALI only.

The job: [{"file", "frames", "box": [top, left, height, width], "flip", "size": [height, width]}].
The answer, beside it: an array i.npy for the i-th clip or, where it failed, i.txt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from simvtp_ds.data.dali_graph import clip_graph, graph_inputs


def main(job: Path, size: int) -> None:
    """One clip a run, so that a clip that fails is that clip."""
    pipeline = clip_graph("cpu", 1, (size, size), None, 1)
    for number, clip in enumerate(json.loads(job.read_text())):
        top, left, height, width = clip["box"]
        box = SimpleNamespace(top=top, left=left, height=height, width=width)
        view: Any = SimpleNamespace(indices=np.array(clip["frames"]), box=box, flip=clip["flip"])
        answer = job.parent / str(number)
        try:
            clips, shapes = pipeline.run(**graph_inputs([view], [Path(clip["file"]).read_bytes()]))
            if tuple(np.array(shapes[0])[1:3]) != tuple(clip["size"]):
                raise ValueError("another stream")
            np.save(answer.with_suffix(".npy"), np.array(clips[0]))
        except Exception as error:
            answer.with_suffix(".txt").write_text(str(error))
            pipeline = clip_graph("cpu", 1, (size, size), None, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
