"""Whether the library diffusers is installed."""

from importlib.util import find_spec

LIBRARIES = ("diffusers", "transformers")


def require(what: str) -> None:
    """Check that the libraries of the extra `diffusers` are installed.

    Args:
        what: What needs them, for the message, such as "model=sd15".

    Raises:
        ValueError: If one is missing. The message has the command that installs it.
    """
    specs = {library: find_spec(library) for library in LIBRARIES}  # a folder of that name has a spec without a file
    missing = [library for library, spec in specs.items() if spec is None or spec.origin is None]
    if missing:
        raise ValueError(f"{what} needs the library {' and '.join(missing)}: pip install 'sag[diffusers]'")
