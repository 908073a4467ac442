"""Records of every kind for property tests; some need JSON escapes, or look like a marker of templates."""

from __future__ import annotations

from hypothesis import strategies as st

from l7proxy.flows.records import Connection, HttpRequest, HttpResponse, Malformed
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, DropReason, Verdict

RULES = st.none() | st.builds(RuleRef, st.just("CNP"), st.sampled_from(["", "ns"]), st.sampled_from(["a", 'b"']))
POLICY_VERDICTS = st.builds(
    PolicyVerdict,
    st.sampled_from(list(Verdict)),
    st.sampled_from(Direction),
    RULES,
    RULES,
    st.sampled_from(DropReason),
    st.sampled_from(["", "no rule matched", "é\n"]),
    ingress_also=st.sampled_from([(), (RuleRef("NetworkPolicy", "ns", "more"),)]),
    egress_also=st.sampled_from([(), (RuleRef("CCNP", "", "x"), RuleRef("CCNP", "", "y"))]),
)
CONNS = st.builds(
    Conn,
    st.sampled_from(["10.0.0.10", "10.0.0.11", "fd00::1"]),
    st.sampled_from([0, 1, 40000, 65535]),
    st.sampled_from(["10.0.0.20", "fd00::2"]),
    st.sampled_from([0, 80, 8080]),
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([6, 6, 6, 17, 132, 1]),
)
TIMES = st.sampled_from([0, 1, 1000, 10**9, 1_763_928_000_010_000_000]) | st.integers(0, 2**62)
METHODS = st.sampled_from(["GET", "POST", "", "X-|~'", "\ue000m"])
URLS = (
    st.sampled_from(
        [
            "http://a/b",
            "",
            "http://a/?q=1",
            "http://u:p@a/",
            "http://a/#x",
            'http://a/"\\',
            "http://é/",
            "\ue000t",
            "9" * 16,
        ]
    )
    | st.text(max_size=20)
    | st.text('ab:/?#@"\\%&= é', max_size=30).map("http://{}".format)
)
PROTOCOLS = st.sampled_from(["HTTP/1.1", "HTTP/2", ""])
HEADERS = st.sampled_from([(), (("x-id", "1"),), (("x-id", '"'), ("secret", "s"))])
TRACE_IDS = st.sampled_from(["", "4bf92f3577b34da6a3ce929d0e0e4736"])
RECORDS = st.one_of(
    st.builds(HttpRequest, TIMES, CONNS, POLICY_VERDICTS, METHODS, URLS, PROTOCOLS, HEADERS,
        st.just(()), TRACE_IDS,
    ),
    st.builds(
        HttpResponse, TIMES, CONNS, POLICY_VERDICTS, METHODS, URLS, PROTOCOLS,
        st.sampled_from([0, 101, 200, 403, 599]), st.integers(0, 10**10), HEADERS, TRACE_IDS,
    ),
    st.builds(
        Connection, TIMES, CONNS, POLICY_VERDICTS, st.sampled_from([2, 0, 0x1FF]), st.integers(0, 255),
        st.integers(0, 255), st.sampled_from([0, 7]),
    ),
    st.builds(Malformed, TIMES, CONNS, POLICY_VERDICTS, st.sampled_from([0, 400])),
)  # fmt: skip
