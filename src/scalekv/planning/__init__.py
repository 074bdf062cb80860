"""Planning: schedules, geometries, budgets, plans and profiles. Pure arithmetic; nothing here imports torch."""

from scalekv.planning.budget import Budget, BudgetLike
from scalekv.planning.choice import ProfileLike, choose_profile, read_profile, resolve_profile
from scalekv.planning.codecs import VECTOR_CODECS, Codec, VectorCodec
from scalekv.planning.geometry import CONVENTIONS, CacheGeometry, Convention
from scalekv.planning.plan import CachePlan, HeadGroup, Moment
from scalekv.planning.profile import Profile
from scalekv.planning.schedule import Schedule, Segment
from scalekv.planning.units import format_bytes, parse_bytes

__all__ = [
    "CONVENTIONS",
    "VECTOR_CODECS",
    "Budget",
    "BudgetLike",
    "CacheGeometry",
    "CachePlan",
    "Codec",
    "Convention",
    "HeadGroup",
    "Moment",
    "Profile",
    "ProfileLike",
    "Schedule",
    "Segment",
    "VectorCodec",
    "choose_profile",
    "format_bytes",
    "parse_bytes",
    "read_profile",
    "resolve_profile",
]
