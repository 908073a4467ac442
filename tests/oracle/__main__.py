"""The oracle: an independent, slow and simple evaluator of policies, written from their languages' documentation.

It shares no code with `l7proxy.policy`: documents in, an answer out.

    python -m tests.oracle PAIRS [SEED] [KIND…]     compare both; exit code 1 with the differences found

cast        pods, nodes, addresses  selectors, documents    random policies of every language
evaluate    the slow evaluator      compare                 one policy set through both
"""

from __future__ import annotations

import sys
import time

from tests.oracle.compare import differences

EACH = 25


def main() -> int:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    kinds = frozenset(sys.argv[3:])
    asked, found, started = 0, [], time.monotonic()
    for seed in range(first, first + -(-pairs // EACH)):
        for one in differences(seed, EACH, kinds):
            asked += 1
            if one is not None:
                found.append(one)
                print(one, flush=True)
        if seed % 400 == 0:
            print(f"{asked} pairs, {len(found)} differences, {time.monotonic() - started:.0f} s", file=sys.stderr)
        if len(found) > 20:
            break
    print(f"{asked} pairs, {len(found)} differences")
    return 1 if found else 0


sys.exit(main())
