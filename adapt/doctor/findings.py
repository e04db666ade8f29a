"""What a check found: plain data, with the evidence in numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

# error: the result is not what it seems; warning: much is lost; note: worth knowing.
Severity = Literal["error", "warning", "note"]
# certain: the evidence leaves nothing else; likely: other causes are rare; possible: one of several.
Certainty = Literal["certain", "likely", "possible"]
Command = tuple[str, Mapping[str, Any]]  # its name and its options, by their names in Python


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong, or seems so.

    ``seen`` is one clause with its numbers, ``evidence`` the same numbers, and rows counted from 1,
    for programs. ``cause`` and ``fix`` are clauses, too; parameters stand in backticks.
    ``shown_by`` is a command that shows it again, by name and options. ``is_logged`` says that the
    library has warned of it where it was met.
    """

    severity: Severity
    seen: str
    cause: str
    fix: str
    certainty: Certainty = "certain"
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check: str = ""  # the name of the check, which the runner fills in
    shown_by: Command | None = None
    is_logged: bool = False

    @property
    def line(self) -> str:
        """One sentence: what was seen, how sure the cause is, and the fix."""
        sure = "" if self.certainty == "certain" else f"{self.certainty} "
        return f"{self.seen} ({sure}cause: {self.cause}): {self.fix} [{self.check}]"

    def to_json(self) -> dict[str, Any]:
        """The entry of result.json."""
        content = dataclasses.asdict(self)
        del content["is_logged"]
        shown_by = content.pop("shown_by")
        if shown_by is not None:
            command, options = shown_by
            content["shown_by"] = {"command": command, "options": dict(options)}
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Finding":
        """The finding of an entry of result.json."""
        fields = dict(content)
        shown_by = fields.pop("shown_by", None)
        if shown_by is not None:
            shown_by = (shown_by["command"], shown_by["options"])
        return cls(**fields, shown_by=shown_by)
