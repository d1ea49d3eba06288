"""The marks around a model's reasoning, and how its text is sorted by them, whole or while it grows."""

OPEN_TAG, CLOSE_TAG = "<think>", "</think>"


def split_reasoning(text: str) -> tuple[str, str]:
    """(reasoning, answer) of a whole or growing text, both without their marks and the space around them.

    The answer is what follows the last `</think>` (PaCoRe, arXiv 2601.05593, compaction). While a `<think>` is open
    all of it is reasoning, and a mark that has only half arrived belongs to neither.
    """
    reasoning, closed, answer = text.rpartition(CLOSE_TAG)
    if closed:
        return reasoning.strip().removeprefix(OPEN_TAG).strip(), answer.strip()
    start = text.lstrip()
    if not start.startswith(OPEN_TAG):
        return "", "" if OPEN_TAG.startswith(start) else text.strip()
    reasoning = start.removeprefix(OPEN_TAG)
    for length in range(len(CLOSE_TAG) - 1, 0, -1):
        if reasoning.endswith(CLOSE_TAG[:length]):
            reasoning = reasoning[:-length]
            break
    return reasoning.strip(), ""


class ReasoningSplitter:
    """Sorts growing content by its `<think>` marks; a mark that has only half arrived is kept back."""

    def __init__(self):
        self._kind, self._kept = "", ""

    def split(self, piece: str) -> list[tuple[str, str]]:
        """The (kind, text) that are certain now."""
        if self._kind == "text":
            return [("text", piece)]
        text = self._kept + piece
        if not self._kind:
            text = text.lstrip()
            if len(text) < len(OPEN_TAG) and OPEN_TAG.startswith(text):
                self._kept = text
                return []
            if not text.startswith(OPEN_TAG):
                self._kind = "text"
                return [("text", text)]
            self._kind = "reasoning"
            text = text.removeprefix(OPEN_TAG)
        reasoning, closed, answer = text.partition(CLOSE_TAG)
        if closed:
            self._kind = "text"
            return [("reasoning", reasoning), ("text", answer)]
        half = next((size for size in range(len(CLOSE_TAG) - 1, 0, -1) if text.endswith(CLOSE_TAG[:size])), 0)
        sure = len(text) - half
        self._kept = text[sure:]
        return [("reasoning", text[:sure])]
