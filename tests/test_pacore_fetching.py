"""Pictures from the web come from the web: never from the server's own network, however the address is written."""

import asyncio
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpcore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pacore.fetching import MAX_REDIRECTS, FetchError, PublicNetwork, fetch_picture, is_public

PUBLIC = "93.184.216.34"

NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1",
    "198.18.0.1", "168.63.129.16", "224.0.0.251", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1",
    "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::7f00:1",
    "64:ff9b::169.254.169.254", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::",
    "2002:5db8:d822::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1",
    "ff02::1", "", "localhost", "1", "127.1",
]  # fmt: skip
IS_PUBLIC = [PUBLIC, "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8",
             "64:ff9b::808:808"]  # fmt: skip

# What the C library reads as an address, though it is not written as one.
DISGUISED = ["2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1", "127.1", "127.0.1", "0", "0x0",
             "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "localhost", "LOCALHOST", "[::1]", "[::]",
             "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:169.254.169.254]", "[fe80::1]",
             "[64:ff9b::127.0.0.1]", "１２７.０.０.１", "127。0。0。1"]  # fmt: skip

MALFORMED = [
    "file:///etc/passwd", "FILE:///etc/passwd", "ftp://a.example/x.png", "gopher://a.example/_", "javascript:alert(1)",
    "unix:/var/run/docker.sock", "//a.example/x.png", "a.example/x.png", "", "http:", "http://", "http:///x",
    "http://:80/", "http://user@a.example/", "http://user:word@a.example/", "http://a.example@127.0.0.1/",
    "http://a.example:80@10.0.0.1/", "http://a.example\\@127.0.0.1/", "http://127.0.0.1\\.a.example/",
    "http://a.example/ x", "http://a.example/\r\nHost: b", "http://a.example\t/", "http://a.example\x00.b/",
    "http://a.example:0/", "http://a.example:99999/", "http://a.example:x/", "http://a.example:-80/", "http://[::1/",
    "http://[::g]/", "http://[a.example]/", "http://a..example/", "http://" + "ä" * 300 + "/", "http://\ud800/",
    "http://a.example℀/", "http://a.example/" + "x" * 3000,
]  # fmt: skip


