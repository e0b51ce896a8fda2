"""Files of prompts: one text per line."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path


def read_prompts(path: str | Path) -> list[str]:
    """Read prompts from a text file in UTF-8, one per line. An empty line is the empty prompt.

    Args:
        path: The file.

    Raises:
        ValueError: If it has no lines or is not text.
        OSError: If it cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8; prompts are one per line of such a file") from error
    except OSError as error:
        raise OSError(f"prompts={path} cannot be read ({error.strerror})") from error
    if not lines:
        raise ValueError(f"{path} is empty; a file of prompts has one per line")
    return [line.strip() for line in lines]


def digest_of(prompts: Sequence[str]) -> str:
    """Return the SHA-256 of prompts."""
    return sha256("\n".join(prompts).encode()).hexdigest()
