"""What a federation file may say, and what a wrong one is told."""

import re
from pathlib import Path

import pytest

from prefect_federated.errors import FederationFileError
from prefect_federated.kits import Identity, Role, ServerAddress
from prefect_federated.provisioning import load_federation_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "federation.yaml"
GOOD = """\
name: heart
servers:
  - name: server-1
    address: 127.0.0.1:8443
    organisation: University
sites:
  - name: site-1
    organisation: City Hospital
users:
  - name: alice
    organisation: University
    role: lead
"""

WRONG = [
    # what to replace, by what, the line, what the error says
    ("name: heart\n", "", 1, "`name` is missing at the top level"),
    ("name: heart", "name: [heart", 2, "not valid YAML"),
    ("    organisation: City", "\torganisation: City", 8, "not valid YAML"),
    ("name: heart", "name: Heart Study", 1, "Write, for example, `heart-study`"),
    ("name: heart", "name: 5", 1, "`name` is the int 5, text is expected"),
    ("name: site-1", "name: no", 7, "the YAML truth value false, text is expected"),
    ("name: site-1", "name: site_1", 7, "Write, for example, `site-1`"),
    ("name: site-1", "name: ../../root", 7, "Write, for example, `root`"),
    ("name: site-1", f"name: {'s' * 41}", 7, "up to 40"),
    ("name: site-1", "name: federation", 7, "'federation' is kept for the server"),
    ("name: site-1", "name: prefect-1", 7, "'prefect-1' is kept for the server"),
    ("name: site-1", "name: server-1", 7, "the name 'server-1' is taken in line 3"),
    ("name: alice", "name: site-1", 10, "the name 'site-1' is taken in line 7"),
    ("    organisation: City Hospital\n", "", 7, "`organisation` is missing in this entry"),
    ("organisation: City Hospital", 'organisation: " City"', 8, "no space first or last"),
    ("organisation: City Hospital", f"organisation: {'x' * 65}", 8, "1 to 64 printable"),
    ("organisation: City Hospital", "organization: City", 8, "Did you mean `organisation`?"),
    ("sites:", "sits:", 6, "unknown key `sits`. Did you mean `sites`?"),
    ("sites:\n", "sites:\nservers:\n", 7, "`servers` stands twice; the first is in line 2"),
    ("role: lead", "role: server", 12, "The roles are project_admin, org_admin, lead, member"),
    ("role: lead", "role: project-admin", 12, "Did you mean project_admin?"),
    ("role: lead", "role: [lead]", 12, "`role` is a list"),
    ("127.0.0.1:8443", "127.0.0.1", 4, "does not end in a port from 1 to 65535"),
    ("127.0.0.1:8443", "127.0.0.1:70000", 4, "does not end in a port from 1 to 65535"),
    ("127.0.0.1:8443", "127.0.0.300:8443", 4, "neither a DNS name nor an IP address"),
    ("127.0.0.1:8443", "0.0.0.0:8443", 4, "not an address that a site can dial"),
    ("127.0.0.1:8443", "https://a.org:8443/", 4, "is a URL. Write `host:port`"),
    ("127.0.0.1:8443", "2001:db8::7:8443", 4, "an IPv6 address stands in brackets"),
    ("127.0.0.1:8443", "a_b.org:8443", 4, "neither a DNS name nor an IP address"),
    ("127.0.0.1:8443", "8443", 4, "`address` is the int 8443, text is expected"),
    ("sites:\n", "sites: none\nusers2:\n", 6, "`sites` holds the text 'none' where a list"),
    ("  - name: site-1\n    organisation: City Hospital\n", "  - site-1\n", 7, "a mapping with"),
    ("users:\n", "users: &u\n", None, ""),  # an anchor alone does no harm
    ("users:\n", "more: *x\nusers:\n", 9, "alias"),
    ("users:\n", "certificates: {ca_days: 10}\nusers:\n", 9, "would outlive the CA's 10"),
    (
        "users:\n",
        "certificates: {participant_days: 0}\nusers:\n",
        9,
        "`participant_days` is the int 0: should be greater than or equal to 1",
    ),
    ("users:\n", "certificates: {days: 3}\nusers:\n", 9, "unknown key `days`"),
    ("users:\n", "3: x\nusers:\n", 9, "3 cannot be a key"),
    ("organisation: City Hospital", "organisation: 2026-13-01", 8, "is not a value"),
    ("organisation: City Hospital", "organisation: !secret x", 8, "not valid YAML"),
    ("City Hospital", "City\x00Hospital", 8, "a character that YAML does not allow"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), WRONG)
def test_a_wrong_file_is_told_the_line_and_what_to_write(
    tmp_path: Path, old: str, new: str, line: int | None, message: str
) -> None:
    assert GOOD.count(old) >= 1
    file = tmp_path / "federation.yaml"
    file.write_text(GOOD.replace(old, new, 1))
    if line is None:
        load_federation_file(file)
        return
    with pytest.raises(FederationFileError) as raised:
        load_federation_file(file)
    first = str(raised.value).splitlines()[0]
    assert first.startswith(f"{file}:{line}: ")
    assert message in str(raised.value)


def test_all_that_is_wrong_is_told_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    file = tmp_path / "federation.yaml"
    file.write_text(GOOD.replace("8443", "x").replace("lead", "boss").replace("heart", "HEART"))
    with pytest.raises(FederationFileError) as raised:
        load_federation_file(file)
    lines = re.findall(r"federation\.yaml:(\d+): ", str(raised.value))
    assert lines == ["1", "4", "12"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "the file holds empty where a mapping with the keys name, servers"),
        (b"- a\n- b\n", "the file holds a list"),
        (b"name: heart\nservers: []\n", "`servers` is empty"),
        (b"name: \xff\xfe\n", "is not UTF-8"),
        (b"name: a\n---\nname: b\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_federation_file_is_told_so(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "federation.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(FederationFileError, match=r"federation\.yaml:\d+: ") as raised:
        load_federation_file(file)
    assert message in str(raised.value)


def test_a_line_is_named_right_after_multi_line_text_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "federation.yaml"
    file.write_text(
        "# a\n\n" + GOOD.replace("City Hospital", '"City\n      Hospital"') + "\nx: 1\n"
    )
    with pytest.raises(FederationFileError, match=r"federation\.yaml:17: unknown key `x`"):
        load_federation_file(file)


def test_addresses_may_be_dns_names_ipv4_and_ipv6(tmp_path: Path) -> None:
    file = tmp_path / "federation.yaml"
    for text, host in (
        ("Fed.Example.org:443", "fed.example.org"),
        ("10.1.2.3:443", "10.1.2.3"),
        ('"[2001:db8::7]:443"', "2001:db8::7"),
        ("localhost:443", "localhost"),
    ):
        file.write_text(GOOD.replace("127.0.0.1:8443", text))
        addresses = load_federation_file(file).addresses
        assert addresses == (ServerAddress("server-1", host, 443),)


def test_the_example_is_a_right_file() -> None:
    federation = load_federation_file(EXAMPLE)
    assert federation.name == "heart-study"
    assert Identity("carol", "Cleveland Clinic", Role.LEAD) in federation.identities
    assert {role for role in Role} == {who.role for who in federation.identities}
    assert federation.certificates.participant_days == 365
