"""`federation.yaml`: who takes part in a federation, checked, with errors that name the line.

The file says what should be. What was made from it already is in the workspace, not here.
"""

import difflib
import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from prefect_federated.errors import FederationFileError
from prefect_federated.kits import Identity, Role, ServerAddress, is_ip_address
from prefect_federated.yaml_lines import Location, YamlDocument, read_yaml

MAX_NAME_LENGTH = 40
MAX_ORGANISATION_LENGTH = 64  # X.509's own limit
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_HOST_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_USER_ROLES = tuple(role for role in Role if role.is_user)
_EXAMPLES = {
    "name": "name: site-1",
    "organisation": 'organisation: "City Hospital"',
    "address": "address: federation.example.org:8443",
    "role": f"role: {Role.LEAD}",
    "servers": "servers:` followed by `  - name: server-1",
}


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        close = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")
        close = close[:MAX_NAME_LENGTH].rstrip("-")
        hint = f" Write, for example, `{close}`." if close else ""
        raise ValueError(
            f"{name!r} cannot be a name: up to {MAX_NAME_LENGTH} small letters a-z, digits and "
            f"hyphens are allowed, a letter first, no hyphen last.{hint}"
        )
    if name in ("federation", "localhost") or name.startswith("prefect"):
        raise ValueError(
            f"{name!r} is kept for the server and Prefect themselves (names become work pools). "
            "Choose another name."
        )
    return name


def _check_organisation(organisation: str) -> str:
    fits = 0 < len(organisation) <= MAX_ORGANISATION_LENGTH
    if not fits or not organisation.isprintable() or organisation != organisation.strip():
        raise ValueError(
            f"{organisation!r} cannot be an organisation: 1 to {MAX_ORGANISATION_LENGTH} printable "
            f"characters are expected, no space first or last; this has {len(organisation)}."
        )
    return organisation


def _check_address(address: str) -> str:
    expected = "Write `host:port`, such as federation.example.org:8443 or [2001:db8::7]:8443"
    if "//" in address:
        raise ValueError(f"{address!r} is a URL. {expected}, without `https://` and path.")
    host, colon, port = address.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} does not end in a port from 1 to 65535. {expected}.")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{address!r}: an IPv6 address stands in brackets. {expected}.")
    if is_ip_address(host) and "%" not in host:
        if ipaddress.ip_address(host).is_unspecified:
            raise ValueError(
                f"{address!r} is not an address that a site can dial. {expected}: the name or "
                "address under which the sites reach the server."
            )
        return address
    labels = host.split(".")
    numeric = labels[-1].isdigit()  # a mistyped IP address, not a DNS name
    if numeric or len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{host!r} is neither a DNS name nor an IP address. {expected}.")
    return address


def _check_user_role(role: object) -> object:
    if isinstance(role, str) and role not in _USER_ROLES:
        close = difflib.get_close_matches(role.lower().replace("-", "_"), _USER_ROLES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"{role!r} is not a role of a user. The roles are {', '.join(_USER_ROLES)}.{hint}"
        )
    return Role(role) if isinstance(role, str) else role


