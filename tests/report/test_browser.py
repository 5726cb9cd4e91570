"""The page in a browser: no errors, no sideways scrolling, readable in light and dark."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aimfair.run.directory import Run
from aimfair.stages import report
from tests.report.conftest import fill, open_run
from tests.report.made_up import made_up_config

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")

MEASURE = """<!doctype html><meta charset="utf-8"><body><script>
const results = {};
async function measure(width) {
  const frame = document.createElement('iframe');
  frame.style = `width: ${width}px; height: 800px; border: 0`;
  frame.src = 'PAGE';
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll('details').forEach(details => details.open = true);
  const style = frame.contentWindow.getComputedStyle(root);
  const colours = {};
  for (const name of ['page', 'panel', 'caution', 'ink', 'muted', 'before', 'after', 'good', 'bad', 'purple', 'pink'])
    colours[name] = style.getPropertyValue('--' + name).trim();
  results[width] = {
    width: root.scrollWidth, height: root.scrollHeight, heading: page.querySelector('h1')?.innerText, colours,
    images: [...page.images].filter(image => image.naturalWidth > 0).length,
    scrolling: [...page.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)
      .map(box => box.ariaLabel),
  };
  frame.remove();
}
(async () => {
  for (const width of [375, 1280]) await measure(width);
  const output = document.createElement('pre');
  output.id = 'measured';
  output.textContent = JSON.stringify(results);
  document.body.append(output);
})();
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    folder = tmp_path_factory.mktemp("served")
    with open_run(finished) as run:
        report.run(run)
        shutil.copy(run.report, folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A server of ``folder`` on this machine: scripts may look into frames of their own origin only."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def visit(folder: Path, address: str, tmp_path: Path, name: str, *, dark: bool) -> tuple[dict[str, Any], list[str]]:
    """What was measured at each width, and what the page wrote to the console."""
    (folder / "measure.html").write_text(MEASURE.replace("PAGE", name), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
        f" --blink-settings=preferredColorScheme={0 if dark else 1} --user-data-dir={tmp_path / 'profile'}"
    )
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *flags.split(), f"{address}/measure.html"], capture_output=True, text=True, timeout=120
    )
    measured = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout)
    assert measured, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line]
    return json.loads(measured[1]), console


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report(folder: Path, address: str, tmp_path: Path, dark: bool) -> None:
    measured, console = visit(folder, address, tmp_path, "report.html", dark=dark)
    assert console == []
    for width, seen in measured.items():
        assert seen["width"] <= int(width), f"the page scrolls sideways at {width} px"
        assert seen["heading"] == "Coloured digits"
        assert seen["images"] == 48
    assert "Table of methods" in measured["375"]["scrolling"], "wide tables scroll in their boxes"
    assert set(measured["1280"]["scrolling"]) <= {"Every metric"}
    colours = measured["1280"]["colours"]
    assert (luminance(colours["page"]) < 0.5) == dark
    for paper in ("page", "panel", "caution"):
        for ink in ("ink", "muted", "before", "after", "good", "bad", "purple", "pink"):
            assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)


def test_long_names_of_methods_fit(folder: Path, address: str, tmp_path: Path) -> None:
    names = [
        "last_layer_retrain_synthetic", "intersection_of_tensors_by_cosine", "ratio_of_single_weights_frozen_stem",
        "group_dro_until_validation_worsens", "just_train_twice", "namewithoutanyunderscore" * 2,
    ]  # fmt: skip
    methods = {name: {"rule": "ratio", "density": 0.1} for name in names}
    with Run.open(tmp_path / "long", made_up_config(methods=methods, default_method=names[1]), quiet=True) as run:
        fill(run)
    with open_run(tmp_path / "long") as run:
        report.run(run)
        page = run.report.read_text(encoding="utf-8")
    page, times = re.subn(r"<td>[\d.]+ s</td>", "<td>10 h 23 min</td>", page)
    page, spreads = re.subn(r"± \d\.", "± 12.", page)
    assert times == len(names)
    assert spreads > 4 * len(names)
    (folder / "long.html").write_text(page, encoding="utf-8")
    measured, _ = visit(folder, address, tmp_path, "long.html", dark=False)
    assert measured["1280"]["width"] <= 1280
    assert "Table of methods" not in measured["1280"]["scrolling"]


def test_a_faulty_page_is_noticed(folder: Path, address: str, tmp_path: Path) -> None:
    (folder / "faulty.html").write_text(
        "<!doctype html><h1>x</h1><div style='width: 2000px'>wide</div><script>undefined.x</script>", encoding="utf-8"
    )
    measured, console = visit(folder, address, tmp_path, "faulty.html", dark=False)
    assert measured["375"]["width"] > 375
    assert console


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
