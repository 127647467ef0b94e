"""From where pictures may be fetched, and which addresses may be dialled."""

import ipaddress

import pytest

from common.image_origins import ImageOrigins, Origin


@pytest.mark.parametrize(
    ("origin", "url", "held"),
    [
        ("https://a.example", ("https", "a.example", 443), True),
        ("https://A.Example", ("https", "a.example", 443), True),
        ("https://a.example", ("http", "a.example", 80), False),
        ("https://a.example", ("https", "a.example", 8443), False),
        ("https://a.example:8443", ("https", "a.example", 8443), True),
        ("https://a.example", ("https", "b.a.example", 443), False),
        ("https://a.example", ("https", "a.example.evil.test", 443), False),
        ("https://*.example.com", ("https", "x.y.example.com", 443), True),
        ("https://*.example.com", ("https", "example.com", 443), False),
        ("https://*.example.com", ("https", "evilexample.com", 443), False),
        ("http://10.0.0.5:9000", ("http", "10.0.0.5", 9000), True),
    ],
)
def test_an_origin_holds_its_own_scheme_host_and_port_only(origin: str, url: tuple[str, str, int], held: bool):
    assert Origin.parse(origin).holds(*url) is held


@pytest.mark.parametrize(
    "text",
    ["a.example", "ftp://a.example", "https://", "https://a.example/path", "https://u@a.example", "https://a.*.example", ""],
)
def test_what_is_not_an_origin_is_refused(text: str):
    with pytest.raises(ValueError, match=r"origin|host"):
        Origin.parse(text)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_inside_a_network_are_never_dialled(address: str):
    assert not ImageOrigins().may_dial(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111"])
def test_public_addresses_may_be_dialled(address: str):
    assert ImageOrigins().may_dial(ipaddress.ip_address(address))


def test_an_operators_own_networks_may_be_dialled_but_never_the_link_local_one():
    own = ImageOrigins.parse([], ["10.0.0.0/8", "169.254.0.0/16", "0.0.0.0/0"])

    assert own.may_dial(ipaddress.ip_address("10.9.9.9"))
    assert not own.may_dial(ipaddress.ip_address("169.254.169.254"))
