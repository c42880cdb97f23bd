//! The configuration database: the result is legal settings, or faults with lines that exist.

use std::path::Path;

use sametime_mux::config::{ConfigPlace, ENV_PREFIX, parse};

/// The input is the text of the database, and after the first zero byte the environment variables, one in each
/// line.
pub fn check(input: &[u8]) {
    let end = input.iter().position(|&b| b == 0).unwrap_or(input.len());
    let text = String::from_utf8_lossy(&input[..end]);
    let environment = String::from_utf8_lossy(input.get(end + 1..).unwrap_or_default()).into_owned();
    let variables = || {
        environment.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| {
            // Variables with names that belong to no key are included.
            let name = if name.starts_with(ENV_PREFIX) { name.to_owned() } else { format!("{ENV_PREFIX}{name}") };
            (name, value.to_owned())
        })
    };
    // The one key without a default. Where the input has it, that value is looked at.
    let servers = (format!("{ENV_PREFIX}COMMUNITY__SERVERS"), "sandbox".to_owned());
    let servers = (!text.contains("servers") && !environment.contains("SERVERS")).then_some(servers);
    let variables = || variables().chain(servers.clone());
    let parsed = parse(&text, Path::new("stconfig.toml"), variables());
    assert_eq!(parsed, parse(&text, Path::new("stconfig.toml"), variables()), "the same twice");
    match parsed {
        Err(faults) => {
            assert!(!faults.faults.is_empty());
            let lines = text.bytes().filter(|&b| b == b'\n').count() + 1;
            for fault in &faults.faults {
                assert!(!fault.what.is_empty());
                if let ConfigPlace::Line(line) = fault.place {
                    assert!((1..=lines).contains(&line), "line {line} of {lines}");
                }
            }
            assert!(!faults.to_string().is_empty());
        }
        Ok(settings) => {
            let (ingress, limits) = (&settings.ingress, &settings.mux);
            assert!(ingress.listeners.iter().all(|listener| listener.port != 0));
            assert!((1024..=16 << 20).contains(&ingress.max_frame));
            assert!(!ingress.login_timeout.is_zero());
            assert!((4096..=16 << 20).contains(&ingress.tunnel.window));
            assert!(ingress.tunnel.version <= 1 && !ingress.tunnel.session_timeout.is_zero());
            // The HTTP client takes port 80 where it finds none.
            let has_its_port = |url: &str| url.ends_with(']') || !url.contains(':');
            assert!(ingress.http_backend.as_ref().is_none_or(|url| {
                url.authority()
                    .is_some_and(|all| url.port_u16().is_some_and(|port| port > 0) || has_its_port(all.as_str()))
            }));
            let networks = [&ingress.proxy_protocol_from, &ingress.forwarded_for_from, &limits.exempt];
            // Clients are known by their IPv4 addresses.
            let is_mapped = |ip| matches!(ip, std::net::IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
            assert!(!networks.iter().any(|all| all.iter().any(|network| is_mapped(network.addr()))));
            assert!((1..=1_000_000).contains(&limits.capacity) && limits.per_address <= limits.capacity);
            assert!(!settings.community.servers.is_empty());
        }
    }
}
