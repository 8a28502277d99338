"""What a client process imports before its first message: in a deployment it starts anew for every one."""

from __future__ import annotations

import subprocess
import sys

LATER = ("peft", "timm", "transformers", "torchvision", "sklearn", "pandas", "scipy", "datasets", "matplotlib", "PIL")


def test_the_libraries_that_not_every_message_needs_are_not_imported_with_the_client_app() -> None:
    code = f"import sys, client_app.app; print(*(name for name in {LATER!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
