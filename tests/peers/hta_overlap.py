"""Compares the overlap that `ringlet profile` prints with Holistic Trace Analysis (pip: HolisticTraceAnalysis) on its files.

  ringlet profile CONFIG.toml -o traces --json > profile.json
  python3 tests/peers/hta_overlap.py traces profile.json

Exit code 1 where the two differ by more than 1 point on any rank.
"""

import json
import sys

from hta.trace_analysis import TraceAnalysis


def main(traces, profile):
    with open(profile) as file:
        ranks = json.load(file)["ranks"]
    theirs = TraceAnalysis(trace_dir=traces).get_comm_comp_overlap(visualize=False)
    worst = 0.0
    for rank, percent in zip(theirs["rank"], theirs["comp_comm_overlap_pctg"]):
        own = ranks[int(rank)]["hidden_percent"]
        print(f"rank {rank}: ringlet {own:.2f} %, HTA {percent:.2f} %")
        worst = max(worst, abs(own - percent))
    print(f"largest difference {worst:.2f} points")
    return 0 if len(theirs) == len(ranks) and worst <= 1 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
