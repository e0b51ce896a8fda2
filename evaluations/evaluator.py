"""The command line of ADM's evaluator: python evaluations/evaluator.py REF.npz SAMPLES.npz prints the same five lines.

Distances for precision and recall are rounded to float16, as in ADM's evaluator. scripts/evaluate.py has more options.
"""

import argparse
import sys
import tempfile
from pathlib import Path

LINES = {"is": "Inception Score", "fid": "FID", "sfid": "sFID", "precision": "Precision", "recall": "Recall"}


def main() -> None:
    """Score SAMPLES against REF. Errors are one sentence, with exit code 1."""
    parser = argparse.ArgumentParser(description="Score a sample batch against a reference batch.")
    parser.add_argument("ref_batch", help="path to reference batch npz file")
    parser.add_argument("sample_batch", help="path to sample batch npz file")
    parser.add_argument("--weights", help="Inception weights; by default found in the cache, or downloaded")
    arguments = parser.parse_args()

    import torch  # here, as these take seconds, which --help does without

    from evaluations.batches import open_batch
    from evaluations.inception import Inception
    from evaluations.metrics import choose
    from evaluations.scoring import score

    try:
        reference, samples = open_batch(arguments.ref_batch), open_batch(arguments.sample_batch)
        extractor = Inception(arguments.weights).to("cuda" if torch.cuda.is_available() else "cpu")
        with tempfile.TemporaryDirectory() as folder:
            metrics = choose(list(LINES), {"distance_dtype": "float16"})
            scores = score(samples, reference, extractor, metrics, work=Path(folder) / "work", cache=Path(folder))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    assert scores is not None
    for line in [*scores.warnings, *(f"{LINES[name]}: {reason}" for name, reason in scores.unavailable.items())]:
        print(line, file=sys.stderr)
    for name, line in LINES.items():
        if name in scores.values:
            print(f"{line}: {scores.values[name]}")


if __name__ == "__main__":
    main()
