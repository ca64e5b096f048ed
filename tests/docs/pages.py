"""The pages of the documentation and the commands and code blocks on them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
TEXT = "\n".join(PAGES.values())

_PLACEHOLDER = re.compile(r"\.\.\.|VERB|NAME")
COMMANDS = sorted(
    line
    for line in set(re.findall(r"python (scripts/\w+\.py[^`\n]*)", TEXT))
    if not _PLACEHOLDER.search(line)
)
SBATCH = sorted(set(re.findall(r"(slurm/(\w+)\.sbatch [^`\n]*)", TEXT)))
PYTHON_BLOCKS = [
    (name, code)
    for name, text in PAGES.items()
    for code in re.findall(r"(?<!:\n\n)```python\n(.*?)```", text, flags=re.DOTALL)
]
FILES = dict(
    re.findall(r"^`((?:ecgfounder_train|configs)/[^`]+)`:\n\n```\w+\n(.*?)```", TEXT, re.M | re.S)
)
"""Files that a page shows whole, by the path it names."""


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings as a Markdown renderer makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
