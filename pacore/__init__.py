"""Parallel Coordinated Reasoning (arXiv 2601.05593) over the local model or any OpenAI-compatible endpoint."""

from pacore.agreement import Adaptive
from pacore.backends import Backend, BackendError, Completion, Sampling
from pacore.coordination import Budget, Event, Outcome, PacoreError, Plan, PlanError, Trajectory, parse_rounds, solve
from pacore.journal import Journal
from pacore.openai_backend import OpenAIBackend

__all__ = [
    "Adaptive",
    "Backend",
    "BackendError",
    "Budget",
    "Completion",
    "Event",
    "Journal",
    "OpenAIBackend",
    "Outcome",
    "PacoreError",
    "Plan",
    "PlanError",
    "Sampling",
    "Trajectory",
    "parse_rounds",
    "solve",
]
