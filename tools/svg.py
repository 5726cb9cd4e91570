"""Elements of figures as SVG."""

from collections.abc import Sequence
from html import escape


def svg(width: float, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>"]) + "\n"


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dashed: bool = False, opacity: float = 1
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"'
        f' stroke-opacity="{opacity}"{dash(dashed)}/>'
    )


def dash(dashed: bool) -> str:
    return ' stroke-dasharray="5 4"' if dashed else ""


def text(
    x: float,
    y: float,
    content: str,
    anchor: str = "middle",
    weight: str = "normal",
    colour: str = "#222",
    size: int = 12,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}"'
        f' fill="{colour}">{escape(content)}</text>'
    )
