use super::{
    outcome::{Refusal, TunnelOutcome},
    *,
};

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
    telemetry.set_listener(Section::ClientConnections, 1533, true);
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
    telemetry.sessions.of(80, Transport::HttpHybrid).opened();
    telemetry.sessions.of(1533, Transport::Raw).opened();
    assert_eq!(telemetry.sessions.present(|port, _| port == 80), 1);
    assert_eq!(telemetry.sessions.present(|_, _| true), 2);
}
