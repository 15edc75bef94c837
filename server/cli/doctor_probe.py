"""Loads llama.cpp and says what it is, as one line of JSON.

``llmspell doctor`` runs this as a process of its own: native code that was built for another processor ends the process
that loads it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict


def main() -> None:
    """Write the line to standard output."""
    # an import that fails, or that ends the process, is what this is for
    from server.llama import devices  # noqa: PLC0415

    facts = {
        "version": devices.native_version(),
        "system_info": devices.system_info(),
        "devices": [asdict(device) for device in devices.devices()],
    }
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
