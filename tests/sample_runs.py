"""Runs of AIME as they lie on disk, with all that may befall an answer, and judged edits, for reports to be made of."""

from pathlib import Path

from PIL import Image

from evaluation.benchmarks.gedit import BENCHMARK as GEDIT
from evaluation.edit_benchmark import EditScores, EditTask
from evaluation.edit_runs import source_beside, write_scores
from evaluation.runs import Answer, Asked, Member, Run, Session, Settings, write_run

HOSTILE = (
    "</script></textarea><img src=x onerror='hacked = 1'><script>hacked = 1</script><!-- ]]> {{ 7 * 7 }} ' \" & \u2028"
)


def picture(folder: Path, name: str = "red", size: tuple[int, int] = (60, 40)) -> str:
    path = folder / f"{name}.png"
    if not path.exists():
        Image.new("RGB", size, name.split("-")[0]).save(path)
    return str(path)


def answer_of(id: str, truth: str, right: bool = True, **others) -> Answer:
    said = truth if right else "999"
    known = {"response": f"It is \\boxed{{{said}}}.", "reasoning": "Let me think.", "finish": "stop", "parsed": said,
             "score": float(right), "prompt_tokens": 100, "completion_tokens": 50, "seconds": 1.5}  # fmt: skip
    return Answer(id, others.pop("sample", 0), 1000.0, **(known | others))


def settings(**others) -> Settings:
    known = {"benchmark": "aime2025", "version": "1", "split": "test", "prompts": "ab" * 32, "template": None,
             "model": "tiny", "weights": None, "rounds": (), "plan": {"compaction": "conclusion", "budget": None},
             "sampling": {"temperature": 0.0, "top_p": 1.0, "top_k": None, "max_tokens": 200}, "samples": 1, "seed": 0,
             "limit": None, "pictures": True}  # fmt: skip
    return Settings(**(known | others))


def questions(count: int, image: str | None = None) -> list[Asked]:
    """q0, q1 …, whose answers are 0, 1 …; every third one shows the picture."""
    return [
        Asked(i, f"q{i}", {"topic": "odd" if i % 2 else "even", "level": str(i % 3 + 9)}, {"answer": str(i)},
              [{"role": "user", "content": [{"type": "image", "image": image}] * (image is not None and i % 3 == 0)
                + [{"type": "text", "text": f"What is {i}?"}]}])
        for i in range(count)
    ]  # fmt: skip


SESSION = Session(1000.0, 1600.0, {"python": "3.12", "torch": "2.9"}, "c0ffee+", "http://127.0.0.1/v1")


def written(folder: Path, asked: list[Asked], answers: list[Answer], sessions=(SESSION,), **others) -> Path:
    """The run's folder; `others` are settings."""
    write_run(Run(settings(**others), tuple(sessions), tuple(asked), tuple(answers)), folder)
    return folder


def single(folder: Path, count: int = 12, wrong: int = 3) -> Path:
    """One answer each: one guessed, one cut off, one failed; the last `wrong` are wrong."""
    asked = questions(count, picture(folder.parent))
    answers = [answer_of(q.id, q.truth["answer"], i < count - wrong) for i, q in enumerate(asked)]
    answers[1] = answer_of("q1", "1", guessed=True, modern=0.0, note="no letter was found")
    answers[2] = answer_of("q2", "2", finish="length")
    answers[3] = Answer("q3", 0, 1000.0, error="HTTP 500: the server is on fire")
    return written(folder, asked, answers)


def coordinated(folder: Path, count: int = 12) -> Path:
    """PaCoRe 3: of the first round's trajectories one is right, one wrong and one failed; all answers are right."""
    asked = questions(count, picture(folder.parent))
    answers = []
    for q in asked:
        one = answer_of(q.id, q.truth["answer"], completion_tokens=900, notes=("1 of 3 failed",))
        first = (Member(f"so \\boxed{{{q.truth['answer']}}}", finish="stop", completion_tokens=40),
                 Member("so \\boxed{998}", finish="stop", completion_tokens=41), Member(error="no luck"))  # fmt: skip
        last = (Member(one.response, finish="stop", completion_tokens=50),)
        answers.append(Answer(**(vars(one) | {"rounds": (first, last)})))
    return written(folder, asked, answers, rounds=(3,), sampling={"temperature": 1.0, "max_tokens": 200})


def sampled(folder: Path, count: int = 12, samples: int = 4) -> Path:
    """Four answers a question, of which one is wrong."""
    asked = questions(count, picture(folder.parent))
    answers = [answer_of(q.id, q.truth["answer"], s > 0, sample=s) for q in asked for s in range(samples)]
    return written(folder, asked, answers, samples=samples, sampling={"temperature": 1.0, "max_tokens": 200})


def edited(folder: Path, colour: str = "red", followed: float = 9.0, words: str = "The scarf is red now.") -> Path:
    """A judged folder of GEdit-Bench: two edits with scores and the judge's words, one not judged, one not there."""
    tasks = [EditTask(f"fullset/color_alter/en/{key}", f"Paint the scarf {key}.", "", {"category": "color_alter",
                      "language": "en", "intersection": "yes" if key == "aa" else "no"})
             for key in ("aa", "bb", "cc")]  # fmt: skip
    for place, task in enumerate(tasks):
        result = folder / f"{task.name}.png"
        result.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), colour if place else "navy").save(result)
        Image.new("RGB", (60 + place, 40), "white").save(source_beside(result))
    scores = {"SC": followed, "PQ": 4.0, "O": (followed * 4.0) ** 0.5, "followed": followed, "kept": 10.0,
              "natural": 4.0, "clean": 7.0}  # fmt: skip
    found = {task.name: EditScores(scores, {"consistency": words, "quality": "A smear."}) for task in tasks[:2]}
    failed = {tasks[2].name: "the judge is on fire"}
    figures = GEDIT.summarize([(task, found[task.name].scores) for task in tasks[:2]])
    head = {"benchmark": "gedit", "version": "1", "split": "train", "judge": "critic", "tasks": 4, "judged": 2,
            "missing": {"count": 1, "names": ["fullset/color_alter/en/dd"]},
            "failed": {"count": 1, "names": list(failed)}, "figures": figures}  # fmt: skip
    write_scores(folder, tasks, found, failed, head)
    return folder
