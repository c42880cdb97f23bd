//! `[client_connections]`, `[http_tunneled_client_connections]`, `[https_tunneled_client_connections]`,
//! `[listeners]`.

use ipnet::IpNet;

use super::NETWORKS;
use crate::{
    config::{legal, reader::KeyReader, section_reader::SectionReader},
    ingress::ListenerSettings,
    net::Section,
};

/// The values of these sections.
pub(super) struct ListenersSection {
    pub(super) listeners: Vec<ListenerSettings>,
    pub(super) require_all: bool,
    pub(super) share_ports: bool,
    pub(super) proxy_protocol_from: Vec<IpNet>,
    pub(super) forwarded_for_from: Vec<IpNet>,
}

impl ListenersSection {
    /// Whether there is a port for the far end of trunks.
    pub(super) fn has_trunk(&self) -> bool {
        self.listeners.iter().any(|listener| listener.section == Section::TrunkListener)
    }
}

pub(super) fn read(reader: &mut KeyReader<'_>) -> ListenersSection {
    let listeners = ports(reader);
    let mut section = SectionReader::new(reader, "listeners");
    ListenersSection {
        listeners,
        require_all: section.flag("require_all", false),
        share_ports: section.flag("share_ports", false),
        proxy_protocol_from: section.key("proxy_protocol_from", vec![], NETWORKS, legal::networks),
        forwarded_for_from: section.key("forwarded_for_from", vec![], NETWORKS, legal::networks),
    }
}

/// Reads the sections of ports. One port may be in two sections only with two different addresses.
fn ports(reader: &mut KeyReader<'_>) -> Vec<ListenerSettings> {
    let mut listeners: Vec<ListenerSettings> = Vec::new();
    for listed_in in Section::ALL.into_iter().chain([Section::TrunkListener]) {
        let default: &[i64] = match listed_in {
            Section::ClientConnections => &[1533],
            Section::HttpTunneledClientConnections => &[80, 8082],
            Section::HttpsTunneledClientConnections => &[443],
            Section::TrunkListener => &[],
        };
        let mut section = SectionReader::new(reader, listed_in.name());
        let legal = "an address or a name of this machine, or \"\" for every address, IPv4 and IPv6";
        let host = section.key("host_name", String::new(), legal, legal::host);
        let legal = "a list of ports, each 1 to 65535 and in one section only; [] for none";
        for port in section.key("ports", default.to_vec(), legal, legal::ports) {
            let taken = listeners.iter().find(|other| other.port == port && legal::may_overlap(&other.host, &host));
            if let Some(taken) = taken {
                section.conflict("ports", &format!("port {port} stands in [{}], too", taken.section));
            }
            listeners.push(ListenerSettings { section: listed_in, host: host.clone(), port });
        }
    }
    if listeners.is_empty() {
        reader.conflict(Section::ClientConnections.name(), "ports", "no section has a port");
    }
    listeners
}