class Site(ThreadingHTTPServer):
    """A web server on this machine; what was asked of it, as (host header, path)."""

    daemon_threads = True

    def __init__(self, pages):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.asked = pages, []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.headers["Host"], self.path))
        status, headers, body = self.server.pages[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if body is not None and "Transfer-Encoding" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body is None:
            self.server.quiet.wait(5)  # an answer that does not come
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def site(pages):
    server = Site(pages)
    server.quiet = threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.quiet.set()
        server.shutdown()
        server.server_close()


class Wire(httpcore.AnyIOBackend):
    """Leads every checked address to the site; `reached` has the addresses."""

    def __init__(self, server=None):
        self.server, self.reached = server, []

    async def connect_tcp(self, host, port, *rest):
        self.reached.append((host, port))
        if self.server is None or host == "203.0.114.1":
            raise httpcore.ConnectError("refused")
        return await super().connect_tcp("127.0.0.1", self.server.server_port, *rest)


def network(wire, hosts):
    """Names as in `hosts`: a list of addresses, or a list of such lists, one a look-up."""
    lookups = []

    async def resolve(host, port):
        lookups.append(host)
        found = hosts[host]
        if isinstance(found[0], list):
            return found[min(lookups.count(host), len(found)) - 1]
        return found

    public = PublicNetwork(resolve, wire)
    public.lookups = lookups
    return public


def fetch(url, wire, hosts=None, **options):
    options.setdefault("max_bytes", 1000)
    return asyncio.run(fetch_picture(url, network=network(wire, hosts or {"a.example": [PUBLIC]}), **options))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", IS_PUBLIC)
def test_an_address_that_is_public(address):
    assert is_public(address)


@given(st.ip_addresses(v=4))
@settings(max_examples=30)
def test_an_address_inside_another_is_judged_like_itself(ip):
    for inside in (f"::ffff:{ip}", f"64:ff9b::{ip}"):
        assert is_public(inside) == is_public(str(ip))


@pytest.mark.parametrize("host", DISGUISED)
def test_a_disguised_address_of_this_machine_is_refused_after_the_real_look_up(host):
    wire = Wire()
    with pytest.raises(FetchError, match=r"public internet|not a well-formed"):
        asyncio.run(fetch_picture(f"http://{host}/x.png", 1000, network=PublicNetwork(wire=wire)))
    assert not wire.reached


@pytest.mark.parametrize("url", MALFORMED)
def test_a_malformed_or_foreign_address_is_refused(url):
    wire = Wire()
    with pytest.raises(FetchError) as refusal:
        asyncio.run(fetch_picture(url, 1000, network=PublicNetwork(wire=wire)))
    assert not wire.reached and "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


@given(st.text(max_size=40))
@settings(max_examples=50)
def test_no_address_at_all_fails_in_another_way(text):
    async def nowhere(host, port):
        raise OSError

    for url in (text, f"http://{text}", f"https://a.example:{text}"):
        with pytest.raises(FetchError):
            asyncio.run(fetch_picture(url, 1000, network=PublicNetwork(nowhere, Wire())))


def test_a_picture_is_fetched_from_the_address_that_was_checked():
    with site({"/x.png?a=%C3%A4": (200, {}, b"picture")}) as server:
        wire = Wire(server)
        # A second look-up would say otherwise (DNS rebinding); there is none.
        hosts = {"a.example": [[PUBLIC], ["127.0.0.1"]]}
        public = network(wire, hosts)
        assert asyncio.run(fetch_picture("http://A.example:8080/x.png?a=ä#part", 1000, network=public)) == b"picture"
    assert wire.reached == [(PUBLIC, 8080)] and public.lookups == ["a.example"]
    assert server.asked == [("a.example:8080", "/x.png?a=%C3%A4")]


def test_the_certificate_must_be_the_names_not_the_addresses():
    class Stream(httpcore.AsyncNetworkStream):
        async def start_tls(self, ssl_context, server_hostname=None, timeout=None):
            secured.append((ssl_context.check_hostname, server_hostname))
            raise httpcore.ConnectError("the certificate is another host's")

    class Line(Wire):
        async def connect_tcp(self, host, port, *rest):
            self.reached.append((host, port))
            return Stream()

    secured, wire = [], Line()
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch("https://a.example/x.png", wire)
    assert secured == [(True, "a.example")] and wire.reached == [(PUBLIC, 443)]


def test_one_private_address_among_a_hosts_addresses_is_enough_to_refuse():
    wire = Wire()
    with pytest.raises(FetchError, match="public internet"):
        fetch("http://a.example/", wire, {"a.example": [PUBLIC, "10.0.0.1"]})
    assert not wire.reached


def test_the_next_address_is_tried_where_one_does_not_answer():
    with site({"/": (200, {}, b"picture")}) as server:
        wire = Wire(server)
        assert fetch("http://a.example", wire, {"a.example": ["203.0.114.1", PUBLIC]}) == b"picture"
    assert [host for host, _ in wire.reached] == ["203.0.114.1", PUBLIC]
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch("http://a.example", Wire())


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest/meta-data/", "http://inside.example/", "http://[::1]/", "//127.0.0.1/",
     "http://2130706433/", "http://[::ffff:10.0.0.1]/", "file:///etc/passwd", "ftp://a.example/",
     "http://user@a.example/", "http://[bad/", "gopher://127.0.0.1:6379/_FLUSHALL"],
)  # fmt: skip
def test_a_redirect_into_the_own_network_is_refused(location):
    with site({"/": (302, {"Location": location}, b"")}) as server:
        wire = Wire(server)
        numeric = {host: [host] for host in ("169.254.169.254", "::1", "127.0.0.1", "::ffff:10.0.0.1")}
        hosts = {"a.example": [PUBLIC], "inside.example": ["10.0.0.7"], "2130706433": ["127.0.0.1"], **numeric}
        with pytest.raises(FetchError):
            fetch("http://a.example/", wire, hosts)
    assert wire.reached == [(PUBLIC, 80)] and len(server.asked) == 1


def test_redirects_are_followed_and_counted():
    pages = {f"/{n}": (301, {"Location": f"/{n + 1}"}, b"moved") for n in range(9)}
    with site({**pages, f"/{MAX_REDIRECTS}": (200, {}, b"picture")}) as server:
        assert fetch("http://a.example/0", Wire(server)) == b"picture"
    with site(pages) as server, pytest.raises(FetchError, match=f"more than {MAX_REDIRECTS} times"):
        fetch("http://a.example/0", Wire(server))
    assert len(server.asked) == 1 + MAX_REDIRECTS


def test_a_name_that_resolves_elsewhere_after_a_redirect_is_checked_again():
    with site({"/": (302, {"Location": "http://a.example:81/", "Connection": "close"}, b"")}) as server:
        wire = Wire(server)
        with pytest.raises(FetchError, match="public internet"):
            fetch("http://a.example/", wire, {"a.example": [[PUBLIC], ["127.0.0.1"]]})
    assert wire.reached == [(PUBLIC, 80)]


def test_size_status_and_time_are_limited():
    chunked = b"".join(b"200\r\n" + b"x" * 512 + b"\r\n" for _ in range(20)) + b"0\r\n\r\n"
    pages = {
        "/declared": (200, {}, b"x" * 1001),
        "/chunked": (200, {"Transfer-Encoding": "chunked"}, chunked),
        "/fits": (200, {}, b"x" * 1000),
        "/gone": (404, {}, b"no"),
        "/silent": (200, {"Content-Length": "10"}, None),
    }
    with site(pages) as server:
        wire = Wire(server)
        assert len(fetch("http://a.example/fits", wire)) == 1000
        for path in ("declared", "chunked"):
            with pytest.raises(FetchError, match="more than 1,000 bytes"):
                fetch(f"http://a.example/{path}", wire)
        with pytest.raises(FetchError, match="status 404"):
            fetch("http://a.example/gone", wire)
        with pytest.raises(FetchError, match=r"within 0\.2 s"):
            fetch("http://a.example/silent", wire, seconds=0.2)
