"""Pictures of the explorer for the docs: `worldlake serve` over a lake, as Chromium shows it.

worldlake demo && python -m bench.screenshots --lake demo/lake --out docs/images
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from bench.explorer import chromium, serving
from lake.tables import Lake

DESKTOP, PHONE = {"width": 1200, "height": 780}, {"width": 390, "height": 780}
COLORS = 128


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    lake = Lake(chosen.lake)
    rejected = lake.read("rejections", ["video_id", "dataset"])
    video = next(row["video_id"] for row in rejected.to_pylist() if row["dataset"] == "sample-world")
    clip = next(Path(chosen.lake).parent.glob("videos/**/*.mp4"))
    with serving(lake, world="builtin") as (url, cookies), chromium() as browser:
        for name, scheme, size, path in (
            ("overview", "light", DESKTOP, "/"),
            ("triples", "dark", DESKTOP, "/triples"),
            ("video", "light", DESKTOP, f"/videos/{video}"),
            ("live", "light", DESKTOP, "/live"),
            ("phone", "dark", PHONE, "/triples"),
        ):
            context = browser.new_context(base_url=url, color_scheme=scheme, viewport=size)  # type: ignore[arg-type]
            context.add_cookies(cookies)
            page = context.new_page()
            page.goto(path)
            page.wait_for_selector("[data-ready]")
            page.wait_for_load_state("networkidle")
            _prepare(page, name, clip)
            _save(page.screenshot(), chosen.out / f"explorer-{name}.png")
            context.close()


def _prepare(page: Page, name: str, clip: Path) -> None:
    """Do what a person would do first."""
    if name == "triples":
        slider = page.get_by_label("confidence")
        slider.focus()
        for key in ("End", "PageDown"):
            page.keyboard.press(key)
        page.get_by_text("triples (").wait_for()
    if name == "phone":
        page.get_by_label("Difference").check()
        page.locator(".grid").scroll_into_view_if_needed()
        page.locator(".views").evaluate("view => view.scrollIntoView()")
    if name == "live":
        page.locator("input[type=file]").first.set_input_files(clip)
        page.get_by_text("sampled =").wait_for(timeout=120_000)
    page.wait_for_timeout(700)


def _save(png: bytes, path: Path) -> None:
    """In few colors, which makes it a third as large and no different to look at."""
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
