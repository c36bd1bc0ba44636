"""The Python SDK: how a product asks a gateway. See docs/client.md.

Imports nothing of the server: gRPC, protobuf and the generated messages are all that it loads. Nothing
of the server imports it, but for the command line.

    async with Client("127.0.0.1:50051", api_key="mg_…") as client:
        if await client.check("acme", "api.calls", 5):
            ...
"""

from enforcer.client.allowances import Allowance
from enforcer.client.client import Client
from enforcer.client.errors import (
    CallError,
    ClientError,
    ClosedError,
    ConfigurationError,
    DeniedError,
    InternalError,
    InvalidRequestError,
    LeaseLostError,
    NoAccessError,
    NotFoundError,
    NotPossibleError,
    OverloadedError,
    UnavailableError,
)
from enforcer.client.leases import HeldLease, Lease, LeaseInfo
from enforcer.client.metered import metered
from enforcer.client.observer import Observer
from enforcer.client.options import Options
from enforcer.client.policy import FailClosed, FailOpen, Policy
from enforcer.client.reservations import HeldAmount, Reservation
from enforcer.client.results import (
    Balance,
    Check,
    Limit,
    LimitKind,
    Mode,
    Reason,
    RecordId,
    Verdict,
)
from enforcer.client.threads import (
    SyncAllowance,
    SyncClient,
    SyncHeldLease,
    SyncLease,
    SyncReservation,
)
from enforcer.client.tls import credentials_from

__all__ = [
    "Allowance",
    "Balance",
    "CallError",
    "Check",
    "Client",
    "ClientError",
    "ClosedError",
    "ConfigurationError",
    "DeniedError",
    "FailClosed",
    "FailOpen",
    "HeldAmount",
    "HeldLease",
    "InternalError",
    "InvalidRequestError",
    "Lease",
    "LeaseInfo",
    "LeaseLostError",
    "Limit",
    "LimitKind",
    "Mode",
    "NoAccessError",
    "NotFoundError",
    "NotPossibleError",
    "Observer",
    "Options",
    "OverloadedError",
    "Policy",
    "Reason",
    "RecordId",
    "Reservation",
    "SyncAllowance",
    "SyncClient",
    "SyncHeldLease",
    "SyncLease",
    "SyncReservation",
    "UnavailableError",
    "Verdict",
    "credentials_from",
    "metered",
]
