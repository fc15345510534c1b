"""Fuzz the targets with atheris, one after the other: `make fuzz SECONDS=60`.

python -m fuzz SECONDS            every target for SECONDS, and a table
python -m fuzz TARGET OPTIONS…    one target with libFuzzer's options
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dmoerm"]):
    from fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
SEEDS = [
    b'{"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 0]}\n',
    b'{"prompt": "Hi", "chosen": "a", "rejected": "b"}\n',
    b'{"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: a", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: b"}\n',
    b'[{"prompt": "Hi", "response": "a", "helpfulness": 3, "correctness": 2}]',
    b'{"empathy": "A", "logic": "C"}',
    b"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>",
    b"phase1.epochs=3",
    b'{"model_type": "dmoerm", "tasks": {"chitchat": ["empathy"]}}',
]


def main(arguments: list[str]) -> int:
    """Fuzz the targets; return 1 if one fails."""
    if arguments and arguments[0] in TARGETS:
        target = TARGETS[arguments[0]]
        atheris.Setup([sys.argv[0], *arguments[1:]], target)
        atheris.Fuzz()
        return 0
    rows = [_fuzz(name, int(arguments[0]) if arguments else 60) for name in TARGETS]
    from evidence import measure, pages

    measure.write("fuzz", "make fuzz", [], tables={"Targets": rows})
    pages.main()
    return int(any(row["findings"] for row in rows))


def _fuzz(name: str, seconds: int) -> dict[str, object]:
    """Fuzz one target in a separate process, starting from the seeds; return its row of the table."""
    with tempfile.TemporaryDirectory(prefix="corpus-") as corpus:
        for number, seed in enumerate(SEEDS):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [f"-max_total_time={seconds}", "-print_final_stats=1", "-timeout=20", "-rss_limit_mb=4096"]
        command = [sys.executable, "-m", "fuzz", name, *options, f"-artifact_prefix=fuzz-{name}-", corpus]
        done = subprocess.run(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, check=False)
    output = done.stdout.decode(errors="replace")
    executions = re.search(r"number_of_executed_units:\s*(\d+)", output)
    if done.returncode:
        print(output[-4000:], file=sys.stderr)
    return {
        "target": name,
        "seconds": seconds,
        "executions": int(executions[1]) if executions else 0,
        "findings": int(done.returncode != 0),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
