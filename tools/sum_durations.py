"""Sum the durations that pytest reports, file by file, as a table in Markdown.

    pytest --durations=0 -vv | python tools/sum_durations.py [NUMBER OF FILES]

Set-up, call and teardown of every test are counted where pytest shows them.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable

_DURATION = re.compile(r"^([\d.]+)s (?:setup|call|teardown) +([^:\s]+)::")


def sum_by_file(lines: Iterable[str]) -> Counter[str]:
    """Return the seconds of each test file in a report of pytest."""
    seconds: Counter[str] = Counter()
    for line in lines:
        found = _DURATION.match(line)
        if found is not None:
            seconds[found[2]] += float(found[1])  # type: ignore[assignment]
    return seconds


def main() -> None:
    """Print the table of the files that took longest, and the sum of all."""
    seconds = sum_by_file(sys.stdin)
    num_files = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print("| file | seconds |\n|---|---:|")
    for name, value in seconds.most_common(num_files):
        print(f"| {name} | {value:.1f} |")
    print(f"| all {len(seconds)} files | {seconds.total():.1f} |")


if __name__ == "__main__":
    main()
