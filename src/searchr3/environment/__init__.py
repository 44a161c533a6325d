"""The corpus environment: versioned vectors, refresh policies, rewards of rollouts."""

from searchr3.environment.environment import CorpusEnvironment, RefreshReport
from searchr3.environment.policies import Frozen, Full, Judged, Neighbourhood, RefreshPolicy, RolloutBatch
from searchr3.environment.scoring import Scores, score_rollouts
from searchr3.environment.state import load_state, save_state
from searchr3.environment.store import VectorStore

__all__ = [
    "CorpusEnvironment",
    "Frozen",
    "Full",
    "Judged",
    "Neighbourhood",
    "RefreshPolicy",
    "RefreshReport",
    "RolloutBatch",
    "Scores",
    "VectorStore",
    "load_state",
    "save_state",
    "score_rollouts",
]
