"""MMMU's thirty subjects in their six domains, and its table of accuracies; MMMU-Pro has the same."""

import re
from collections.abc import Iterable

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}


def subject_of(id: str) -> str | None:
    """Of an id such as "validation_Art_Theory_12"; None where it names none of the thirty."""
    named = re.fullmatch(r"[A-Za-z]+_(\w+)_\d+", id)
    return named[1] if named and named[1] in DOMAIN_OF else None


def accuracy_table(scored: Iterable[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """The official table of (subject, score): `{name: {"num": questions, "acc": to three decimals}}`.

    A row for each domain, "Overall-Business", with its subjects below it, and "Overall"; every question weighs the
    same. Subjects without a question have no row; domains have one, as the official program prints it.
    """
    scores: dict[str, list[float]] = {}
    for subject, score in scored:
        scores.setdefault(subject, []).append(score)
    table = {}
    for domain, subjects in DOMAINS.items():
        own = {subject: scores[subject] for subject in subjects if subject in scores}
        table[f"Overall-{domain}"] = _row(own.values())
        table |= {subject: _row([values]) for subject, values in own.items()}
    return table | {"Overall": _row(scores.values())}


def _row(groups: Iterable[list[float]]) -> dict[str, float]:
    groups = list(groups)
    count = sum(map(len, groups))
    return {"num": count, "acc": round(sum(map(sum, groups)) / count, 3) if count else 0}
