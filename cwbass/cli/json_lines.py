"""Log lines as JSON objects, for machines that collect them."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime

from cwbass.errors import ParamsError

FORMAT = "CWBASS_LOG_FORMAT"


def asks_for_json() -> bool:
    """Whether the environment asks for JSON lines rather than text.

    Raises:
        ParamsError: It asks for something else.
    """
    wanted = os.environ.get(FORMAT) or "text"
    if wanted not in ("text", "json"):
        raise ParamsError(f"{FORMAT} is {wanted!r}; set it to text or json, or not at all.")
    return wanted == "json"


class JsonLines(logging.Formatter):
    """One object a line: time (UTC), level, message; ``run_id`` where ``CWBASS_RUN_ID`` says it, ``exit_code`` of what ends a command."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "run_id": os.environ.get("CWBASS_RUN_ID") or None,
            "message": record.getMessage(),
            "exit_code": getattr(record, "exit_code", None),
            "traceback": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({key: value for key, value in line.items() if value is not None}, ensure_ascii=False)
