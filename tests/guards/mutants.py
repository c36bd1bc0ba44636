"""The guards of docs/security.md, each taken away: a patch for every line of its table.

`python -m tests.guards.mutants [LINE …]` (or `make guards`) copies the code, takes one guard away after the other, and
runs the test that the line names: it has to pass with the guard and to fail without it. Ends with status 1 if one did not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["MUTANTS", "PAGE", "ROOT", "Line", "Mutant", "lines"]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
LONGEST_SECONDS = 300
"""A test that takes longer without its guard has failed, too: that is what some guards are for."""


class Line(NamedTuple):
    """Of the table: `T7`, the threat, the guard, and the tests as `path::name` below `tests`."""

    number: str
    threat: str
    guard: str
    tests: tuple[str, ...]


class Mutant(NamedTuple):
    """A guard taken away: in `file` below `src`, `old` becomes `new`; then `test` of the line fails."""

    line: str
    file: str
    old: str
    new: str
    test: str


def lines() -> list[Line]:
    """The table, as the page has it."""
    found = []
    for row in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        if re.fullmatch(r"T\d+", cells[0]):
            number, threat, _, guard, tests = cells
            found.append(Line(number, threat, guard, tuple(re.findall(r"`([^`]+::\w+)`", tests))))
    return found


_CALLS, _TLS = "conformance/test_calls.py::", "conformance/test_tls.py::"
_HTTP, _SECRETS = "integration/enforcer/test_http.py::", "integration/enforcer/test_secrets.py::"
_SERVICES = "integration/enforcer/test_services.py::"
_ASGI, _TENANTS = (f"unit/enforcer/transport/test_{name}.py::" for name in ("asgi", "tenants"))
_ENVOY = "unit/enforcer/transport/test_envoy.py::"
_PARSE = "unit/enforcer/catalog/test_parse.py::"
_SERVED = f"{_TLS}test_only_who_has_a_certificate_of_the_authority_is_served_and_both_are_renewed"
_STREAMS = f"{_TLS}test_a_connection_has_only_so_many_calls_at_once"
_WIRE = "enforcer/transport/"

MUTANTS = [
    Mutant(
        "T1",
        f"{_WIRE}dispatch.py",
        "        if not method.role:\n            return None\n",
        "        if call.authorization is None or not method.role:\n            return None\n",
        f"{_CALLS}test_the_api_key_says_who_calls",
    ),
    Mutant(
        "T2",
        f"{_WIRE}callers.py",
        'if caller.role not in (role, "admin"):',
        "if False:",
        f"{_SERVICES}test_changes_and_audits_need_a_role",
    ),
    Mutant(
        "T3",
        "enforcer/adapters/definitions/sql.py",
        "        for tenant, key in set(names):\n",
        "        names = [('demo', key) for _, key in names]\n        for tenant, key in set(names):\n",
        f"{_SERVICES}test_tenants_do_not_meet",
    ),
    Mutant(
        "T4",
        f"{_WIRE}callers.py",
        "known[1] if known is not None and known[0] > now else None",
        "known[1] if known is not None else None",
        f"{_SERVICES}test_a_revoked_key_is_refused",
    ),
    Mutant(
        "T5",
        f"{_WIRE}grpcio.py",
        "self._server.add_secure_port(listen, credentials)",
        "self._server.add_insecure_port(listen)",
        _SERVED,
    ),
    Mutant(
        "T5",
        f"{_WIRE}envoy_edge.py",
        'chain["transport_socket"] = secrets.socket()',
        "pass",
        _SERVED,
    ),
    Mutant(
        "T6",
        "meter/transport/credentials.py",
        "require_client_authentication=certificates.files.authorities is not None",
        "require_client_authentication=False",
        _SERVED,
    ),
    Mutant(
        "T6",
        f"{_WIRE}envoy_edge.py",
        '"require_client_certificate": self._files.authorities is not None',
        '"require_client_certificate": False',
        _SERVED,
    ),
    Mutant(
        "T7",
        f"{_WIRE}headers.py",
        'elif self._certified and scope["path"]',
        'elif False and scope["path"]',
        f"{_HTTP}test_without_a_certificate_only_probes_are_answered",
    ),
    Mutant(
        "T8",
        "meter/tls.py",
        "if stamp == self._stamp:",
        "if True:",
        f"{_HTTP}test_a_new_connection_sees_the_new_certificate_and_an_old_one_goes_on",
    ),
    Mutant(
        "T8",
        "meter/tls.py",
        "        context.options |= ssl.OP_NO_TICKET\n        context.num_tickets = 0\n",
        "",
        f"{_HTTP}test_a_session_of_before_does_not_spare_a_client_its_certificate",
    ),
    Mutant(
        "T9",
        "enforcer/adapters/definitions/sql.py",
        "                    digest=hashlib.sha256(key.encode()).digest(),",
        "                    digest=key.encode(),",
        "contract/definitions/test_definitions.py::test_a_key_is_nowhere_in_the_database",
    ),
    Mutant(
        "T10",
        f"{_WIRE}dispatch.py",
        "InternalError(UNEXPECTED)",
        """InternalError(__import__("traceback").format_exc())""",
        f"{_CALLS}test_a_bug_is_internal_and_tells_nothing",
    ),
    Mutant(
        "T11",
        "enforcer/settings.py",
        "        return shown(super().__repr_args__())",
        "        return list(super().__repr_args__())",
        f"{_SECRETS}test_settings_show_none_of_them",
    ),
    Mutant(
        "T12",
        "meter/transport/calls.py",
        'if not hmac.compare_digest(metadata.get(INTERNAL, "").encode(), self._token):',
        'if metadata.get(INTERNAL, "").encode() != self._token:',
        f"{_SECRETS}test_the_internal_token_is_compared_in_constant_time",
    ),
    Mutant(
        "T13",
        "enforcer/core/tokens.py",
        "if not hmac.compare_digest(mac, _mac(secret, payload)):",
        "if len(mac) != _MAC:",
        "unit/enforcer/core/test_tokens.py::test_anything_else_is_no_token",
    ),
    Mutant(
        "T14",
        f"{_WIRE}dispatch.py",
        "if self._running > self._calm or len(data) > HEAVY:",
        "if False:",
        f"{_TENANTS}test_a_flood_has_its_share_and_another_tenant_is_served_meanwhile",
    ),
    Mutant(
        "T15",
        f"{_WIRE}dispatch.py",
        "if self._running >= self._most and method.role:",
        "if False:",
        f"{_CALLS}test_beyond_the_most_calls_one_learns_when_to_come_again",
    ),
    Mutant(
        "T16",
        f"{_WIRE}callers.py",
        "if len(self._asked) >= MOST_STRANGERS and header not in self._known:",
        "if False:",
        f"{_TENANTS}test_made_up_keys_do_not_keep_the_database_from_known_ones",
    ),
    Mutant(
        "T17",
        f"{_WIRE}framing.py",
        "            if size > self._longest:",
        "            if False:",
        f"{_ASGI}test_what_is_no_message_ends_with_a_clear_status",
    ),
    Mutant(
        "T18",
        f"{_WIRE}framing.py",
        "        if len(plain) > self._longest:",
        "        if False:",
        f"{_CALLS}test_a_small_message_that_unpacks_to_a_huge_one_is_refused",
    ),
    Mutant(
        "T19",
        f"{_WIRE}events.py",
        "if len(body) > LARGEST_BODY:",
        "if False:",
        "integration/enforcer/test_events.py::test_each_fault_has_its_status",
    ),
    Mutant(
        "T20",
        "enforcer/catalog/document.py",
        "DEEPEST: Final = 64",
        "DEEPEST: Final = 10**9",
        f"{_PARSE}test_brackets_in_brackets_are_refused_before_they_take_time",
    ),
    Mutant(
        "T21",
        "enforcer/catalog/document.py",
        "if into.size > MOST_VALUES:",
        "if False:",
        f"{_PARSE}test_aliases_cannot_make_a_small_file_large",
    ),
    Mutant(
        "T22",
        "enforcer/gateway/requests.py",
        "    except DecodeError as error:",
        "    except ZeroDivisionError as error:",
        "property/enforcer/test_requests.py::test_every_method_answers_nothing_and_garbage",
    ),
    Mutant(
        "T23",
        f"{_WIRE}connections.py",
        "        super().connection_made(transport)\n        self._owe(HEADER_SECONDS)\n",
        "        super().connection_made(transport)\n",
        f"{_HTTP}test_who_is_slow_is_cut_off",
    ),
    Mutant(
        "T23",
        f"{_WIRE}connections.py",
        "            self._owe(BODY_SECONDS)  # its headers have come\n",
        "            self._owe(None)\n",
        f"{_HTTP}test_who_is_slow_is_cut_off",
    ),
    Mutant(
        "T24",
        f"{_WIRE}connections.py",
        "        super().pause_writing()\n        self._owe(UNREAD_SECONDS)\n",
        "        super().pause_writing()\n",
        f"{_HTTP}test_who_does_not_read_is_cut_off",
    ),
    Mutant(
        "T25",
        f"{_WIRE}asgi.py",
        "call.started < now - BODY_SECONDS:",
        "call.started < now - 1e9:",
        f"{_ASGI}test_a_request_that_does_not_end_is_given_up",
    ),
    Mutant(
        "T26",
        f"{_WIRE}envoy_edge.py",
        '        "request_headers_timeout": f"{HEADER_SECONDS}s",\n',
        "",
        f"{_ENVOY}test_envoy_has_the_bounds_of_its_port",
    ),
    Mutant(
        "T27",
        f"{_WIRE}grpcio.py",
        '("grpc.max_concurrent_streams", edge.most_streams),',
        "",
        _STREAMS,
    ),
    Mutant(
        "T27",
        f"{_WIRE}envoy_edge.py",
        '"max_concurrent_streams": edge.most_streams,',
        "",
        _STREAMS,
    ),
    Mutant(
        "T28",
        f"{_WIRE}connections.py",
        "if self.open >= self._most or of_it >= self._most_per_address:",
        "if False:",
        f"{_HTTP}test_there_are_only_so_many_connections",
    ),
    Mutant(
        "T29",
        f"{_WIRE}headers.py",
        "self._headers = [*HEADERS, _HSTS] if tls else [*HEADERS]",
        "self._headers = []",
        f"{_HTTP}test_every_answer_has_the_headers_and_no_name_of_a_server",
    ),
    Mutant(
        "T29",
        f"{_WIRE}http.py",
        "                server_header=False,\n",
        "",
        f"{_HTTP}test_every_answer_has_the_headers_and_no_name_of_a_server",
    ),
    Mutant(
        "T30",
        f"{_WIRE}envoy.py",
        'found["admin"] = {"address": {"pipe": {"path": str(admin), "mode": 0o600}}}',
        "pass",
        f"{_ENVOY}test_envoy_is_administered_through_a_private_socket_file_alone",
    ),
    Mutant(
        "T31",
        "enforcer/cli/folder.py",
        "            os.fchmod(descriptor, 0o600)",
        "            os.fchmod(descriptor, 0o644)",
        "unit/enforcer/cli/test_folder.py::test_secrets_are_readable_by_their_owner_only",
    ),
]


def _fails(test: str, source: Path) -> bool:
    """Whether it fails on that code."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"),
            # By thread: a signal in the middle of an endless loop may end pytest itself, and look like no test.
            *(f"--timeout={LONGEST_SECONDS // 2}", "--timeout-method=thread", f"tests/{test}"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    if done.returncode not in {0, 1}:
        raise RuntimeError(f"{test} was not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main(wanted: list[str]) -> int:
    """Take away the guards of these lines, or of all of them."""
    bad = 0
    passed: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="metergate-guards-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        chosen = [one for line in wanted for one in MUTANTS if one.line == line]
        for mutant in chosen or MUTANTS:
            if mutant.test not in passed:
                if _fails(mutant.test, source):
                    print(f"{mutant.line}  {mutant.test} fails WITH its guard", flush=True)  # noqa: T201
                    bad += 1
                    continue
                passed.add(mutant.test)
            place = source / mutant.file
            whole = place.read_text(encoding="utf-8")
            place.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
            try:
                caught = _fails(mutant.test, source)
            except subprocess.TimeoutExpired:
                caught = True
            finally:
                place.write_text(whole, encoding="utf-8")
            bad += not caught
            said = "caught" if caught else "NOT CAUGHT"
            print(f"{mutant.line:4} {said:10} {mutant.file}  {mutant.test}", flush=True)  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
