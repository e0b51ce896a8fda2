"""Prints the metrics as a Markdown table: python -m evaluations.metrics"""

import inspect
from dataclasses import fields

from evaluations.metrics import METRICS


def main() -> None:
    """Print one line per metric."""
    print("| metric | | needs | images | settings |\n|---|---|---|---|---|")
    for kind in METRICS:
        names = ", ".join(f"`{name}`" + ("" if kind.default else " (on request)") for name in kind.values)
        needs = [*sorted(kind.needs, reverse=True), *(["a reference"] if kind.reference else [])]
        settings = [f"`{field.name}={_shown(field.default)}`" for field in fields(kind)]
        what = (inspect.getdoc(kind) or "").splitlines()[0].replace("|", r"\|")
        print(f"| {names} | {what} | {', '.join(needs)} | {kind().minimum} | {', '.join(settings)} |")


def _shown(value: object) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


if __name__ == "__main__":
    main()
