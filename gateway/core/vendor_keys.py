"""The keys by which Hyperleap knows this gateway: named by labels; what they are stays in mounted files."""

from __future__ import annotations

import re
from typing import Final, NewType

KeyLabel = NewType("KeyLabel", str)

KEY_LABEL: Final = re.compile(r"[a-z0-9-]{1,32}")
DEFAULT_KEY: Final = KeyLabel("default")  # HYPERLEAP_API_KEY, or the file of it
