"""The plot of docs/performance.md: CPU per request of each contestant, a small panel of bars for each work, as SVG.

It draws what is in a result and computes no figure of its own.
"""

from html import escape

from page import TITLES

# Colours by theme: the page, text, what is said quietly, ours, the others, the anchor that is no proxy.
THEMES = {
    "light": {
        "page": "#ffffff", "text": "#1f2328", "quiet": "#59636e", "ours": "#0b7285", "others": "#adb5bd", "anchor": "#dee2e6",
    },
    "dark": {
        "page": "#0d1117", "text": "#e6edf3", "quiet": "#9198a1", "ours": "#3bc9db", "others": "#5c6670", "anchor": "#343c45",
    },
}  # fmt: skip
COLUMNS = 3
# In pixels of the drawing, which a page scales to its width.
WIDTH, MARGIN, GAP = 960, 24, 28
PANEL = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
# A panel: its title, then a line for each contestant; names to the left of the bars, figures to the right.
TITLE, LINE, BAR = 30, 20, 13
NAME, FIGURE = 72, 46
TOP = 72


def svg(result, theme):
    """The drawing for one theme."""
    colours = THEMES[theme]
    panels = [panel for panel in map(panel_of, result["works"]) if panel["bars"]]
    rows = [panels[at : at + COLUMNS] for at in range(0, len(panels), COLUMNS)]
    body, y = [], TOP
    for row in rows:
        for column, panel in enumerate(row):
            body += draw(panel, MARGIN + column * (PANEL + GAP), y, colours)
        y += TITLE + max(len(panel["bars"]) for panel in row) * LINE + GAP
    note = "The whole process on one core, median of the rounds. Each panel has its own scale; floor only moves bytes."
    top = [
        text(MARGIN, 32, "CPU per request, in microseconds: less is better", colours["text"], size=18, weight=600),
        text(MARGIN, 53, note, colours["quiet"]),
    ]
    frame = f'<rect width="{WIDTH}" height="{y:.0f}" fill="{colours["page"]}"/>'
    font = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', Helvetica, Arial, sans-serif"
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" height="{y:.0f}" '
        f'font-family="{font}" role="img" aria-label="CPU per request of each contestant for each work">'
    )
    return "\n".join([opening, frame, *top, *body, "</svg>", ""])


def panel_of(work):
    """The title of a work and the bars of those that ran without an error and have a process to look at."""
    bars = [(row["name"], row["cpu_us"]) for row in work["rows"] if row["valid"] and row["cpu_us"]]
    return {"title": work["title"], "bars": bars}


def draw(panel, x, y, colours):
    longest = max(value for _, value in panel["bars"])
    room = PANEL - NAME - FIGURE
    lines = [text(x, y + 14, panel["title"], colours["text"], size=13, weight=600)]
    for line, (name, value) in enumerate(panel["bars"]):
        top = y + TITLE + line * LINE
        ours = name == "outrigger"
        colour = colours["ours" if ours else "anchor" if name == "floor" else "others"]
        width = max(room * value / longest, 1)
        loud, weight = (colours["text"], 600) if ours else (colours["quiet"], 400)
        figure = f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
        lines += [
            text(x, top + BAR - 2, TITLES[name], loud, weight=weight),
            f'<rect x="{x + NAME:.1f}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2" fill="{colour}"/>',
            text(x + NAME + width + 6, top + BAR - 2, figure, loud, weight=weight),
        ]
    return lines


def text(x, y, words, colour, size=12, weight=400):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}">{escape(words)}</text>'
