"""Record what seqeval says of random tags: `python tests/references/record_entities.py` with seqeval
1.2.2; the tests need none of it.
"""

import json
from pathlib import Path

import numpy as np
from seqeval.metrics import classification_report

CLASSES = {
    "IOB": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-MISC"],
    "IOBES": ["O", *(f"{letter}-{kind}" for kind in ("PER", "new-york") for letter in "BIES")],
    "letters": ["O", "B", "I"],
}


def draw(random: np.random.Generator, classes: list[str], keep: np.ndarray | None) -> list[str]:
    """Tags of a sentence, of which some are those of ``keep``."""
    tags = random.choice(classes, size=random.integers(1, 9))
    if keep is None:
        return tags.tolist()
    return np.where(
        random.random(len(keep)) < 0.6, keep, random.choice(classes, len(keep))
    ).tolist()


def main() -> None:
    random = np.random.default_rng(0)
    cases = []
    for classes in CLASSES.values():
        for _ in range(20):
            true = [draw(random, classes, None) for _ in range(random.integers(1, 6))]
            predicted = [draw(random, classes, np.array(tags)) for tags in true]
            report = classification_report(true, predicted, output_dict=True, zero_division=0)
            kept = {}
            for name, scores in report.items():
                if name not in ("macro avg", "weighted avg"):
                    kept[name] = {key: float(value) for key, value in scores.items()}
            cases.append({"classes": classes, "true": true, "predicted": predicted, "report": kept})
    path = Path(__file__).with_name("entities.json")
    path.write_text(json.dumps(cases) + "\n", "utf-8")


if __name__ == "__main__":
    main()
