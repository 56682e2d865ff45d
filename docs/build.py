"""Build the documentation as static pages: `make docs` writes site/. Nothing is fetched from outside when it is read.

Uses the package `markdown`, which TensorBoard brings.
"""

from __future__ import annotations

import re
import shutil
import sys
from html import escape
from pathlib import Path

HOME = Path(__file__).parent.parent
SECTIONS = {
    "Start": ("README", "tab", "report"),
    "Guides": ("advice", "forecast-live", "ladder", "ladder-run", "import", "figures", "distributed"),
    "How it works": ("flops", "scaling-laws", "forecast", "noise-scale", "architecture"),
    "Reference": ("reference", "record"),
    "Honest limits": ("limits", "promises"),
}
"""Pages by section; every file of docs/ is in one."""
STYLE = """
:root{color-scheme:light dark}body{margin:0;font:16px/1.55 system-ui,sans-serif;display:flex;flex-wrap:wrap}
nav{flex:0 0 13rem;padding:1rem 1.5rem;box-sizing:border-box}nav a{display:block;text-decoration:none}
nav b{display:block;margin:.9rem 0 .2rem}main{flex:1 1 36rem;max-width:56rem;padding:1rem 2rem;min-width:0}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.3rem .7rem;border-bottom:1px solid #8884}
th{text-align:left}pre{overflow-x:auto;padding:.8rem;background:#8881;border-radius:6px}img{max-width:100%}
code{font-size:.92em}a[aria-current]{font-weight:700}
"""


def source(page: str) -> Path:
    """The Markdown of a page."""
    return HOME / "README.md" if page == "README" else HOME / "docs" / f"{page}.md"


def target(page: str) -> str:
    """The file of a page in the site."""
    return "index.html" if page == "README" else f"{page}.html"


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower()).replace(" ", "-")


def title(page: str) -> str:
    """The first heading."""
    return re.sub(r"[`*]", "", source(page).read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# "))


def link(address: str) -> str:
    """A link of the Markdown as one of the site; what lies outside of docs/ stays as text's own path."""
    if re.match(r"[a-z]+:|#", address):
        return address
    path, _, anchor = address.partition("#")
    name = path.removeprefix("docs/")
    if name.endswith(".md") and "/" not in name and source(name.removesuffix(".md")).exists():
        name = target(name.removesuffix(".md"))
    return name + (f"#{anchor}" if anchor else "")


def render(page: str) -> str:
    """A page as HTML."""
    import markdown

    text = re.sub(r"(\]\()([^)\s]+)\)", lambda found: f"]({link(found[2])})", source(page).read_text(encoding="utf-8"))
    options = {"toc": {"slugify": lambda heading, separator: slug(heading)}}
    body = markdown.markdown(text, extensions=["tables", "fenced_code", "toc", "sane_lists"], extension_configs=options)
    here = ' aria-current="page"'
    menu = "".join(
        f"<b>{escape(section)}</b>"
        + "".join(f'<a href="{target(p)}"{here if p == page else ""}>{escape(title(p))}</a>' for p in pages)
        for section, pages in SECTIONS.items()
    )
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title(page))}</title>'
    )
    return f"<!doctype html><html lang=en>{head}<style>{STYLE}</style><nav>{menu}</nav><main>{body}</main></html>"


def build(site: Path) -> None:
    """Write all pages and pictures into a folder."""
    site.mkdir(parents=True, exist_ok=True)
    for page in (page for pages in SECTIONS.values() for page in pages):
        (site / target(page)).write_text(render(page), encoding="utf-8")
    for picture in HOME.glob("docs/*.png"):
        shutil.copy(picture, site / picture.name)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HOME / "site")
