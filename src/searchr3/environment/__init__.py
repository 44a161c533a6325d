"""The corpus environment: versioned vectors, refresh policies, rewards of rollouts, audit."""

from searchr3.environment.audit import Audit, audit
from searchr3.environment.certified import Certificate, Certified
from searchr3.environment.corrector import Corrected, Corrector
from searchr3.environment.environment import CorpusEnvironment, RefreshReport
from searchr3.environment.policies import (
    Frozen,
    Full,
    Judged,
    Neighbourhood,
    Random,
    RefreshPolicy,
    RolloutBatch,
)
from searchr3.environment.scoring import Scores, score_rollouts
from searchr3.environment.state import load_state, save_state
from searchr3.environment.store import VectorStore

__all__ = [
    "Audit",
    "Certificate",
    "Certified",
    "CorpusEnvironment",
    "Corrected",
    "Corrector",
    "Frozen",
    "Full",
    "Judged",
    "Neighbourhood",
    "Random",
    "RefreshPolicy",
    "RefreshReport",
    "RolloutBatch",
    "Scores",
    "VectorStore",
    "audit",
    "load_state",
    "save_state",
    "score_rollouts",
]
