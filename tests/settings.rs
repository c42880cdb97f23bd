//! What `check` accepts, the running server does: every legal value becomes the setting that it says, and takes effect.
//!
//! The ranges come from docs/configuration.md, so that the document, the check and the settings agree to the edges.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use proptest::{prelude::*, sample::select};
use sametime_mux::{
    community::{ConfiguredServer, ServerAddress},
    config::{self, Settings},
    net::address::lies_in,
};
use support::{
    client::{Client, Transport},
    community::Community,
    frames::{self, Frame},
    http, in_time,
    mux::{self, Mux},
    program::{Setup, local},
};
use tokio::io::AsyncWriteExt;

/// Parses `key = value`, by the file or by a variable.
fn parse(key: &str, value: &str, by_variable: bool) -> Result<Settings, String> {
    let (section, name) = key.split_once('.').unwrap();
    let variable = |key: &str| format!("SAMETIME_MUX__{}", key.to_uppercase().replace('.', "__"));
    // The sandbox fits neither a PROXY header nor a trunk.
    let servers =
        if matches!(key, "community.send_proxy_protocol" | "community.link") { "chat.example:1533" } else { "sandbox" };
    let mut variables = BTreeMap::from([(variable("community.servers"), servers.to_owned())]);
    let mut text = String::new();
    if by_variable {
        variables.insert(variable(key), value.to_owned());
    } else {
        variables.remove(&variable(key));
        text = format!("[{section}]\n{name} = {value}\n");
    }
    config::parse(&text, Path::new("st.toml"), variables.into_iter()).map_err(|errors| errors.to_string())
}

/// The legal values of each key, as the document has them.
fn legal_values() -> BTreeMap<String, String> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split_once("` | ").map(|(key, rest)| (key, rest.split(" | ").nth(1))));
    cells.filter_map(|(key, legal)| Some((key.to_owned(), legal?.trim_end_matches(" |").to_owned()))).collect()
}

/// A range of numbers; of durations, in milliseconds.
#[derive(Debug, Clone)]
struct Range {
    key: String,
    lowest: u64,
    highest: u64,
    /// Whether 0 is legal, too.
    has_zero: bool,
    is_duration: bool,
}

impl Range {
    /// Of a text such as `50ms to 2m`, `1 to 1000000, 0` or `64 KiB to limits.held_bytes, 0`.
    fn read(key: &str, legal: &str) -> Option<Self> {
        let (range, zero) = legal.split_once(", ").map_or((legal, None), |(range, zero)| (range, Some(zero)));
        let (lowest, highest) = range.split_once(" to ")?;
        let is_duration = humantime::parse_duration(lowest).is_ok();
        let number = |text: &str| match text.trim_matches('`') {
            "capacity" => 20_000,
            "held_bytes" => 256 << 20,
            text if is_duration => humantime::parse_duration(text).unwrap().as_millis() as u64,
            text => match text.split_once(' ') {
                Some((number, unit)) => {
                    let shift = ["KiB", "MiB", "GiB", "TiB"].iter().position(|known| *known == unit).unwrap();
                    number.parse::<u64>().unwrap() << (10 * (shift + 1))
                }
                None => text.parse().unwrap(),
            },
        };
        let (lowest, highest) = (number(lowest), number(highest));
        assert!(zero.is_none_or(|zero| zero == "0" || zero == "0s"), "{key}: {legal}");
        Some(Self { key: key.to_owned(), lowest, highest, has_zero: zero.is_some(), is_duration })
    }

    fn all() -> Vec<Self> {
        let all: Vec<_> = legal_values().iter().filter_map(|(key, legal)| Self::read(key, legal)).collect();
        assert!(all.len() > 25, "{all:?}");
        all
    }

    fn has(&self, value: u64) -> bool {
        (self.lowest..=self.highest).contains(&value) || (value == 0 && self.has_zero)
    }

    /// As the file has it, or without quotes, as a variable may have it.
    fn text(&self, value: u64, quoted: bool) -> String {
        match (self.is_duration, quoted) {
            (true, true) => format!("\"{value}ms\""),
            (true, false) => format!("{value}ms"),
            (false, _) => value.to_string(),
        }
    }

