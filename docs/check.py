"""The built site, checked: python docs/check.py [--browser]

Links and pictures that lead nowhere, and anything that a page would load from another host, are
found in the HTML. With --browser, headless Chromium (the system's, or Playwright's; pip install
playwright) also opens each page at desktop and phone width, takes a picture into build/shots, and
tells of requests to other hosts, errors, formulas not drawn, and pages wider than the screen.
"""

import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
SITE, SHOTS = ROOT / "build" / "site", ROOT / "build" / "shots"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
LOADS = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """The names, links and loaded files of one page."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads = {""}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in attrs}
        self.ids |= {attrs[name] for name in ("id", "name") if name in attrs}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag in LOADS and LOADS[tag] in attrs and attrs.get("rel") != "canonical":
            self.loads.append(attrs[LOADS[tag]])


def faults_of_links(site: Path) -> list[str]:
    """Dead links and outside loads of all pages, by reading them."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    faults = []
    for path, page in pages.items():
        for url in page.links + page.loads:
            parts = urlsplit(url)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if url in page.loads:
                    faults.append(f"{path.name}: loads {url}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                faults.append(f"{path.name}: no {url}")
            elif target in pages and unquote(parts.fragment) not in pages[target].ids:
                faults.append(f"{path.name}: no {url} (the place in the page)")
    return faults


def faults_in_browser(site: Path) -> list[str]:
    """Each page at each width in Chromium; its picture goes to build/shots."""
    from playwright.sync_api import sync_playwright

    faults = []
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        system = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=system)
        for size, (width, height) in SIZES.items():
            tab = browser.new_page(viewport={"width": width, "height": height})
            where = ""

            def note(kind, text):
                faults.append(f"{where} ({size}): {kind} {text}")  # noqa: B023  (the page now open)

            def asked(request):
                if urlsplit(request.url).scheme not in ("file", "data", "blob"):
                    note("asks for", request.url)

            tab.on("request", asked)
            tab.on("requestfailed", lambda request: note("did not get", request.url))
            tab.on("pageerror", lambda error: note("error", error))
            for path in sorted(site.rglob("*.html")):
                where = path.relative_to(site).as_posix()
                if where.startswith("_modules/"):
                    continue
                tab.goto(path.as_uri())
                tab.wait_for_load_state("networkidle")
                if tab.locator(".math").count():
                    tab.evaluate("MathJax.startup.promise")
                drawn = tab.locator("mjx-container svg").count()
                if drawn < tab.locator(".math").count() or tab.locator("mjx-merror").count():
                    note("formulas", f"{drawn} of {tab.locator('.math').count()} drawn")
                if (wide := tab.evaluate("document.documentElement.scrollWidth")) > width:
                    note("width", f"{wide} on a screen of {width}")
                name = f"{where.removesuffix('.html').replace('/', '-')}-{size}.png"
                tab.screenshot(path=SHOTS / name, full_page=True)
        browser.close()
    return faults


def main() -> None:
    if not (SITE / "index.html").exists():
        sys.exit("no site in build/site: run make site")
    faults = faults_of_links(SITE)
    if "--browser" in sys.argv:
        faults += faults_in_browser(SITE)
    print("\n".join(dict.fromkeys(faults)) or f"{len(list(SITE.rglob('*.html')))} pages, no fault")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
