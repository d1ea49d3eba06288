"""The page on other tools says what is true of our server, and its files do what it says of them."""

import base64
import csv
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from endpoint import Scripted, app_of, ask, call, picture_url, with_picture

from pacore.__main__ import Ask, Batch, Serve
from pacore.plan import BUDGETS, Plan

PAGE = Path(__file__).parent.parent / "evaluation" / "OTHER_TOOLS.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def address() -> str:
    """Where the page's server would be."""
    import tyro

    command = next(line for block in blocks("console") for line in block.splitlines() if "pacore serve" in line)
    arguments = command.split("-m pacore ")[1].split()
    served = tyro.cli(Ask | Batch | Serve, args=arguments)
    assert isinstance(served, Serve) and served.how.plan().rounds == ()
    return f"http://{served.host}:{served.port}/v1"


def test_every_address_and_every_name_of_a_model_is_the_servers(address):
    text = PAGE.read_text(encoding="utf-8")
    assert {found.removesuffix("/chat/completions") for found in re.findall(r"http://127[^\s,`\"]+", text)} == {address}
    names = set(re.findall(r"`(mini(?::[\w,]+)?)`", text))
    assert {f"mini:{budget}" for budget in BUDGETS} | {"mini", "mini:16,4"} == names
    backend = Scripted()
    app = app_of(backend, plan=Plan(rounds=()))
    for name in names:
        response = ask(app, model=name)
        assert response.status_code == 200 and response.json()["model"] == name
    assert len(backend.asked) == 1 + 1 + 5 + 17 + 37 + 21


def test_what_both_tools_send_is_answered():
    kit = json.loads(blocks("json")[0])["model"]["mini"]
    fields = {"model": kit["model"], "max_tokens": kit["max_tokens"], "temperature": kit["temperature"], "n": 1,
              "messages": with_picture(picture_url())}  # fmt: skip
    # A key that the server was not given is ignored.
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {kit['key']}"}
    response = call(app_of(plan=Plan(rounds=())), fields, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] and response.json()["usage"]["completion_tokens"]


def test_the_files_of_the_task_belong_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw, drawn, table = blocks("python")
    exec(compile(draw, "draw.py", "exec"), {})  # our own page's code, not a model's
    (tmp_path / "world-task" / "drawn.py").write_text(drawn)
    monkeypatch.syspath_prepend(tmp_path / "world-task")
    monkeypatch.delitem(sys.modules, "drawn", raising=False)
    task = __import__("drawn")

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: getattr(task, node.value.removeprefix("drawn.")))
    config = yaml.load(blocks("yaml")[0], Loader)
    rows = [json.loads(line) for line in Path(config["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()]
    assert len(rows) == 8
    for row in rows:
        assert config["doc_to_visual"](row)[0].mode == "RGB" and config["doc_to_text"](row)
        assert config["process_results"](row, [f"Answer: {row[config['doc_to_target']]}"]) == {"exact": 1.0}
        assert config["process_results"](row, ["Answer: nothing"]) == {"exact": 0.0}
    exec(compile(table, "table.py", "exec"), {})
    with open("Drawn.tsv", newline="") as stored:
        made = list(csv.DictReader(stored, delimiter="\t"))
    assert [(row["question"], row["answer"]) for row in made] == [(row["question"], row["answer"]) for row in rows]
    assert all(
        base64.b64decode(row["image"]) == Path(of["image"]).read_bytes() for row, of in zip(made, rows, strict=True)
    )
    command = blocks("console")[1]
    assert f"--tasks {config['task']} " in command and "--include_path world-task" in command