    /// Values at the edges, beside them, between them, and far away.
    fn values(&self) -> impl Strategy<Value = u64> + use<> {
        let (lowest, highest) = (self.lowest, self.highest);
        let edges = vec![0, lowest.saturating_sub(1), lowest, lowest + 1, highest - 1, highest, highest + 1, 1 << 52];
        prop_oneof![2 => select(edges), 1 => lowest..=highest]
    }
}

/// The value of a setting as text: numbers, durations in milliseconds (`0` if there is no limit), words, flags.
///
/// `None`: no setting, because the key has no effect in this version.
fn setting(settings: &Settings, key: &str) -> Option<String> {
    let ms = |duration: Duration| duration.as_millis().to_string();
    let ms_or_never = |duration: Option<Duration>| ms(duration.unwrap_or_default());
    let word = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    let (ingress, core, community) = (&settings.ingress, &settings.mux, &settings.community);
    let (tunnel, connections) = (&ingress.tunnel, &ingress.limits);
    Some(match key {
        "listeners.require_all" => ingress.require_all.to_string(),
        "listeners.share_ports" => ingress.share_ports.to_string(),
        "community.balance" => word(&community.balance).replace("sessions", "-sessions").replace("robin", "-robin"),
        "community.recalculate_after" => community.recalculate_after.to_string(),
        "community.slow_start" => ms(community.slow_start),
        "community.connect_timeout" => ms(community.connect_timeout),
        "community.handshake_timeout" => ms(community.handshake_timeout),
        "community.check" => word(&community.check),
        "community.check_interval" => ms_or_never(community.check_interval),
        "http_backend.connections" => ingress.http_backend_connections.to_string(),
        "http_backend.response_timeout" => ms(ingress.http_backend_response_timeout),
        "limits.capacity" => core.capacity.to_string(),
        "limits.per_address" => core.per_address.to_string(),
        "limits.logging_in" => core.logging_in.to_string(),
        "limits.logging_in_per_address" => core.logging_in_per_address.to_string(),
        "limits.logging_in_timeout" => ms_or_never(core.logging_in_timeout),
        "limits.tunnel_sessions" => tunnel.sessions.to_string(),
        "limits.tunnel_sessions_per_address" => tunnel.sessions_per_address.to_string(),
        "limits.connections" => connections.connections.to_string(),
        "limits.connections_per_address" => connections.connections_per_address.to_string(),
        "limits.connection_rate" => connections.rate.to_string(),
        "limits.connection_rate_per_address" => connections.rate_per_address.to_string(),
        "limits.held_bytes" => core.held_bytes.to_string(),
        "limits.held_bytes_per_address" => core.held_bytes_per_address.to_string(),
        "limits.login_timeout" => {
            assert_eq!(core.login_timeout, ingress.login_timeout, "one value in both rooms");
            ms(core.login_timeout)
        }
        "limits.idle_timeout" => ms_or_never(core.idle_timeout),
        "limits.vanished_timeout" => ms(ingress.vanished_timeout),
        "limits.max_frame" => {
            assert_eq!(core.max_frame, ingress.max_frame, "one value in both rooms");
            core.max_frame.to_string()
        }
        "limits.drain_timeout" => ms(core.drain_timeout),
        "tls.client_certificates" => word(&ingress.tls.client_certificates),
        "tunnel.hold" => ms(tunnel.hold),
        "tunnel.reply_wait" => ms(tunnel.reply_wait),
        "tunnel.session_timeout" => ms(tunnel.session_timeout),
        "tunnel.stream_keep_alive" => ms_or_never(tunnel.stream_keep_alive),
        "tunnel.version" => tunnel.version.to_string(),
        "tunnel.same_address" => tunnel.same_address.to_string(),
        "tunnel.window" => tunnel.window.to_string(),
        "log.format" => word(&settings.log.format),
        "log.level" => word(&settings.log.level),
        "community.send_proxy_protocol" => community.send_proxy_protocol.to_string(),
        "community.link" => if community.trunk.is_used { "trunk" } else { "direct" }.to_owned(),
        "trunk.connections" => community.trunk.connections.to_string(),
        "trunk.tls" => community.trunk.tls.to_string(),
        "trunk_listener.tls" => ingress.trunk_listener.tls.to_string(),
        _ => panic!("{key} is in no test here"),
    })
}

