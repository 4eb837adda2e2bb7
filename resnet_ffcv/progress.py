"""What long work tells of itself."""


class Report:
    """Told by the writer, and by whoever reads a file through; this one is silent."""

    def begin(self, what: str, count: int, unit: str) -> None:
        """A pass over `count` units begins."""

    def advance(self, count: int) -> None:
        """So many more units are done."""

    def say(self, text: str) -> None:
        """Something the user should know."""
