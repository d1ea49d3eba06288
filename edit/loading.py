"""A saved editor by folder, for the command line, the server and the app."""

from pathlib import Path

import torch

from edit.pipeline import EditPipeline
from vlm.answering import ModelError, checkpoints

# The shipped editor, beside the shipped model.
EDITOR = Path("mini") / "editor"


def locate_editor(model: str = "mini") -> Path:
    """The folder that `model` stands for: `mini`, the shipped editor, or a folder of `EditPipeline.save_pretrained`.

    Raises:
        ModelError: there is no such folder, or no editor in it.
    """
    if model == "mini":
        folder = checkpoints() / EDITOR
        if not folder.is_dir():
            raise ModelError(
                f"the mini editor is not at {folder}; bring it back (`git checkout checkpoints`), train one "
                f"(`python -m training all --recipe mini`) and publish it there, or give the folder of a saved one."
            )
    else:
        folder = Path(model).expanduser()
        if not folder.is_dir():
            raise ModelError(f"there is no folder {model!r}; give 'mini' or the folder of a saved editor.")
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"the folder {str(folder)!r} has no model_index.json; give the folder of a saved editor.")
    return folder


def load_editor(model: str = "mini", dtype: torch.dtype | None = None) -> EditPipeline:
    """The editor `model`, see `locate_editor`, on the fastest device: bfloat16 on CUDA, float32 elsewhere.

    Raises:
        ModelError: it is not there, not an editor, or not whole.
    """
    folder = locate_editor(model)
    cuda = torch.cuda.is_available()
    try:
        pipeline = EditPipeline.from_pretrained(
            folder, dtype=dtype or (torch.bfloat16 if cuda else torch.float32), local_files_only=True
        )
    except ModelError:
        raise
    except Exception as error:  # each file format fails in types of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"the editor {model!r} cannot be loaded ({reason}); check that it is complete.") from error
    return pipeline.to("cuda") if cuda else pipeline