Name = Annotated[str, AfterValidator(_check_name)]
Organisation = Annotated[str, AfterValidator(_check_organisation)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ServerEntry(_Entry):
    """A server, and the address under which sites and users reach it."""

    name: Name
    address: Annotated[str, AfterValidator(_check_address)]
    organisation: Organisation

    @property
    def server_address(self) -> ServerAddress:
        """The address, taken apart."""
        host, _, port = self.address.rpartition(":")
        return ServerAddress(self.name, host.strip("[]").lower(), int(port))


class SiteEntry(_Entry):
    """An organisation's site."""

    name: Name
    organisation: Organisation


class UserEntry(_Entry):
    """A person, with the role that authorization goes by."""

    name: Name
    organisation: Organisation
    role: Annotated[Role, BeforeValidator(_check_user_role)]


class CertificateDays(_Entry):
    """How long certificates last, in days from when they are made."""

    participant_days: int = Field(default=365, ge=1, le=3650)
    ca_days: int = Field(default=3650, ge=1, le=36500)


class FederationFile(_Entry):
    """A federation's name and participants."""

    name: Name
    servers: Annotated[tuple[ServerEntry, ...], Field(min_length=1, strict=False)]
    sites: Annotated[tuple[SiteEntry, ...], Field(strict=False)] = ()
    users: Annotated[tuple[UserEntry, ...], Field(strict=False)] = ()
    certificates: CertificateDays = CertificateDays()

    @property
    def addresses(self) -> tuple[ServerAddress, ...]:
        """Where the servers are reached, in the file's order."""
        return tuple(server.server_address for server in self.servers)

    @property
    def identities(self) -> tuple[Identity, ...]:
        """All participants: servers, sites, users, each in the file's order."""
        return (
            *(Identity(server.name, server.organisation, Role.SERVER) for server in self.servers),
            *(Identity(site.name, site.organisation, Role.SITE) for site in self.sites),
            *(Identity(user.name, user.organisation, user.role) for user in self.users),
        )


def load_federation_file(file: Path) -> FederationFile:
    """Return what a federation file says.

    Raises:
        FederationFileError: the file cannot be read or is wrong; one line for each thing that is
            wrong, each begins with `file:line: ` and says what to write.
    """
    document = read_yaml(
        file,
        FederationFileError,
        "Give the path of a federation file; examples/federation.yaml shows one.",
    )
    try:
        federation = FederationFile.model_validate(document.value)
    except ValidationError as error:
        wrong = [(each["loc"], _explain(document, each)) for each in _causes(document, error)]
    else:
        wrong = list(_find_doubles(document, federation))
        if federation.certificates.participant_days > federation.certificates.ca_days:
            wrong.append(
                (
                    ("certificates", "participant_days"),
                    f"certificates of {federation.certificates.participant_days} days would "
                    f"outlive the CA's {federation.certificates.ca_days}. Write fewer, or more "
                    "for `ca_days`.",
                )
            )
    if wrong:
        by_line = sorted((document.line_of(location), message) for location, message in wrong)
        raise FederationFileError(
            "\n".join(f"{file}:{line}: {message}" for line, message in by_line)
        )
    return federation


def _find_doubles(
    document: YamlDocument, federation: FederationFile
) -> Iterator[tuple[Location, str]]:
    first_line: dict[str, int] = {}
    for section in ("servers", "sites", "users"):
        for position, entry in enumerate(getattr(federation, section)):
            texts = [("name", entry.name)]
            if isinstance(entry, ServerEntry):
                texts.append(("address", str(entry.server_address)))
            for key, text in texts:
                location = (section, position, key)
                if text in first_line:
                    yield (
                        location,
                        f"the {key} {text!r} is taken in line {first_line[text]}. Servers, sites "
                        f"and users each need their own {key}; choose another.",
                    )
                first_line.setdefault(text, document.line_of(location))


def _causes(document: YamlDocument, error: ValidationError) -> Iterator[ErrorDetails]:
    """Yield pydantic's findings without those that only follow from another one."""
    found = error.errors()
    unknown = [each["loc"] for each in found if each["type"] == "extra_forbidden"]
    for each in found:
        location, kind = each["loc"], each["type"]
        if kind == "too_short" and document.value_at(location):
            continue  # its entries are wrong, not absent
        beside = [str(other[-1]) for other in unknown if other[:-1] == location[:-1]]
        if kind == "missing" and difflib.get_close_matches(str(location[-1]), beside):
            continue  # it is there, misspelt
        yield each


def _explain(document: YamlDocument, error: ErrorDetails) -> str:
    """Return what one of pydantic's findings means in the words of the file."""
    location: Location = error["loc"]
    key, kind = str(location[-1]) if location else "", error["type"]
    if kind == "missing":
        example = _EXAMPLES.get(key, f"{key}: ...")
        return f"`{key}` is missing {_describe(location[:-1])}. Write, for example, `{example}`."
    if kind == "extra_forbidden":
        known = _keys_at(location)
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"Did you mean `{close[0]}`? " if close else ""
        return f"unknown key `{key}`. {hint}The keys here are {', '.join(known)}."
    if kind == "value_error":
        return str(error["ctx"]["error"])
    found = _describe_value(document.value_at(location))
    if kind == "string_type":
        return f"`{key}` is {found}, text is expected. Put it in quotes if it is meant as text."
    if kind in ("tuple_type", "model_type", "model_attributes_type"):
        expected = (
            "a list, each entry beginning with `- name:`,"
            if kind == "tuple_type"
            else f"a mapping with the keys {', '.join(_keys_at((*location, '')))}"
        )
        what = f"`{location[0]}`" if location else "the file"
        return f"{what} holds {found} where {expected} is expected."
    if kind == "too_short":
        return f"`{key}` is empty; at least one is needed. Write `{_EXAMPLES.get(key, key)}`."
    return f"`{key}` is {found}: {error['msg'].removeprefix('Input ')}."


def _describe(location: Location) -> str:
    return f"in this entry of `{location[0]}`" if location else "at the top level of the file"


def _describe_value(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return f"the YAML truth value {str(value).lower()}"
    return f"the {'text' if isinstance(value, str) else type(value).__name__} {value!r}"


def _keys_at(location: Location) -> list[str]:
    models: dict[str | int, type[BaseModel]] = {
        "servers": ServerEntry,
        "sites": SiteEntry,
        "users": UserEntry,
        "certificates": CertificateDays,
    }
    model = models[location[0]] if len(location) > 1 else FederationFile
    return list(model.model_fields)