/// Keys whose values are one of several words; `true` and `false` are words, too.
fn words() -> Vec<(String, Vec<String>)> {
    let words = |legal: &str| {
        let words = legal.replace(", ", " ").replace('`', "");
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let is_word = |word: &String| {
            word == "true" || word == "false" || word.parse::<u64>().is_ok() || {
                let bare = word.trim_matches('"');
                word.starts_with('"') && !bare.is_empty() && bare.chars().all(|c| c.is_ascii_lowercase() || c == '-')
            }
        };
        words.iter().all(is_word).then_some(words)
    };
    let all: Vec<_> = legal_values().iter().filter_map(|(key, legal)| Some((key.clone(), words(legal)?))).collect();
    assert!(all.len() > 8, "{all:?}");
    all
}

/// Keys that have tests of their own below, or in the named file.
const OTHERS: &[(&str, &str)] = &[
    ("client_connections.host_name", "hosts"),
    ("client_connections.ports", "tests/process.rs"),
    ("http_tunneled_client_connections.host_name", "hosts"),
    ("http_tunneled_client_connections.ports", "tests/process.rs"),
    ("https_tunneled_client_connections.host_name", "hosts"),
    ("https_tunneled_client_connections.ports", "tests/process.rs"),
    ("listeners.proxy_protocol_from", "networks"),
    ("listeners.forwarded_for_from", "networks"),
    ("limits.exempt", "networks"),
    ("community.servers", "servers"),
    ("http_backend.url", "back ends"),
    ("cluster.node", "tests/cluster.rs"),
    ("cluster.peer", "tests/cluster.rs"),
    ("cluster.nodes", "tests/cluster.rs"),
    ("cluster.listen", "tests/cluster.rs"),
    ("cluster.secret_file", "tests/cluster.rs"),
    ("tls.certificate", "tests/reload.rs"),
    ("tls.private_key", "tests/reload.rs"),
    ("tls.client_ca", "tests/tls.rs"),
    ("admin.listen", "tests/process.rs"),
    ("admin.token_file", "tests/process.rs"),
    ("trunk.certificate_authority", "tests/trunk.rs"),
    ("trunk.certificate", "tests/trunk.rs"),
    ("trunk.private_key", "tests/trunk.rs"),
    ("trunk.target", "tests/trunk.rs"),
    ("trunk_listener.host_name", "hosts"),
    ("trunk_listener.ports", "tests/trunk.rs"),
    ("trunk_listener.target", "tests/trunk.rs"),
    ("trunk_listener.client_ca", "tests/trunk.rs"),
];

#[test]
fn no_key_is_left_out() {
    let mut tried: BTreeSet<String> = Range::all().into_iter().map(|range| range.key).collect();
    tried.extend(words().into_iter().map(|(key, _)| key));
    tried.extend(OTHERS.iter().map(|(key, _)| (*key).to_owned()));
    let all: BTreeSet<String> = config::keys().iter().map(|key| format!("{}.{}", key.section, key.name)).collect();
    assert_eq!(tried, all);
}

