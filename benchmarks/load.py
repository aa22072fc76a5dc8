"""Seconds and megabytes of `cwbass split` and `cwbass check` on a folder of many images.

    python benchmarks/load.py [--images 20000] [--size 64] [--json]

The images are random, so that no two are near duplicates; half have masks. Each command runs in a process of its own, whose
largest resident memory the system reports. Generation is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("background", "thing", "stuff")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64, help="side of an image in pixels")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cwbass-load-") as folder:
        data = Path(folder) / "data"
        write_dataset(data, arguments.images, arguments.size)
        params = Path(folder) / "params.yaml"
        params.write_text(json.dumps({"data": {"root": str(data)}}))
        common = ["--params", str(params)]
        rows = [
            measure("split", [*common, "--out", str(Path(folder) / "split")]),
            measure("check", common),
        ]
    if arguments.json:
        print(json.dumps({"images": arguments.images, "size": arguments.size, "rows": rows}))
        return
    print(f"{arguments.images} images of {arguments.size} x {arguments.size} pixels, half with masks")
    for row in rows:
        print(f"{row['command']:6} {row['seconds']:7.1f} s {row['peak_mb']:7.0f} MB, exit code {row['code']}")


def write_dataset(root: Path, images: int, size: int) -> None:
    """The layout ``folder``: PNG images of noise, every other one with a mask of three classes."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for index in range(images):
        pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index:06}.png", compress_level=1)
        if index % 2 == 0:
            mask = rng.integers(0, len(CLASSES), (size, size), dtype=np.uint8)
            Image.fromarray(mask).save(root / "masks" / f"{index:06}.png", compress_level=1)


def measure(command: str, arguments: list[str]) -> dict[str, Any]:
    """Run a command; its wall time, its peak of resident memory and its exit code."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "cwbass", command, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for what is gone
    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return {
        "command": command,
        "seconds": time.perf_counter() - start,
        "peak_mb": usage.ru_maxrss * scale / 1e6,
        "code": process.returncode,
    }


if __name__ == "__main__":
    main()
