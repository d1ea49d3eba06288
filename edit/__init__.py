"""The model that repaints: connector, diffusion transformer, pipeline, released weights."""

from edit.connector import EditConnector
from edit.pipeline import EditPipeline, EditPipelineOutput

__all__ = ["EditConnector", "EditPipeline", "EditPipelineOutput"]