#[test]
fn each_word_is_a_setting_of_its_own() {
    for (key, legal) in words() {
        for word in legal {
            let more = match &*key {
                "tls.client_certificates" => "\nclient_ca = \"ca.pem\"",
                _ => "",
            };
            let settings = parse(&key, &format!("{word}{more}"), false).unwrap();
            let bare = word.trim_matches('"');
            assert_eq!(setting(&settings, &key).unwrap_or(bare.to_owned()), bare, "{key}");
        }
    }
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn range_and_value() -> impl Strategy<Value = (Range, u64)> {
    select(Range::all()).prop_flat_map(|range| (Just(range.clone()), range.values()))
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn each_range_is_legal_to_its_edges_and_not_beyond((range, value) in range_and_value(), by_variable: bool) {
        let parsed = parse(&range.key, &range.text(value, !by_variable), by_variable);
        prop_assert_eq!(parsed.is_ok(), range.has(value), "{} = {}: {:?}", range.key, value, parsed.err());
        if let Ok(settings) = parsed {
            let set = setting(&settings, &range.key);
            prop_assert_eq!(set.unwrap_or(value.to_string()), value.to_string(), "{}", range.key);
        }
    }
}

/// IPv4 addresses, IPv6 addresses, and IPv4 addresses in the form of IPv6.
fn addresses() -> impl Strategy<Value = IpAddr> {
    let ipv4 = any::<u32>().prop_map(Ipv4Addr::from);
    prop_oneof![
        ipv4.clone().prop_map(IpAddr::from),
        ipv4.prop_map(|address| address.to_ipv6_mapped().into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()),
        select(vec!["::", "::1", "0.0.0.0", "127.0.0.1", "255.255.255.255", "::ffff:0:0", "fe80::1", "::7f00:1"])
            .prop_map(|text| text.parse().unwrap()),
    ]
}

/// Whether the value is refused because it is a port of the program itself. `tests/community/loops.rs` is about that.
fn leads_back(parsed: &Result<Settings, String>) -> bool {
    parsed.as_ref().is_err_and(|error| error.contains("this program itself"))
}

/// Bits of an address, as IPv6.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(address) => address.into(),
    }
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn a_network_has_exactly_the_clients_whose_first_bits_it_names(
        network in addresses(),
        length in 0..=130u32,
        client in addresses(),
        shares in 0..=128u32,
        key in select(vec!["listeners.proxy_protocol_from", "listeners.forwarded_for_from", "limits.exempt"]),
    ) {
        let parsed = parse(key, &format!("[\"{network}/{length}\"]"), false);
        // Of a network that is written as IPv4, the prefix begins after the 96 bits that are the same for all.
        let prefix = if network.is_ipv4() { length + 96 } else { length };
        let is_mapped = bits(network) >> 32 == 0xFFFF;
        let is_legal = prefix <= 128 && (!is_mapped || prefix >= 96);
        prop_assert_eq!(parsed.is_ok(), is_legal, "{}/{}: {:?}", network, length, parsed.err());
        let Ok(settings) = parsed else { return Ok(()) };
        let lists = match key {
            "listeners.proxy_protocol_from" => vec![settings.ingress.proxy_protocol_from],
            "listeners.forwarded_for_from" => vec![settings.ingress.forwarded_for_from],
            _ => vec![settings.mux.exempt, settings.ingress.limits.exempt, settings.ingress.tunnel.exempt],
        };
        // A client beside the network: the first bits are those of the network.
        let own = if shares == 0 { 0 } else { u128::MAX << (128 - shares) };
        let near = Ipv6Addr::from((bits(network) & own) | (bits(client) & !own));
        for client in [client, near.into(), near.to_canonical()] {
            let mask = if prefix == 0 { 0 } else { u128::MAX << (128 - prefix) };
            let is_ipv4 = bits(client) >> 32 == 0xFFFF;
            // A network of IPv6 has no clients of IPv4.
            let expected = bits(client) & mask == bits(network) & mask && is_ipv4 == is_mapped;
            for list in &lists {
                prop_assert_eq!(lies_in(list, client), expected, "{} in {}/{}", client, network, length);
            }
        }
    }

    #[test]
    fn a_back_end_is_reached_at_the_port_that_its_url_has(
        host in prop_oneof!["[a-z][a-z0-9]{0,9}(\\.[a-z]{2,5}){0,2}", addresses().prop_map(|ip| match ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        })],
        port in prop_oneof![Just(None), (0..=70_000u32).prop_map(Some), select(vec![1, 65_535, 65_536, 99_999]).prop_map(Some)],
        slash: bool,
    ) {
        let authority = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        let url = format!("\"http://{authority}{}\"", if slash { "/" } else { "" });
        let parsed = parse("http_backend.url", &url, false);
        prop_assume!(!leads_back(&parsed));
        let is_legal = port.is_none_or(|port| (1..=65_535).contains(&port));
        prop_assert_eq!(parsed.is_ok(), is_legal, "{}: {:?}", url, parsed.err());
        if let Ok(settings) = parsed {
            let uri = settings.ingress.http_backend.unwrap();
            // As the HTTP client takes it.
            prop_assert_eq!(uri.port_u16().unwrap_or(80), u16::try_from(port.unwrap_or(80)).unwrap());
            prop_assert_eq!(uri.host(), Some(&*host));
        }
    }

    #[test]
    fn a_server_has_a_port_and_a_host_that_the_system_takes_and_its_weight(
        ip in addresses(),
        port in 0..=70_000u32,
        weight in proptest::option::of(0..=300u32),
    ) {
        let server = match ip {
            IpAddr::V4(ip) => format!("{ip}:{port}"),
            IpAddr::V6(ip) => format!("[{ip}]:{port}"),
        };
        let text = weight.map_or(server.clone(), |weight| format!("{server} weight={weight}"));
        let parsed = parse("community.servers", &format!("[\"{text}\"]"), false);
        prop_assume!(!leads_back(&parsed));
        let is_legal = (1..=65_535).contains(&port) && weight.is_none_or(|weight| (1..=256).contains(&weight));
        prop_assert_eq!(parsed.is_ok(), is_legal, "{}: {:?}", text, parsed.err());
        if let Ok(settings) = parsed {
            let expected = ConfiguredServer { weight: weight.unwrap_or(1), ..ServerAddress::Address(server.clone()).into() };
            prop_assert_eq!(settings.community.servers, [expected]);
            prop_assert_eq!(server.parse::<SocketAddr>().unwrap(), SocketAddr::new(ip, u16::try_from(port).unwrap()));
        }
    }

    #[test]
    fn a_host_is_the_address_that_it_says(ip in addresses(), brackets: bool) {
        let host = if brackets { format!("[{ip}]") } else { ip.to_string() };
        let parsed = parse("client_connections.host_name", &format!("\"{host}\""), false);
        prop_assert_eq!(parsed.is_ok(), ip.is_ipv6() || !brackets, "{}", host);
        if let Ok(settings) = parsed {
            let listens_on: IpAddr = settings.ingress.listeners[0].host.parse().unwrap();
            prop_assert_eq!(listens_on, ip.to_canonical(), "as its clients and the system know it");
        }
    }
}

