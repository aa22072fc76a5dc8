"""The pages as a browser builds them: offline, the report without scripts and in a sandboxed frame, the flight recorder with its own."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwbass.reporting.flight import write_flight
from cwbass.reporting.html import write_report

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium binary was found")


def browse(path: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a file; stderr holds the console."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", f"--user-data-dir={profile}",
        *options, path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def report(run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(path, **run)
    return path


def test_the_browser_builds_the_page_without_a_request_or_a_complaint(report: Path, tmp_path: Path) -> None:
    done = browse(report, tmp_path, "--dump-dom")
    tiles = re.findall(r'<span class="name">([^<]+)</span><span class="number">([^<]+)</span>', done.stdout)
    assert tiles == [
        ("CW-BASS mIoU", "74.3%"), ("Supervised mIoU", "71.7%"), ("Gain", "+2.6"), ("Boundary IoU", "58.3%"),
        ("Boundary F1", "68.8%"), ("Calibration error", "4.3%"),
    ]  # fmt: skip
    assert "CONSOLE" not in done.stderr  # no error, no violation of the page's own policy
    assert not re.search(r"https?://", done.stdout)
    assert set(re.findall(r'(?:src|href)="([^"]{0,11})', done.stdout)) == {"data:image/"}
    assert done.stdout.count("<section") == 8


def test_the_page_is_drawn_in_a_sandboxed_frame(report: Path, tmp_path: Path) -> None:
    frame, picture = tmp_path / "frame.html", tmp_path / "frame.png"
    source = html.escape(report.read_text(encoding="utf-8"))
    frame.write_text(
        f'<body style="margin:0"><iframe sandbox width="1000" height="800" srcdoc="{source}"></iframe>', encoding="utf-8"
    )
    edge = (0, 114, 178)  # of the first tile: the page's style is at work
    seen: list[set[tuple[int, int, int]]] = []
    while len(seen) < 4 and not (seen and edge in seen[-1]):  # a busy machine takes the picture before the frame is painted
        browse(
            frame, tmp_path / f"profile{len(seen)}", "--window-size=1000,800", f"--screenshot={picture}",
            "--disable-features=IsolateSandboxedIframes",  # the frame in the page's own process: both are painted at once
            f"--virtual-time-budget={5000 * 4 ** len(seen)}",
        )  # fmt: skip
        with Image.open(picture) as drawn:
            seen.append({color for _, color in drawn.convert("RGB").getcolors(maxcolors=1_000_000) or []})
    assert edge in seen[-1]


def test_a_narrow_page_wraps_long_names_and_keeps_those_of_a_tables_rows_in_sight(run: dict[str, Any], tmp_path: Path) -> None:
    long = "a_class_of_the_longest_name_that_anybody_could_think_of_today"
    classes = run["metrics"]["per_class"]
    page, scrolled = tmp_path / "report.html", tmp_path / "scrolled.html"
    first, *others = run["spec"].class_names
    spec = replace(run["spec"], class_names=(long, *others))
    metrics = {**run["metrics"], "per_class": {long: classes[first], **{name: classes[name] for name in others}}}
    write_report(page, **{**run, "spec": spec, "metrics": metrics})
    look = """
        document.querySelectorAll(".scroll").forEach((box) => { box.scrollLeft = 9999; });
        const name = [...document.querySelectorAll("tbody th")].find((cell) => cell.textContent.startsWith("a_class"));
        const box = name.closest(".scroll"), place = name.getBoundingClientRect();
        const page = document.documentElement, seen = [box.scrollLeft > 0, place.left >= 0, place.width < 250];
        seen.push(page.scrollWidth <= page.clientWidth);
        document.querySelector("main").textContent = `seen: ${seen}, ${getComputedStyle(name).position}`;
    """
    text = re.sub(r"style-src", "script-src 'unsafe-inline'; style-src", page.read_text(encoding="utf-8"), count=1)
    scrolled.write_text(text.replace("</body>", f"<script>{look}</script></body>"), encoding="utf-8")
    done = browse(scrolled, tmp_path / "profile", "--window-size=500,800", "--dump-dom")
    assert "seen: true,true,true,true, sticky" in done.stdout


def test_the_pairs_of_twelve_methods_fit_on_a_printed_page(tmp_path: Path) -> None:
    page = tmp_path / "printed.html"
    style = files("cwbass.reporting").joinpath("report.css").read_text(encoding="utf-8").replace("@media print", "@media screen")
    row = f"<tr><th>mean_teacher</th>{'<td>+10.5 (+10.3 to +10.6)</td>' * 12}</tr>"
    look = "const table = document.querySelector('table'); table.title = table.getBoundingClientRect().right < innerWidth;"
    page.write_text(
        f'<!doctype html><style>{style}</style><main><section><div class="scroll"><table class="wide"><tbody>{row * 12}</tbody>'
        f"</table></div></section></main><script>{look}</script>",
        encoding="utf-8",
    )
    done = browse(page, tmp_path / "profile", "--window-size=720,900", "--dump-dom")
    assert '<table class="wide" title="true">' in done.stdout


def test_the_slider_shows_the_epoch_it_stands_at(flight: dict[str, Any], tmp_path: Path) -> None:
    page, moved = tmp_path / "flight.html", tmp_path / "moved.html"
    write_flight(page, **flight)
    done = browse(page, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in done.stderr  # its policy lets its own script run
    assert shown(done.stdout) == {"17"}
    assert '<button type="button" data-script="">Play</button>' in done.stdout  # no longer hidden
    drag = "const slider = document.querySelector('.scrub input'); slider.value = 3; slider.dispatchEvent(new Event('input'));"
    text = re.sub(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", page.read_text(encoding="utf-8"))
    moved.write_text(text.replace("</body>", f"<script>{drag}</script></body>"), encoding="utf-8")
    done = browse(moved, tmp_path / "profile", "--dump-dom")
    assert shown(done.stdout) == {"3"}
    assert 'aria-valuetext="epoch 4, step 1,200"' in done.stdout
    cursors = re.findall(r'<line class="cursor" x1="([^"]+)" x2="([^"]+)"[^>]* data-at="([^"]+)"', done.stdout)
    assert len(cursors) == 7
    assert all(x1 == x2 == places.split()[3] for x1, x2, places in cursors)


def shown(dom: str) -> set[str]:
    """Moments of which anything is visible."""
    return {moment for rest, moment in re.findall(r'<(?:img|span|tbody|ul)([^>]*?) data-frame="(\d+)">', dom)}
