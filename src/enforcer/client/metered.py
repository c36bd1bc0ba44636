"""A decorator: the function runs only if the check before it was allowed."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from enforcer.client.client import Client
from enforcer.client.errors import ConfigurationError, DeniedError
from enforcer.client.threads import SyncClient

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from enforcer.client.results import Verdict

__all__ = ["metered"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def metered(
    client: Client | Callable[[], Client],
    feature: str,
    *,
    customer: str | Callable[..., str],
    quantity: int | Callable[..., int] = 1,
    key: Callable[..., str] | None = None,
    dimensions: Mapping[str, str] | Callable[..., Mapping[str, str]] | None = None,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]: ...


@overload
def metered(
    client: SyncClient | Callable[[], SyncClient],
    feature: str,
    *,
    customer: str | Callable[..., str],
    quantity: int | Callable[..., int] = 1,
    key: Callable[..., str] | None = None,
    dimensions: Mapping[str, str] | Callable[..., Mapping[str, str]] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def metered(
    client: Client | SyncClient | Callable[[], Client] | Callable[[], SyncClient],
    feature: str,
    *,
    customer: str | Callable[..., str],
    quantity: int | Callable[..., int] = 1,
    key: Callable[..., str] | None = None,
    dimensions: Mapping[str, str] | Callable[..., Mapping[str, str]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Check before each call; a denial is a `DeniedError`, and the function does not run.

    `customer`, `quantity`, `key` and `dimensions` may be functions of the same arguments. A `Client`
    is for coroutine functions, a `SyncClient` for others; a function that returns one is called at
    each call, so that a module needs no client when it is imported.
    """
    question = _Question(client, feature, customer, quantity, key, dimensions)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise ConfigurationError(
                f"metered({feature!r}): a generator runs when it is read, not when it is called; "
                "check in its body instead"
            )
        if inspect.iscoroutinefunction(function):
            question.needs(Client)

            @functools.wraps(function)
            async def metered_coroutine(*args: Any, **kwargs: Any) -> Any:
                asked, more = question.of(args, kwargs)
                verdict = await question.client(Client).check(*asked, **more)
                question.allowed(asked[0], verdict)
                return await function(*args, **kwargs)

            return metered_coroutine
        question.needs(SyncClient)

        @functools.wraps(function)
        def metered_function(*args: Any, **kwargs: Any) -> Any:
            asked, more = question.of(args, kwargs)
            verdict = question.client(SyncClient).check(*asked, **more)
            question.allowed(asked[0], verdict)
            return function(*args, **kwargs)

        return metered_function

    return decorate


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked before each call of one function."""

    source: Any
    feature: str
    customer: Any
    quantity: Any
    key: Any
    dimensions: Any

    def of(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[str, str, int], dict[str, Any]]:
        """The arguments of `check`, for these of the function."""
        customer, quantity, key, dimensions = (
            value(*args, **kwargs) if callable(value) else value
            for value in (self.customer, self.quantity, self.key, self.dimensions)
        )
        return (customer, self.feature, quantity), {"key": key, "dimensions": dimensions}

    def needs(self, kind: type[Any]) -> None:
        """Refuse a client of the other kind, if it is there already."""
        if isinstance(self.source, Client | SyncClient):
            self.client(kind)

    def client(self, kind: type[Any]) -> Any:
        """The client to ask."""
        given = self.source
        found = given if isinstance(given, Client | SyncClient) else given()
        if not isinstance(found, kind):
            raise ConfigurationError(
                f"metered({self.feature!r}) was given {type(found).__name__}: coroutine functions "
                "need Client, other functions SyncClient"
            )
        return found

    def allowed(self, customer: str, verdict: Verdict) -> None:
        """Raise `DeniedError` if it was not."""
        if not verdict.allowed:
            raise DeniedError(customer, self.feature, verdict)