/// Servers that run at the same time.
const AT_ONCE: usize = 16;

/// The transports of the clients below. Short time-outs leave no time for a client on a busy machine, and limits of
/// connections leave too few for a tunnel.
fn transports(range: &Range, value: u64) -> &'static [Transport] {
    match &*range.key {
        key if key.ends_with("_timeout") && (1..60_000).contains(&value) => &[],
        key if key.starts_with("limits.connection") => &[Transport::Raw],
        _ => &[Transport::Raw, Transport::Hybrid],
    }
}

/// Starts a server with `key = value` and serves a client of each transport.
async fn starts_and_serves(range: Range, value: u64) {
    let (section, name) = range.key.split_once('.').unwrap();
    let toml = format!("[{section}]\n{name} = {}\n", range.text(value, true));
    let mux = mux::start(&toml).await;
    assert_eq!(mux.get("/healthz").await.status, 200, "{toml}");
    for transport in transports(&range, value) {
        let mut client = Client::connect(*transport, mux.raw()).await;
        client.log_in("bob").await;
        let channel = client.open_chat("echo").await;
        client.send_text(channel, b"here").await;
        assert_eq!(client.recv().await.expect("an echo").text(), b"here", "{toml}, {transport:?}");
        client.log_out().await;
        drop(client);
        // Some limits allow one client.
        in_time("the end", async {
            while mux.metric_sum("sametime_mux_sessions").await > 0.0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_starts_and_serves_at_the_edges_of_each_range() {
    let mut servers = tokio::task::JoinSet::new();
    for range in Range::all().into_iter().filter(|range| !range.key.starts_with("trunk")) {
        let zero = range.has_zero.then_some(0);
        for value in [range.lowest, range.highest].into_iter().chain(zero) {
            servers.spawn(starts_and_serves(range.clone(), value));
            if servers.len() >= AT_ONCE {
                servers.join_next().await.unwrap().unwrap();
            }
        }
    }
    while let Some(served) = servers.join_next().await {
        served.unwrap();
    }
}

/// The time until the kernel's keep-alive timer of a connection runs out, of the server's end (proc(5), /proc/net/tcp).
/// `None` while the connection has another timer, or none.
fn keep_alive(server: u16, client: u16) -> Option<Duration> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let mut rows = tables.iter().flat_map(|table| table.lines().skip(1)).map(|row| row.split_whitespace().collect());
    let row: Vec<&str> = rows.find(|row: &Vec<&str>| {
        row[1].ends_with(&format!(":{server:04X}")) && row[2].ends_with(&format!(":{client:04X}"))
    })?;
    let ticks = row[5].strip_prefix("02:")?;
    // USER_HZ is 100 on every system.
    Some(Duration::from_millis(u64::from_str_radix(ticks, 16).ok()? * 10))
}

/// Opens a connection, and waits until the server has accepted it. Returns how long until the kernel probes it.
async fn first_probe(to: SocketAddr) -> Duration {
    let mut tcp = http::tcp(to).await;
    let response = http::exchange(&mut tcp, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(response.status, 404);
    let port = tcp.local_addr().unwrap().port();
    in_time("the timer", async {
        loop {
            if let Some(left) = keep_alive(to.port(), port) {
                return left;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_client_that_vanishes_is_watched_for_by_every_legal_time() {
    for (timeout, at_least, at_most) in [
        ("8s", Duration::ZERO, Duration::from_secs(4)),
        ("4m", Duration::from_secs(60), Duration::from_secs(120)),
        ("18h", 8 * HOUR, 9 * HOUR),
        // The kernel probes after 32767 s at the latest.
        ("20h", 8 * HOUR, Duration::from_secs(32_767)),
        ("1d", 8 * HOUR, Duration::from_secs(32_767)),
    ] {
        let mux = mux::start(&format!("[limits]\nvanished_timeout = \"{timeout}\"\n")).await;
        let first = first_probe(mux.raw()).await;
        assert!(first >= at_least && first <= at_most, "{timeout}: the first probe comes after {first:?}");
    }
}

#[tokio::test]
async fn a_reload_changes_the_time_for_the_next_connection() {
    let setup = Setup::new("[limits]\nvanished_timeout = \"4m\"\n");
    let (raw, file, toml) = (local(setup.raw), setup.file(), setup.toml(&[setup.raw]));
    let program = setup.start();
    assert!(first_probe(raw).await < HOUR);
    fs::write(&file, toml.replace("4m", "20h")).unwrap();
    assert_eq!(program.reload("open sesame").await.status, 200);
    // As many as there are threads, each with a socket of its own.
    for _ in 0..8 {
        let first = first_probe(raw).await;
        assert!(first > HOUR, "{first:?}");
    }
}

async fn dropped(mux: &Mux, reason: &str) -> f64 {
    mux.metric(&format!("sametime_mux_connections_dropped_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn networks_of_ipv4_mapped_addresses_have_their_clients() {
    let loopback = "[\"::ffff:127.0.0.0/104\"]";
    let community = Community::start_echo().await;
    // The PROXY header is required.
    let trusting = format!("{}[listeners]\nproxy_protocol_from = {loopback}\n", community.setting());
    let mux = mux::start(&trusting).await;
    let mut stream = http::connect(mux.raw(), false).await;
    stream.write_all(&frames::handshake().bytes()).await.unwrap();
    assert!(in_time("the close", Frame::read(&mut stream)).await.is_none());
    assert!(dropped(&mux, "proxy_header").await > 0.0);
    let mut stream = http::connect(mux.raw(), false).await;
    stream.write_all(b"PROXY TCP4 192.0.2.7 127.0.0.1 5000 1533\r\n").await.unwrap();
    stream.write_all(&frames::handshake().bytes()).await.unwrap();
    assert!(in_time("an answer", Frame::read(&mut stream)).await.is_some());

    // No limit per address applies.
    let exempt = format!("{}[limits]\nper_address = 1\nexempt = {loopback}\n", community.setting());
    let mux = mux::start(&exempt).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(Transport::Raw, mux.raw()).await;
        client.log_in("bob").await;
        clients.push(client);
    }

    // X-Forwarded-For is believed: what it says is passed on.
    let backend = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = backend.local_addr().unwrap();
    let trusting = format!("[listeners]\nforwarded_for_from = {loopback}\n[http_backend]\nurl = \"http://{url}\"\n");
    let mux = mux::start(&trusting).await;
    let mut stream = http::tcp(mux.raw()).await;
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.7\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let (mut reached, _) = in_time("a request", backend.accept()).await.unwrap();
    let mut head = Vec::new();
    in_time("its head", async {
        while !head.ends_with(b"\r\n\r\n") {
            tokio::io::AsyncReadExt::read_buf(&mut reached, &mut head).await.unwrap();
        }
    })
    .await;
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.contains("x-forwarded-for: 192.0.2.7, 127.0.0.1"), "{head}");
}
