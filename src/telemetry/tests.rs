use rustix::io::Errno;

use super::{
    metrics::listeners::ShownListener,
    outcome::{AcceptError, Refusal, TunnelOutcome},
    *,
};
use crate::{net::Section, wire::Transport};

fn shown(section: Section, address: &str, port: u16, is_up: bool) -> ShownListener {
    ShownListener { section, address: address.to_owned(), port, is_up }
}

#[test]
fn the_names_are_those_that_dashboards_hold() {
    let telemetry = Telemetry::new("1.2.3");
    let gauge = telemetry.sessions.of(1533, Transport::Raw);
    gauge.opened();
    gauge.opened();
    gauge.closed();
    telemetry.sessions.refused.count(Refusal::Capacity);
    telemetry.traffic.bytes(Direction::ToCommunity, 10);
    telemetry.traffic.frames(Direction::ToClient, 2);
    telemetry.listeners.show(&[shown(Section::ClientConnections, "::", 1533, true)]);
    telemetry.community.set([("a:1533".to_owned(), true, 3)].into_iter());
    telemetry.tunnel.request(Transport::HttpPolling, TunnelOutcome::Payload);
    telemetry.tls.set_certificate_expires(1);
    telemetry.sessions.login(0.5, true);
    let text = telemetry.encode();
    for line in [
        r#"sametime_mux_sessions{port="1533",transport="raw"} 1"#,
        r#"sametime_mux_sessions_opened_total{port="1533",transport="raw"} 2"#,
        r#"sametime_mux_sessions_refused_total{reason="capacity"} 1"#,
        r#"sametime_mux_bytes_total{direction="to_community"} 10"#,
        r#"sametime_mux_frames_total{direction="to_client"} 2"#,
        r#"sametime_mux_listener_up{section="client_connections",port="1533"} 1"#,
        r#"sametime_mux_community_up{server="a:1533"} 1"#,
        r#"sametime_mux_community_sessions{server="a:1533"} 3"#,
        r#"sametime_mux_tunnel_requests_total{kind="http_polling",outcome="payload"} 1"#,
        "sametime_mux_tls_certificate_expiry_seconds -",
        "sametime_mux_login_seconds_count 1",
        r#"sametime_mux_build_info{version="1.2.3"} 1"#,
        "sametime_mux_open_file_descriptors ",
    ] {
        assert!(text.lines().any(|have| have.starts_with(line)), "{line} in\n{text}");
    }
    assert!(!text.contains("_total_total"));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn sums_follow_the_gauges() {
    let telemetry = Telemetry::new("0");
    let port = |address: &str| telemetry.sessions.port(address.parse().expect("address"));
    let (one, other) = (port("127.0.0.1:1533"), port("127.0.0.2:1533"));
    assert_eq!(port("127.0.0.1:1533"), one, "one address, one listener");
    telemetry.sessions.of(80, Transport::HttpHybrid).opened();
    telemetry.sessions.of(one, Transport::Raw).opened();
    telemetry.sessions.of(other, Transport::Raw).opened();
    telemetry.sessions.of(other, Transport::Tls).opened();
    telemetry.sessions.of(other, Transport::Tls).closed();
    assert_eq!(telemetry.sessions.present(|_| true), 3);
    assert_eq!(telemetry.sessions.present(|transport| transport == Transport::Raw), 2);
    let counts: Vec<u64> = telemetry.sessions.by_listener().into_iter().map(|(_, sessions)| sessions).collect();
    assert_eq!(counts, [1, 1]);
    let text = telemetry.encode();
    for line in [
        r#"sametime_mux_sessions{port="1533",transport="raw"} 2"#,
        r#"sametime_mux_listener_sessions{address="127.0.0.1",port="1533"} 1"#,
    ] {
        assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
    }
}

#[test]
fn a_port_is_up_if_it_is_up_at_each_of_its_addresses() {
    let telemetry = Telemetry::new("0");
    let (clients, http) = (Section::ClientConnections, Section::HttpTunneledClientConnections);
    let lines = |listeners: &[ShownListener]| {
        telemetry.listeners.show(listeners);
        let text = telemetry.encode();
        let lines = text.lines().filter(|line| line.starts_with("sametime_mux_listener_"));
        let mut lines: Vec<String> = lines.filter(|line| line.contains("_up{")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let both = [shown(clients, "127.0.0.1", 1533, true), shown(clients, "127.0.0.2", 1533, false)];
    let address = |address: &str, up| {
        format!(
            r#"sametime_mux_listener_address_up{{section="client_connections",address="{address}",port="1533"}} {up}"#
        )
    };
    let port = |up| format!(r#"sametime_mux_listener_up{{section="client_connections",port="1533"}} {up}"#);
    assert_eq!(lines(&both), [address("127.0.0.1", 1), address("127.0.0.2", 0), port(0)]);
    assert_eq!(lines(&both[..1]), [address("127.0.0.1", 1), port(1)], "what is gone is not shown");
    assert_eq!(lines(&[shown(http, "::", 80, true)]).len(), 2);
    assert_eq!(lines(&[]), Vec::<String>::new());
}

#[test]
fn accept_errors_are_classed() {
    for (errno, class) in [
        (Errno::MFILE, AcceptError::Exhausted),
        (Errno::NFILE, AcceptError::Exhausted),
        (Errno::CONNABORTED, AcceptError::Connection),
        (Errno::NETDOWN, AcceptError::Connection),
        (Errno::INVAL, AcceptError::Listener),
    ] {
        assert_eq!(AcceptError::of(&errno.into()), class, "{errno}");
    }
}
